"""Trials of a paper: run once, in parallel, each written down as soon as it is done, so that a kill loses little."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from hooke.claim import Row, Table, identity
from hooke.launch.evidence import device, version
from papers.backend import count, outcomes
from papers.error import PapersError
from papers.progress import StudyProgress, say

Cells = Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]

Function = Callable[..., Mapping[str, Any]]
"""A trial: a function at the top level of its module, from settings to a result of plain numbers, words and lists."""


class Trials:
    """What a paper's `run` gets as `record`: runs the trials that the file does not hold yet, and adds them to it.

    Args:
        path: The JSONL file, which is made where it is missing.
        jobs: How many trials run at once; -1 is one a core.
        backend: A joblib backend: `"loky"` (`None`; processes), `"threading"`, `"dask"`, `"ray"`, or any that was
            registered.
        minutes: No trial starts later than this; those that run finish. `None`: no bound.
        only: Names of the studies to run; `None`: all.
        smoke: Whether these are trials of a smoke run; a file holds one kind.
        console: Where to show progress.

    Raises:
        PapersError: The file holds trials of the other kind.

    Attributes:
        left: Study -> trials that were not started, for want of time.
        failed: How many trials raised an error.
        studies: The names of all studies that `run` asked for.
    """

    def __init__(
        self,
        path: str | Path,
        jobs: int = 1,
        backend: str | None = None,
        minutes: float | None = None,
        only: Sequence[str] | None = None,
        *,
        smoke: bool = False,
        console: Console | None = None,
    ) -> None:
        self.path, self.jobs, self.backend, self.smoke = Path(path), jobs, backend, smoke
        self.only = None if only is None else set(only)
        self.console = console or Console(stderr=True)
        self.left: dict[str, int] = {}
        self.failed = 0
        self.studies: list[str] = []
        self._deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        _check_kind(self.path, self.table, smoke)

    @property
    def table(self) -> Table:
        """Everything that the file holds now."""
        return recorded(self.path)

    def study(self, name: str, function: Function, cells: Cells) -> Table:
        """Run `function(**cell)` for every cell that the file does not hold yet, and add each result to the file.

        A trial that raises an error is shown and not written; the others go on.

        Args:
            name: The study; with a cell's settings it tells a trial from all others.
            function: A function at the top level of its module, so that other processes find it.
            cells: Settings of each trial, in the order in which they start; or a function that returns them, called
                only if this study is to be run. It may raise `FileNotFoundError` where data are missing.

        Returns:
            Table: The finished trials of these cells, earlier ones included; of a study that is not to be run, all that
                the file holds.

        Raises:
            ValueError: A setting is nothing that JSON has, or is called `study`.
        """
        self.studies.append(name)
        if self.only is not None and name not in self.only:
            return self.table.where(study=name)
        try:
            wanted = {_identity(name, cell): dict(cell) for cell in (cells() if callable(cells) else cells)}
        except FileNotFoundError as error:
            self._fail(name, {}, str(error))
            return Table()
        done = self._finished(name, wanted)
        missing = [cell for key, cell in wanted.items() if key not in done]
        self._run(name, function, missing, [row["made"].get("seconds", 0.0) for row in done.values()])
        done = self._finished(name, wanted)
        return Table([done[key] for key in wanted if key in done], f"study={name!r}")

    def _finished(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Row]:
        rows = {identity(name, row["settings"]): row for row in self.table.where(study=name)}
        return {key: row for key, row in rows.items() if key in wanted}

    def _run(self, name: str, function: Function, missing: list[dict[str, Any]], earlier: list[float]) -> None:
        """Run the trials that are missing; `earlier` are the seconds of those that are not."""
        calls = self._while_time_is_left(function, missing)
        ended = 0
        with StudyProgress(name, len(missing) + len(earlier), earlier, count(self.jobs), self.console) as progress:
            try:
                for outcome in outcomes(attempt, calls, self.jobs, self.backend):
                    ended += 1
                    if "error" in outcome:
                        self._fail(name, outcome["settings"], outcome["error"])
                    else:
                        self._keep(name, outcome)
                        progress.advance(outcome["made"]["seconds"])
            except BrokenExecutor as error:
                self._fail(name, {"jobs": self.jobs}, f"A worker process was killed (out of memory?): {error}")
        if ended < len(missing):
            self.left[name] = len(missing) - ended

    def _while_time_is_left(self, function: Function, cells: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
        for cell in cells:
            if time.monotonic() >= self._deadline:
                return
            yield function, cell, self.jobs != 1

    def _keep(self, name: str, outcome: dict[str, Any]) -> None:
        """Add one row to the file and wait until it is on the disk."""
        made = {"commit": commit(), **outcome["made"], **({"smoke": True} if self.smoke else {})}
        row = {"study": name, "settings": outcome["settings"], "result": outcome["result"], "made": made}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _end_cut_line(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _fail(self, name: str, settings: Mapping[str, Any], error: str) -> None:
        self.failed += 1
        said = " ".join(f"{key}={value!r}" for key, value in settings.items())
        say(self.console, f"{name}: a trial failed: {said}", "red")
        say(self.console, error.rstrip())


def recorded(path: Path) -> Table:
    """The trials in a record; none where there is no file.

    Raises:
        PapersError: A line is no trial.
    """
    try:
        return Table.read(path) if path.exists() else Table()
    except ValueError as error:
        raise PapersError(str(error)) from error


def attempt(function: Function, settings: dict[str, Any], beside_others: bool) -> dict[str, Any]:
    """Run one trial, wherever this process is: its result with the evidence, or the error as text."""
    if beside_others:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch if it is still to be loaded
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
    started = time.perf_counter()
    try:
        result = function(**settings)
        _check_result(result, settings)
        result = _writable(result)
        json.dumps(result)
    except FileNotFoundError as error:  # a sentence of `papers.data` that needs no traceback
        return {"settings": settings, "error": str(error)}
    except Exception as error:
        return {"settings": settings, "error": "".join(traceback.format_exception(error))}
    made = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - started, 3)}
    return {"settings": settings, "result": result, "made": made | machine()}


@cache
def machine() -> dict[str, Any]:
    """Where this process computes, and with which versions."""
    here = device()
    about = {"cpu": here["processor"], "cores": here["cores"], "python": platform.python_version()}
    about |= {name: version(name) for name in ("torch", "hooke")}
    return about | ({"accelerators": here["accelerators"]} if here["accelerators"] else {})


@cache
def commit() -> str:
    """The commit of the code that runs, with `+changes` where the library or the papers differ from it."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        except OSError:
            return ""
        return done.stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "../hooke", "*.py") else "")


