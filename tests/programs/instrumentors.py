"""Print which instrumentors are on, and which clients of brokers that has imported.

`python instrumentors.py --hide [DISTRIBUTION]...` loads them as `opentelemetry-instrument` does, as if some were not
installed; without arguments it is to be run under `opentelemetry-instrument`.
"""

import contextlib
import importlib.metadata
import json
import sys

CLIENTS = {"kafka", "aio_pika", "aiormq", "nats"}


def hide(names):
    """Let distributions seem not to be installed."""
    for metadata in [importlib.metadata, *backport()]:
        metadata.Distribution.from_name = classmethod(hiding(metadata, names))


def hiding(metadata, names):
    real = metadata.Distribution.from_name.__func__

    def from_name(cls, name):
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return real(cls, name)

    return from_name


def backport():
    """What older versions of OpenTelemetry use in place of `importlib.metadata`."""
    with contextlib.suppress(ImportError):
        import importlib_metadata

        yield importlib_metadata


def main(arguments):
    if arguments[:1] == ["--hide"]:
        hide(arguments[1:])
        from opentelemetry.instrumentation.auto_instrumentation import initialize

        initialize(swallow_exceptions=False)
    imported = sorted(CLIENTS & set(sys.modules))

    import otel_messaging

    kinds = [getattr(otel_messaging, name) for name in otel_messaging.__all__ if name.endswith("Instrumentor")]
    on = sorted(kind.library for kind in kinds if kind().is_instrumented_by_opentelemetry)
    print(json.dumps({"on": on, "imported": imported}))


if __name__ == "__main__":
    main(sys.argv[1:])
