"""The page on which a paper is judged, and the index of all such pages. No torch: records are enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hooke.claim import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, WORDS, Claim, Missing, Picture, Source, Table, Verdict
from hooke.report.chart import alone, paint
from hooke.report.template import need_extra, render

KINDS = {REPRODUCED: "good", NOT_REPRODUCED: "bad", NOT_JUDGED: "mild"}
"""How each verdict is colored."""


@dataclass(frozen=True)
class JudgedPaper:
    """A paper, its claims with their verdicts, and the trials that they rest on.

    Args:
        key: Its citation key; its page is `KEY.html`.
        source: What it is.
        claims: Every claim with its verdict, in the order of declaration.
        table: The recorded trials; empty where there is no record.
        departures: How our experiments differ from the paper's; numbered by their order.
        pictures: What to draw of the table.
        smoke: Whether the trials come from a smoke run.
        command: What made the record.
    """

    key: str
    source: Source
    claims: tuple[tuple[Claim, Verdict], ...]
    table: Table = field(default_factory=Table)
    departures: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    smoke: bool = False
    command: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have each word."""
        given = Counter(verdict.word for _, verdict in self.claims)
        return {word: given[word] for word in WORDS}


def write_verdicts(paper: JudgedPaper, out: str | Path) -> Path:
    """Write the HTML page of one paper: verdicts, pictures, departures, evidence.

    Args:
        paper: What to show.
        out: The page.

    Returns:
        Path: The page. It needs no other file and no network, and is the same to the byte for the same record.

    Raises:
        ImportError: The extra `hooke[report]` is not installed.
    """
    need_extra("write_verdicts")
    return _write(
        out, "verdicts.html.j2", title=paper.source.title, paper=paper, pictures=list(_pictures(paper)),
        evidence=evidence(paper.table), filters={"kind": KINDS.__getitem__, "interval": spell_interval},
    )  # fmt: skip


def write_index(papers: Sequence[JudgedPaper], out: str | Path) -> Path:
    """Write the HTML page that lists all papers with the counts of their verdicts.

    Args:
        papers: Every paper; one without trials is listed as such.
        out: The page; it links to `KEY.html` beside it.

    Raises:
        ImportError: The extra `hooke[report]` is not installed.
    """
    need_extra("write_index")
    return _write(out, "papers.html.j2", title="Papers that judge themselves", papers=papers, kinds=KINDS)


def write_pictures(paper: JudgedPaper, folder: str | Path) -> list[Path]:
    """Write each picture of a paper as an SVG file, for pages that show some of them.

    Args:
        paper: Whose pictures; one that its record cannot fill is left out.
        folder: Where `KEY-NAME.svg` go; NAME is what the function that draws is called.

    Returns:
        list[Path]: The files.
    """
    need_extra("write_pictures")
    written = []
    for picture, svg, _ in _pictures(paper):
        if svg:
            written.append(Path(folder) / f"{paper.key}-{picture.draw.__name__}.svg")
            written[-1].write_text(alone(svg), encoding="utf-8")
    return written


def _write(out: str | Path, template: str, **values: Any) -> Path:
    page = Path(out)
    html = render(template, **values)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    return page


def _pictures(paper: JudgedPaper) -> Iterator[tuple[Picture, str, str]]:
    """Each picture, its SVG, and why it is left out if it is."""
    for picture in paper.pictures:
        try:
            yield picture, paint(lambda figure, draw=picture.draw: draw(paper.table, figure), picture.title), ""
        except Missing as error:
            yield picture, "", f"Left out: {error}"


def spell_interval(interval: tuple[float, float] | None) -> str:
    """The interval beside our number: `0.12 to 0.34`."""
    return f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""


def evidence(table: Table) -> dict[str, Any]:
    """Where trials come from: seconds and trials of each study; commits, versions and devices with their trials."""
    made = [row.get("made", {}) for row in table]
    studies: dict[str, tuple[int, float]] = {}
    for row, origin in zip(table, made, strict=True):
        trials, seconds = studies.get(row["study"], (0, 0.0))
        studies[row["study"]] = (trials + 1, seconds + origin.get("seconds", 0.0))
    versions = [" ".join(f"{name} {one[name]}" for name in _VERSIONS if one.get(name)) for one in made]
    commits = [
        str(one.get("commit", ""))[:10] + " with changes" * str(one.get("commit")).endswith("+changes") for one in made
    ]
    days = sorted(str(one["at"])[:10] for one in made if one.get("at"))
    return {
        "studies": studies,
        "settings": {study: spell_settings(table.where(study=study)) for study in studies},
        "seconds": sum(seconds for _, seconds in studies.values()),
        "commits": _counted(commits),
        "devices": _counted([_device(one) for one in made]),
        "versions": _counted(versions),
        "days": list(dict.fromkeys(days[:1] + days[-1:])),
    }


def spell_settings(table: Table) -> str:
    """What the trials of a study really ran with: every setting, and its values or how many it had."""
    values: dict[str, dict[str, None]] = {}
    for row in table:
        for name, value in row["settings"].items():
            values.setdefault(name, {})[str(value)] = None
    few = {name: ", ".join(of) if len(of) <= 8 else f"{len(of)} values" for name, of in values.items()}
    return "; ".join(f"{name} {of}" for name, of in few.items())


_VERSIONS = ("python", "torch", "hooke")


def _device(made: Mapping[str, Any]) -> str:
    cores = f", {made['cores']} cores" if made.get("cores") else ""
    return ", ".join([f"{made.get('cpu', '')}{cores}", *made.get("accelerators", ())])


def _counted(values: Sequence[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first; empty ones are left out."""
    return dict(Counter(value for value in values if value).most_common())
