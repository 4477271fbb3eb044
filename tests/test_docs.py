"""The documents say what is there: numbers come from the records, links and names lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

import hooke

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_performance_page_is_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import page

    assert (ROOT / "docs" / "performance.md").read_text() == page.page()


def test_the_page_on_growth_is_what_its_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import growth_page
    import machine

    rows = machine.read(machine.RESULTS / "growth.jsonl")
    assert (ROOT / "docs" / "growth.md").read_text() == growth_page.growth_page(rows)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_public_names_in_the_pages_exist(path: Path) -> None:
    for name in set(re.findall(r"`hooke\.([A-Z]\w+)", path.read_text())):
        assert hasattr(hooke, name), f"{path.name} names hooke.{name}"
    for name in set(re.findall(r"`hooke\.nn\.(\w+)", path.read_text())):
        assert hasattr(hooke.nn, name), f"{path.name} names hooke.nn.{name}"


def test_every_public_name_is_in_the_reference() -> None:
    listed = set(re.findall(r"^::: hooke\.(\w+)", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE))
    assert set(hooke.__all__) <= listed


def test_every_public_name_of_the_shelves_is_in_the_reference() -> None:
    listed = set(re.findall(r"^::: hooke\.nn\.(\w+)", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE))
    constants = {"THEOREMS"}
    assert set(hooke.nn.__all__) - constants == listed


def test_the_map_in_contributing_names_every_file_of_the_top_level() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = {path.name for path in (ROOT / "hooke").glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / "hooke").glob("*/__init__.py")}
    assert {name for name in files | folders if f"`{name}`" not in text} == set()


def test_the_simulation_in_the_guide_prints_what_the_guide_says() -> None:
    """It looks every 0.25 s; another processor may round a loss to the other side of the goal."""
    section = (ROOT / "docs" / "guide.md").read_text().partition("## Simulate before you rent")[2]
    code, said = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)[:2]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    number = re.compile(r"\d+\.\d+")
    assert number.sub("", printed.getvalue()) == number.sub("", said)
    seconds = [[float(found) for found in number.findall(text)] for text in (printed.getvalue(), said)]
    assert seconds[0] == pytest.approx(seconds[1], abs=0.3)
