"""What the documents say of entry points, patches and rivals is what the code says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from opentelemetry.semconv._incubating.attributes import messaging_attributes

import otel_messaging
from otel_messaging.aio_pika import readers
from otel_messaging.core import capturing, headers, propagation, settings
from otel_messaging.core import vocabulary as v
from otel_messaging.core.metrics import NAMES, Metrics
from otel_messaging.core.vocabulary import Vocabulary
from tests.support import settings_page

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "entry_points.md").read_text()
INSTRUMENTORS = {
    kind.entry_point: kind
    for kind in (getattr(otel_messaging, name) for name in otel_messaging.__all__ if name.endswith("Instrumentor"))
}


def rows(heading):
    """The rows of the first table below a heading: each a list of cells."""
    section = re.split(r"^#+ ", DOCUMENT, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading)]
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in found[2:]]


def code(cell):
    """What is set as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_entry_point_is_listed_with_its_class_and_versions():
    declared = {
        point.name: point.value.split(":")
        for point in importlib.metadata.distribution("otel-messaging").entry_points
        if point.group == "opentelemetry_instrumentor"
    }
    assert declared == {name: [kind.__module__, kind.__name__] for name, kind in INSTRUMENTORS.items()}
    listed = {code(row[0])[0]: (code(row[1]), code(row[3])) for row in rows("Entry points")}
    assert listed == {name: ([kind.__name__], list(kind.requirements)) for name, kind in INSTRUMENTORS.items()}


def test_the_extras_ask_for_what_the_instrumentors_support():
    requires = importlib.metadata.metadata("otel-messaging").get_all("Requires-Dist")
    extras = {re.split(r"[^\w-]", line)[0]: line for line in requires if "extra ==" in line}
    for kind in INSTRUMENTORS.values():
        name, wanted = kind.requirements[0].split(" ", 1)
        assert sorted(wanted.replace(" ", "").split(",")) == sorted(
            re.search(r"[^;]*", extras[name])[0].strip().removeprefix(name).strip(" ()").split(",")
        )


@pytest.mark.parametrize("entry_point", list(INSTRUMENTORS))
def test_every_patch_is_listed_with_a_reason(entry_point):
    (heading,) = re.findall(rf"^## (.*`{entry_point}`)$", DOCUMENT, flags=re.MULTILINE)
    listed = {}
    for module, methods, why in rows(heading):
        assert why.endswith("."), f"no reason for {methods}"
        for method, since in re.findall(r"`([^`]+)`(?: \(since ([\d.]+)\))?", methods):
            listed[f"{code(module)[0]}.{method}"] = since
    patches = INSTRUMENTORS[entry_point].patches
    assert listed == {f"{patch.module}.{patch.owner}.{patch.name}": patch.since for patch in patches}


def test_every_rival_is_listed():
    listed = [(*code(row[0]), *code(row[1])) for row in rows("Beside other packages")]
    rivals = [rival for kind in INSTRUMENTORS.values() for rival in kind.rivals]
    assert sorted(listed) == sorted((rival.package, rival.entry_point) for rival in rivals)


def test_the_versions_that_are_listed_are_those_of_the_dependency_groups():
    project = (ROOT / "pyproject.toml").read_text()
    groups = dict(
        re.findall(r"^([\w-]+) = \[\s*\{ include-group = \"tools\" \},(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    )
    lines = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", (ROOT / "docs" / "versions.md").read_text(), re.MULTILINE)
    listed = {group: re.findall(r"\d+\.[\d.]*\d", re.sub("Python 3\\.10", "", cells)) for group, cells in lines}
    assert listed == {group: re.findall(r"[=>]=(\d+\.[\d.]*\d)", text) for group, text in groups.items()}


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", other.read_text(), flags=re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_the_table_of_settings_is_that_of_the_code():
    if os.environ.get("UPDATE_SNAPSHOTS"):
        settings_page.PAGE.write_text(settings_page.page())
    assert settings_page.PAGE.read_text() == settings_page.page()


def test_every_setting_is_explained():
    explained = re.findall(r"^### (\w+)$", settings_page.PAGE.read_text(), flags=re.MULTILINE)
    assert explained == list(settings.NAMES)


def test_every_metric_is_explained():
    meter = mock.Mock()
    Metrics(meter, Vocabulary("both"))
    names = {call.args[0] for call in meter.method_calls if "Not exported" not in call.kwargs.values()}
    (section,) = re.findall(r"^### metrics$(.*?)^### ", settings_page.PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    explained = set(re.findall(r"^\| .*", section, flags=re.MULTILINE))
    explained = set(re.findall(r"`(messaging\.[a-z_.]+)`", "".join(explained)))
    assert names == explained


def test_every_attribute_beyond_the_conventions_is_explained():
    registered = {value for value in vars(messaging_attributes).values() if isinstance(value, str)}
    names = {name for keys in Vocabulary("semconv").keys.values() for name, _ in keys if name.startswith("messaging.")}
    names |= {v.SETTLE_REQUEUE, v.SETTLE_MULTIPLE, v.SETTLE_DELAY, f"{v.CAPTURED_HEADER}<name>"}
    (section,) = re.findall(
        r"^## Attributes beyond the conventions$(.*?)^## ",
        settings_page.PAGE.read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert names - registered == set(re.findall(r"`(messaging\.[a-z_.<>]+)`", section))


TRUST = (ROOT / "docs" / "trust.md").read_text()


def test_every_bound_is_that_of_the_code():
    listed = re.findall(r"^\|.* \| ([\d,]+) \|$", TRUST, flags=re.MULTILINE)
    baggage = [headers.BAGGAGE_MEMBERS, headers.BAGGAGE_MEMBER_LENGTH]
    bounds = [headers.LARGEST, *baggage, headers.PARENT_LENGTH, headers.STATE_MEMBERS, propagation.NAMES]
    bounds += [v.LONGEST, capturing.MOST, readers.DEATHS, NAMES, NAMES]
    assert [int(number.replace(",", "")) for number in listed] == bounds


def test_every_header_that_no_glob_captures_is_listed():
    (_, section) = TRUST.split("they are captured:")
    assert re.findall(r"`([^`]+)`", section) == [*capturing.SECRETS, *capturing.CONTEXTS]


THROUGH = """
import asyncio
async def through():
    async with lifespan(None):
        pass
asyncio.run(through())
"""


@pytest.mark.parametrize(("page", "call"), [("processes", "work()"), ("servers", THROUGH)])
def test_what_flushes_in_the_documents_does_no_harm_where_telemetry_is_off(page, call):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/switching-it-on/{page}.md").read_text(), re.DOTALL)
    assert "force_flush()" in code
    done = subprocess.run([sys.executable, "-c", f"{code}\n{call}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
