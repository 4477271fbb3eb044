"""What a report is computed from: rows of a run as series and summaries. No drawing, no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hooke.record import Row
from hooke.report.words import METRICS, Who, called, spell_command

Groups = Mapping[tuple[Who, str], Sequence[Row]]


@dataclass(frozen=True)
class Series:
    """One curve, float arrays of one length: `values[i]` at three places on the way there.

    Args:
        seconds: Since the run started.
        steps: Optimizer steps that the worker which wrote the row had taken.
        examples: Training examples that all workers together had used by then.
        values: May be nan or infinite.
    """

    seconds: np.ndarray
    steps: np.ndarray
    examples: np.ndarray
    values: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        """The finite values, in order."""
        return self.values[np.isfinite(self.values)]

    @property
    def breaks(self) -> np.ndarray:
        """Where each stretch of values that are not finite begins, as indices."""
        broken = ~np.isfinite(self.values)
        return np.flatnonzero(broken & ~np.concatenate([[False], broken[:-1]]))


@dataclass(frozen=True)
class WorkerSummary:
    """What one worker did, in numbers.

    Args:
        worker: Its number.
        steps: Optimizer steps taken, over all restarts.
        examples: Training examples used.
        examples_per_second: Between its first and last row of examples; `None` with fewer than two.
        last_loss: Its last training loss, which may be nan; `None` where it wrote none.
        exchanges: How many it timed.
        seconds: From its first row to its last.
        waiting: Seconds that exchanges held up its training loop.
        background: Seconds of exchanges that ran beside its training.
        down: Seconds between its last row before a crash and the row that says it was started again.
        bytes_sent: Toward the center.
        bytes_received: From the center.
        missed: Exchanges that did not happen.
        refused: Exchanges that the center refused.
        restarts: How often its process was started again.
    """

    worker: Who
    steps: int
    examples: int
    examples_per_second: float | None
    last_loss: float | None
    exchanges: int
    seconds: float
    waiting: float
    background: float
    down: float
    bytes_sent: float
    bytes_received: float
    missed: int
    refused: int
    restarts: int

    @property
    def computing(self) -> float:
        """Seconds that it neither waited nor was down."""
        return max(self.seconds - self.waiting - self.down, 0.0)

    @property
    def waiting_share(self) -> float:
        """Share of its seconds that it waited, 0 to 1."""
        return self.waiting / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Alert:
    """One thing that went wrong, in a sentence that names the worker; `worker` is `None` where it is the run's."""

    worker: Who | None
    text: str
    serious: bool = True


@dataclass(frozen=True)
class RunData:
    """One run as numbers, ready to draw.

    Args:
        name: Its name in `run.json`, or its folder's.
        about: Everything in `run.json`.
        workers: One summary a worker, in order.
        series: Row name -> who (a worker's number or `"center"`) -> its curve.
        alerts: What went wrong.
    """

    name: str
    about: dict[str, Any]
    workers: tuple[WorkerSummary, ...]
    series: dict[str, dict[Who, Series]]
    alerts: tuple[Alert, ...]

    @property
    def seconds(self) -> float:
        """Seconds from the start of the run to its last row."""
        return max(float(series.seconds[-1]) for curves in self.series.values() for series in curves.values())

    @property
    def steps(self) -> int:
        """Optimizer steps of the worker that took most."""
        return max((worker.steps for worker in self.workers), default=0)

    @property
    def examples(self) -> int:
        """Training examples that all workers used."""
        return sum(worker.examples for worker in self.workers)

    def lead(self, name: str) -> tuple[str, Series] | None:
        """Whose curve stands for the run: the center's, the only worker's, or the average of the workers."""
        curves = self.series.get(name, {})
        if "center" in curves:
            return "the center", curves["center"]
        if len(curves) == 1:
            return next((called(who), series) for who, series in curves.items())
        return ("the workers on average", average(list(curves.values()))) if curves else None

    def end(self, name: str) -> float | None:
        """The last value of whoever stands for the run; of several workers, the mean of those that end finite."""
        curves = self.series.get(name, {})
        if "center" in curves or len(curves) == 1:
            return float(curves.get("center", next(iter(curves.values()))).values[-1])
        ends = [series.values[-1] for series in curves.values() if np.isfinite(series.values[-1])]
        return float(np.mean(ends)) if ends else None

    def best(self, name: str) -> float | None:
        """The best finite value of whoever stands for the run; the largest, where no end is the good one."""
        lead = self.lead(name)
        return float(METRICS[name].best(lead[1].finite)) if lead and len(lead[1].finite) else None


def counted(counts: Sequence[float]) -> np.ndarray:
    """A count that began anew, or fell back to a checkpoint, when its process was started again: made to go on.

    What the first count after a fall adds is not known; it is taken to be the median of what the others add, or all of
    it where it is less.

    Example:
        >>> counted([64, 128, 192, 64, 128]).tolist()
        [64.0, 128.0, 192.0, 256.0, 320.0]
    """
    known = _finite(np.asarray(counts, dtype=float))
    added = np.diff(known, prepend=0.0)
    typical = np.median(added[added > 0]) if (added > 0).any() else 0.0
    return np.cumsum(np.where(added < 0, np.minimum(known, typical), added))


