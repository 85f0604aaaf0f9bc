"""What the doctor has found, as a table and as JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass

_WIDTH = 80
_NAME = 30  # a name that is longer has a line of its own


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        value: what was found. Never a credential.
        remedy: what to do about it; empty where nothing is wrong.
    """

    name: str
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Section:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


def problems(sections: list[Section]) -> int:
    """How many things are wrong."""
    return sum(bool(row.remedy) for section in sections for row in section.rows)


def as_table(sections: list[Section]) -> str:
    """A text of at most 80 columns, where no path or address is longer."""
    lines = []
    for section in sections:
        lines += [section.title, *(line for row in section.rows for line in _row(row)), ""]
    found = problems(sections)
    lines.append("No problem found." if not found else f"{found} problem{'s' * (found > 1)} found, marked with !.")
    return "\n".join(lines)


def as_json(sections: list[Section]) -> str:
    """``{"problems": 1, "sections": [{"title": ..., "rows": [{"name": ..., "value": ..., "remedy": ...}]}]}``."""
    return json.dumps({"problems": problems(sections), "sections": [asdict(section) for section in sections]}, indent=2)


def _row(row: Row) -> list[str]:
    mark = "! " if row.remedy else "  "
    value = _wrap(row.value, " " * (_NAME + 3))
    head = f"{mark}{row.name.ljust(_NAME)}"
    lines = [f"{head} {value[0].strip()}", *value[1:]] if len(row.name) <= _NAME else [head, *value]
    return [*lines, *_wrap(f"what to do: {row.remedy}", " " * 4)] if row.remedy else lines


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text or "-",
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,  # a path that is cut cannot be copied
        break_on_hyphens=False,
    )
