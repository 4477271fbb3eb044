"""Runs papers, judges them from their records, and writes their pages."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from hooke.claim import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED
from hooke.report import JudgedPaper, write_index, write_pictures, write_verdicts
from papers.error import PapersError
from papers.paper import HERE, Paper, judge, keys, load
from papers.progress import say
from papers.table import write_table, write_tables
from papers.trial import Trials

SMOKE_OUT = Path("runs/papers-smoke")
STYLES = {REPRODUCED: "green", NOT_REPRODUCED: "red", NOT_JUDGED: "yellow"}


@dataclass(frozen=True)
class Request:
    """What was asked for; see `python -m papers --help`.

    Args:
        keys: Papers; none means all of them.
        smoke: Run the small settings.
        out: Folder of records and pages; `None`: the places in the repository.
        jobs: Trials at once.
        backend: A joblib backend.
        minutes: No trial starts later than this.
        only: Studies to run; none means all.
        judge: Run nothing; judge what is recorded.
        folder: Where the papers are.

    Raises:
        PapersError: A number outside its range, or an option that does nothing beside `judge`.
    """

    keys: tuple[str, ...] = ()
    smoke: bool = False
    out: Path | None = None
    jobs: int = 1
    backend: str | None = None
    minutes: float | None = None
    only: tuple[str, ...] = ()
    judge: bool = False
    folder: Path = HERE

    def __post_init__(self) -> None:
        if self.jobs < 1 and self.jobs != -1:
            raise PapersError(f"--jobs must be at least 1, or -1 for one a core. Got {self.jobs}. Use 2.")
        if self.minutes is not None and not self.minutes > 0:
            raise PapersError(f"--minutes must be above 0. Got {self.minutes:g}. Use --judge to run nothing.")
        idle = [name for name in ("backend", "minutes", "only") if getattr(self, name)]
        if self.judge and (idle or self.jobs != 1):
            raise PapersError(f"--judge runs no trial. Got --{[*idle, 'jobs'][0]} beside it. Leave out one of them.")

    @property
    def at_home(self) -> bool:
        """Whether records and pages go to their places in the repository."""
        return self.out is None and not self.smoke

    @property
    def records(self) -> Path:
        """The folder of the records."""
        return self.folder / "results" if self.at_home else self.out or SMOKE_OUT

    @property
    def pages(self) -> Path:
        """The folder of the pages."""
        return self.folder.parent / "docs" / "papers" if self.at_home else self.out or SMOKE_OUT

    def record(self, key: str) -> Path:
        """The record of one paper."""
        return self.records / f"{key}.jsonl"

    @property
    def command(self) -> str:
        """The command that asks for this again."""
        words = ["python", "-m", "papers", *self.keys, *["--smoke"] * self.smoke, *["--judge"] * self.judge]
        words += [] if self.jobs == 1 else ["--jobs", str(self.jobs)]
        for name in ("out", "backend", "minutes"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", f"{value:g}" if name == "minutes" else str(value)]
        return shlex.join([*words, *(word for name in self.only for word in ("--only", name))])


def carry_out(request: Request, said: Console, shown: Console) -> int:
    """Run what is missing, judge, write the pages; the exit code: 0, 1 where a trial failed, 130 after Ctrl-C.

    Args:
        request: What was asked for.
        said: Where the outcome goes.
        shown: Where progress and errors go.

    Raises:
        PapersError: It cannot be done; the message says what to change.
    """
    asked = list(dict.fromkeys(request.keys)) or keys(request.folder)
    papers = {key: load(key, request.folder) for key in [*asked, *keys(request.folder)]}
    if request.judge:
        _check_records(request)
        failed = 0
    else:
        try:
            failed = _run(request, asked, papers, shown)
        except KeyboardInterrupt:
            say(shown, f"Stopped. Every finished trial is in {request.records}. Go on: {request.command}")
            return 130
    judged = {key: judge(key, papers[key], request.record(key)) for key in sorted(papers)}
    pages = _write(request, asked, papers, judged)
    for key in asked:
        if judged[key].table:
            said.print(_verdicts(judged[key]))
        say(said, str(pages[key]) if key in pages else f"{key}: no record yet")
    return 1 if failed else 0


def _check_records(request: Request) -> None:
    for key in request.keys:
        if not request.record(key).exists():
            raise PapersError(
                f"--judge needs a record. Got none at {request.record(key)}. Run it without --judge first."
            )


def _run(request: Request, asked: Sequence[str], papers: Mapping[str, Paper], shown: Console) -> int:
    """Run the papers one after another; how many trials failed."""
    settings = {key: papers[key].SMOKE if request.smoke else papers[key].FULL for key in asked}
    _check_studies(request, papers, settings)
    ends = None if request.minutes is None else time.monotonic() + 60 * request.minutes
    failed, left = 0, {}
    for key in asked:
        say(shown, f"{key}: {papers[key].SOURCE.title}")
        trials = Trials(
            request.record(key), request.jobs, request.backend,
            None if ends is None else (ends - time.monotonic()) / 60,
            request.only or None, smoke=request.smoke, console=shown,
        )  # fmt: skip
        papers[key].run(settings[key], trials)
        failed += trials.failed
        left |= {f"{key} {study}": n for study, n in trials.left.items()}
    if left:
        said = ", ".join(f"{n} of {study}" for study, n in left.items())
        say(shown, f"Trials left: {said}. Go on: {request.command}")
    if failed:
        say(shown, f"Trials that failed: {failed}. They run again with: {request.command}", style="red")
    return failed


def _check_studies(request: Request, papers: Mapping[str, Paper], settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a word after --only that is no study, before hours are spent on the others."""
    studies: list[str] = []
    for key, wanted in settings.items() if request.only else ():
        planned = Trials(request.record(key), only=(), smoke=request.smoke)
        papers[key].run(wanted, planned)
        studies += planned.studies
    unknown = [name for name in request.only if name not in studies]
    if unknown:
        raise PapersError(
            f"--only must name a study. Got {unknown[0]!r}. There is: {', '.join(dict.fromkeys(studies))}."
        )


def _write(
    request: Request, asked: Sequence[str], papers: Mapping[str, Paper], judged: dict[str, JudgedPaper]
) -> dict[str, Path]:
    """The pages of the papers that have a record, the index, the README's table and those of the documents."""
    try:
        pages = {key: write_verdicts(judged[key], request.pages / f"{key}.html") for key in asked if judged[key].table}
        write_index(list(judged.values()), request.pages / "index.html")
        for key in pages if request.at_home else ():
            write_pictures(judged[key], request.pages)
    except ImportError as error:
        raise PapersError(str(error)) from error
    if request.at_home:
        write_table(list(judged.values()), request.folder.parent / "README.md")
        for key in pages:
            write_tables(
                key, getattr(papers[key], "TABLES", {}), judged[key].table, sorted(request.pages.parent.glob("*.md"))
            )
    return pages


def _verdicts(paper: JudgedPaper) -> Grid:
    grid = Grid(title=f"{paper.key}{' (smoke run)' if paper.smoke else ''}", title_justify="left")
    for name in ("claim", "the paper", "ours", "verdict"):
        grid.add_column(name)
    for claim, verdict in paper.claims:
        word = Text(verdict.word, style=STYLES[verdict.word])
        grid.add_row(Text(claim.sentence), Text(verdict.paper), Text(verdict.ours), word)
    return grid