def _identity(name: str, cell: Mapping[str, Any]) -> str:
    if "study" in cell:
        raise ValueError(f"Trials.study: no setting may be called study. Got {dict(cell)!r}. Give it another name.")
    try:
        return identity(name, cell)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Trials.study: settings must be finite numbers, words, true, false, none, or lists of them. "
            f"Got {dict(cell)!r} ({error}). Convert them, e.g. with int(...) or float(...)."
        ) from error


def _check_result(result: Any, settings: Mapping[str, Any]) -> None:
    if not isinstance(result, Mapping):
        raise TypeError(
            f"Trials.study: a trial must return a dict. Got {type(result).__name__}. Give each number a name."
        )
    both = sorted({"study", *settings} & result.keys())
    if both:
        raise ValueError(
            f"Trials.study: a name must be a setting or a result, not both. Got {both[0]!r} in both. Rename one."
        )


def _writable(value: Any) -> Any:
    """As JSON can hold it: arrays and tuples as lists; not a number and infinity as words."""
    if isinstance(value, Mapping):
        return {str(name): _writable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(inner) for inner in value]
    if hasattr(value, "tolist"):  # numbers and arrays of numpy, tensors
        return _writable(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _check_kind(path: Path, rows: Table, smoke: bool) -> None:
    kinds = {bool(row["made"].get("smoke")) for row in rows}
    if (not smoke) in kinds:
        held, asked = ("a full run", "a smoke run")[:: 1 if smoke else -1]
        raise PapersError(
            f"a record must hold one kind of run. Got {held} in {path} and {asked} to add. Use another --out."
        )


def _end_cut_line(path: Path) -> None:
    """End a last line that a killed run left without its newline, so that the next row starts on its own."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
