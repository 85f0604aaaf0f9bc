"""The table in `docs/settings.md`, made of the code's own."""

from __future__ import annotations

import re
from pathlib import Path

from otel_messaging.core import settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
BEGIN, END = (
    "<!-- The table is made of core/settings.py: UPDATE_SNAPSHOTS=1 pytest tests/test_documents.py -->\n",
    "<!-- -->\n",
)


def descriptions():
    """What the code says of each setting."""
    (_, text) = settings.Settings.__doc__.split("Attributes:")
    return dict(re.findall(r"^ +(\w+): (.*)$", text, flags=re.MULTILINE))


def table():
    """A row for each setting: variable, argument, values, default in the guide and in the conventions, what it is."""
    guide, conventions = settings.load({}, {}), settings.load({}, {settings.OPT_IN: "messaging"})
    rows = ["| variable | argument | takes | default | |", "|---|---|---|---|---|"]
    for name in settings.NAMES:
        default, other = (_show(getattr(read, name)) for read in (guide, conventions))
        default = default if default == other else f"{default}; {other} in the conventions"
        what = descriptions()[name].replace("``", "`")
        rows.append(f"| `{settings.variable(name)}` | `{name}` | {settings.takes(name)} | {default} | {what} |")
    return "\n".join(rows) + "\n"


def page():
    """The page with the table as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def _show(value):
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value else "none"
