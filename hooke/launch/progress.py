"""What the workers of `hooke run` are doing, in numbers: one line a worker, from their rows and from the center."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hooke.launch.process import WorkerProcess
from hooke.record import Row, parse
from hooke.run import Run

if TYPE_CHECKING:
    from hooke.center import LocalCenter, Member

RATE_SECONDS = 10.0
"""Over how long examples/s is taken."""

QUIET_SECONDS = 10.0
"""After so long without a step, the worker's line says so."""


class Tail:
    """The rows that are added to one file from now on.

    Args:
        path: The file; it may appear later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def rows(self) -> list[Row]:
        """The rows since the last call; a line that is still being written waits for the next."""
        if not self._path.exists() or self._path.stat().st_size <= self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0] + b"\n"
        self._offset += len(whole) if len(whole) > 1 else 0
        rows = (parse(line.decode(errors="replace")) for line in whole.splitlines())
        return [row for row in rows if row is not None]


@dataclass
class Meter:
    """The numbers of one line: of one worker, or of all of them.

    Attributes:
        steps: Optimizer steps.
        loss: The newest training loss.
        rate: Examples a second.
        distance: From the center.
        waited: Seconds that exchanges have held up training.
        missed: Exchanges that did not happen.
        refused: Exchanges that the center refused.
        center: The newest numbers about the center, by name (`test_loss`, `accuracy`), each with its time.
    """

    steps: int = 0
    loss: float | None = None
    rate: float | None = None
    distance: float | None = None
    waited: float = 0.0
    missed: int = 0
    refused: int = 0
    center: dict[str, tuple[float, float]] = field(default_factory=dict)
    _examples: deque[tuple[float, float]] = field(default_factory=deque, repr=False)

    def read(self, rows: Sequence[Row]) -> None:
        """Take in new rows of the worker."""
        for row in rows:
            name, value = row["name"], row["value"]
            self.steps = row["step"]
            if row["worker"] == "center":
                self.center[name] = (row["t"], value)
            elif name == "loss":
                self.loss = value
            elif name == "center_distance":
                self.distance = value
            elif name == "wait_seconds":
                self.waited += value
            elif name == "missed":
                self.missed += int(value)
            elif name == "refused":
                self.refused += int(value)
            elif name == "examples":
                self._count(row["t"], value)

    def _count(self, seconds: float, examples: float) -> None:
        if self._examples and examples < self._examples[-1][1]:
            self._examples.clear()
        self._examples.append((seconds, examples))
        while len(self._examples) > 2 and self._examples[1][0] < seconds - RATE_SECONDS:
            self._examples.popleft()
        (first, before), (last, after) = self._examples[0], self._examples[-1]
        self.rate = (after - before) / (last - first) if last > first else None


@dataclass(frozen=True)
class Line:
    """One line to show: who, what it does, its numbers, and what else there is to say."""

    who: str
    state: str
    meter: Meter
    notes: str = ""

    def cells(self) -> list[str]:
        """One text a column."""
        meter = self.meter
        step = f"{meter.steps:,}" if meter.steps else "-"
        rate = "-" if meter.rate is None else f"{meter.rate:,.0f}"
        waited = f"{meter.waited:.1f} s" if meter.steps else "-"
        numbers = [step, _number(meter.loss), rate, _number(meter.distance), waited]
        return [self.who, self.state, *numbers, self.notes]


COLUMNS = ("", "", "step", "loss", "examples/s", "center distance", "waited", "")


def total(lines: Sequence[Line], seconds: float) -> Line:
    """The line below the workers': steps, waiting and the examples/s of who still trains summed, the rest averaged."""
    meters = [line.meter for line in lines]
    busy = [line.meter.rate for line in lines if line.state == "training"] or [meter.rate for meter in meters]
    rates = [rate for rate in busy if rate is not None]
    sums = Meter(
        steps=sum(meter.steps for meter in meters),
        loss=_mean([meter.loss for meter in meters]),
        rate=sum(rates) if rates else None,
        distance=_mean([meter.distance for meter in meters]),
        waited=sum(meter.waited for meter in meters),
    )
    timed = sorted((t, name, value) for meter in meters for name, (t, value) in meter.center.items())
    newest = {name: value for _, name, value in timed}
    notes = ", ".join(f"center's {name} {newest[name]:.4g}" for name in sorted(newest))
    return Line("all", clock(seconds), sums, notes)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> clock(3723)
        '1:02:03'
    """
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


class Progress:
    """Follows the workers of a run.

    Args:
        run: The run.
        workers: Its workers; the one whose first step is seen is marked as having begun.
        show: Takes the lines, the last one about all workers.
    """

    def __init__(self, run: Run, workers: Sequence[WorkerProcess], show: Callable[[Sequence[Line]], None]) -> None:
        self._run = run
        self._workers = workers
        self._show = show
        self._tails = [Tail(run.files.rows(worker.number)) for worker in workers]
        self._meters = [Meter() for _ in workers]
        self._members: dict[int, Member] = {}
        self._looked = 0.0

    def look(self, center: LocalCenter | None, every: float = 0.0) -> None:
        """Read what is new and show it, unless the last look was less than `every` seconds ago."""
        if time.monotonic() - self._looked < every:
            return
        self._looked = time.monotonic()
        members = {member.pid: member for member in center.members()} if center is not None else {}
        for worker in self._workers:
            self._follow(worker, members.get(worker.pid))
        lines = [self._line(worker) for worker in self._workers]
        self._show([*lines, total(lines, self._run.seconds)])

    def _follow(self, worker: WorkerProcess, member: Member | None) -> None:
        meter, rows = self._meters[worker.number], self._tails[worker.number].rows()
        meter.read(rows)
        if member is not None:
            self._members[worker.number] = member
            meter.steps = member.step or meter.steps
        if rows or (member is not None and member.step):
            worker.began = True
            worker.state = "training" if worker.state == "starting" else worker.state

    def _line(self, worker: WorkerProcess) -> Line:
        member, notes = self._members.get(worker.number), []
        counted = member if member is not None else self._meters[worker.number]  # a center elsewhere is not asked
        if worker.restarts:
            notes.append(f"restarts {worker.restarts}")
        if counted.refused:
            notes.append(f"refused {counted.refused}")
        if counted.missed:
            notes.append(f"missed {counted.missed}")
        if member is not None and worker.state == "training" and member.heartbeat_age > QUIET_SECONDS:
            notes.append(f"no step for {member.heartbeat_age:.0f} s")
        return Line(f"worker {worker.number}", worker.state, self._meters[worker.number], ", ".join(notes))