def mend(rows: Sequence[Row]) -> Sequence[Row]:
    """Add `taken`, the steps over all restarts, to the rows of one file; mend its counts of examples likewise."""
    trained = [row for row in rows if row["name"] != "restarted"]  # that row precedes the return to a checkpoint
    for row, taken in zip(trained, counted([row["step"] for row in trained]), strict=True):
        row["taken"] = int(taken)
    examples = [row for row in rows if row["name"] == "examples"]
    for row, count in zip(examples, counted([row["value"] for row in examples]), strict=True):
        row["value"] = float(count)
    taken = 0
    for row in rows:
        taken = row.setdefault("taken", taken)
    return rows


def group(rows: Iterable[Row]) -> dict[tuple[Who, str], list[Row]]:
    """Rows by whom they are about and by name, each list in the order of time."""
    groups: dict[tuple[Who, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["worker"], row["name"]), []).append(row)
    return {key: sorted(group, key=lambda row: row["t"]) for key, group in groups.items()}


def column(groups: Groups, who: Who, name: str, field: str = "value") -> np.ndarray:
    """One field of the rows of one name, as float64; empty where there are none."""
    return np.array([row[field] for row in groups.get((who, name), [])], dtype=float)


def _finite(column: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(column), column, 0.0)


def examples_by(groups: Groups, seconds: np.ndarray) -> np.ndarray:
    """Training examples that all workers together had used by each of `seconds`: the sum of their latest counts."""
    total = np.zeros(len(seconds))
    for who, name in groups:
        if name == "examples" and who != "center":
            counts = np.concatenate([[0.0], column(groups, who, name)])
            total += counts[np.searchsorted(column(groups, who, name, "t"), seconds, side="right")]
    return total


def summarize(groups: Groups, who: Who) -> WorkerSummary:
    """What worker `who` did, from the rows of its run."""
    own = [row for (about, _), rows in groups.items() if about == who for row in rows]
    times = np.sort([row["t"] for row in own])
    examples, at = column(groups, who, "examples"), column(groups, who, "examples", "t")
    losses, restarted = column(groups, who, "loss"), column(groups, who, "restarted", "t")
    before = [times[times < t][-1] if (times < t).any() else t for t in restarted]
    restarts = [0, *_finite(column(groups, who, "restarted"))]  # counts anew when the run is resumed
    total = {name: float(_finite(column(groups, who, name)).sum()) for name in _SUMMED}
    return WorkerSummary(
        worker=who,
        steps=max((row["taken"] for row in own), default=0),
        examples=int(examples.max(initial=0)),
        examples_per_second=float((examples[-1] - examples[0]) / np.ptp(at)) if len(at) > 1 and np.ptp(at) else None,
        last_loss=float(losses[-1]) if len(losses) else None,
        exchanges=len(groups.get((who, "exchange_seconds"), [])),
        seconds=float(np.ptp(times)) if len(times) else 0.0,
        waiting=total["wait_seconds"],
        background=max(total["exchange_seconds"] - total["wait_seconds"], 0.0),
        down=float(sum(restarted - before)),
        bytes_sent=total["bytes_sent"],
        bytes_received=total["bytes_received"],
        missed=int(total["missed"]),
        refused=int(total["refused"]),
        restarts=int(sum(n - last if n > last else n for last, n in pairwise(restarts))),
    )


_SUMMED = ("exchange_seconds", "wait_seconds", "bytes_sent", "bytes_received", "missed", "refused")


def average(curves: Sequence[Series], bins: int = 200) -> Series:
    """Curves of several workers as one: the mean of the finite values in up to `bins` equal spans of seconds."""
    names = ("seconds", "steps", "examples", "values")
    fields = [np.concatenate([getattr(curve, name) for curve in curves]) for name in names]
    seconds, *others = (field[np.isfinite(fields[-1])] for field in fields)
    if not len(seconds):
        return Series(seconds, *others)
    bins = max(min(bins, *(len(curve.values) for curve in curves)), 1)
    index = np.minimum(((seconds - seconds.min()) / (np.ptp(seconds) or 1.0) * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    means = [np.bincount(index, field, bins)[counts > 0] / counts[counts > 0] for field in (seconds, *others)]
    return Series(means[0], np.maximum.accumulate(means[1]), np.maximum.accumulate(means[2]), means[3])


def differences(runs: Sequence[RunData]) -> list[dict[str, str]]:
    """For each run, what its `run.json` says and not all of the others': settings, seeds, versions, device."""
    flat = [dict(_flatten(run.about)) for run in runs]
    keys = [
        key
        for key in dict.fromkeys(key for about in flat for key in about)
        if len({about.get(key) for about in flat}) > 1
    ]
    keys = [key for key in keys if not _SAYS_NOTHING & {key, key.partition(".")[0]}]
    keys.sort(key=lambda key: not key.startswith("settings."))
    return [{key.removeprefix("settings."): about[key] for key in keys if key in about} for about in flat]


def _flatten(about: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(about, dict):
        yield key, spell_command(about)
        return
    for name, inner in about.items():
        yield from _flatten(inner, f"{key}.{name}" if key else str(name))


_SAYS_NOTHING = {"name", "command", "workers", "settings.workers", "started_at", "finished_at", "elapsed_seconds"}
_SAYS_NOTHING |= {"exit_code", "workers_state", "restarts", "resumed"}
