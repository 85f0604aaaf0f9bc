"""Run a program's `main` in two children: `python workers.py METHOD PROGRAM DESTINATION`; they end with our input.

METHOD is one of `multiprocessing`'s: fork, spawn or forkserver. With FLUSH children export all before they end.
"""

import asyncio
import inspect
import multiprocessing
import os
import runpy
import sys

from flushing import flush


def work(program, destination, end):
    result = runpy.run_path(program)["main"](destination)
    if inspect.iscoroutine(result):
        asyncio.run(result)
    end.wait()
    if os.environ.get("FLUSH"):
        flush()


def main(method, program, destination):
    context = multiprocessing.get_context(method)
    end = context.Event()
    children = [context.Process(target=work, args=(program, f"{destination}-{number}", end)) for number in range(2)]
    for child in children:
        child.start()
    sys.stdin.read()
    end.set()
    for child in children:
        child.join()
        assert child.exitcode == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
