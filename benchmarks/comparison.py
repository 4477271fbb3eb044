"""Recorded runs in words and cells of tables: what the pages of the comparisons share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from search import Search

from hooke.claim import Estimate, Row, Table, mean_interval

INTERVALS = (
    "\nIn brackets: 95 % intervals over seeds (Student's t). With so few seeds they are wide. A rate at the edge was "
    "the smallest or largest that was tried.\n"
)


def says(sentence: str, holds: bool) -> str:
    """A sentence that the record must bear out.

    Raises:
        ValueError: It does not.
    """
    if not holds:
        raise ValueError(f"which_method: the record must bear out every sentence. Got one it does not: {sentence}")
    return sentence


def last(rows: Sequence[Row], name: str) -> list[float]:
    """A curve's last value, seed by seed."""
    return [row["result"][name][-1] for row in rows]


def by_seed(rows: Sequence[Row], name: str) -> dict[int, float]:
    """A curve's last value of each seed."""
    return {row["settings"]["seed"]: row["result"][name][-1] for row in rows}


def minus(rows: Sequence[Row], others: Sequence[Row], name: str) -> Estimate:
    """Differences between runs of the same seed at their ends."""
    mine, theirs = by_seed(rows, name), by_seed(others, name)
    return mean_interval([mine[seed] - theirs[seed] for seed in mine if seed in theirs])


def ahead(rows: Sequence[Row], others: Sequence[Row], name: str, better: int) -> bool:
    """Whether each seed ends better than the same seed of the others.

    Args:
        rows: Runs, one a seed.
        others: Those to beat, of the same seeds.
        name: The curve.
        better: 1 where more is better, -1 where less is.
    """
    mine, theirs = by_seed(rows, name), by_seed(others, name)
    return mine.keys() == theirs.keys() and all(better * (mine[seed] - theirs[seed]) > 0 for seed in mine)


def apart(estimate: Estimate) -> bool:
    """Whether the interval leaves out 0."""
    return estimate.interval is not None and not estimate.low <= 0 <= estimate.high


def number(estimate: Estimate, digits: int, scale: float = 1.0, sign: str = "") -> str:
    """A mean with its interval, or with the word that there is none."""
    mean, low, high = (f"{scale * each:{sign}.{digits}f}" for each in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]" if estimate.interval else f"{mean} (one seed)"


def own_setting(row: Row) -> str:
    """The setting that only this method has."""
    setting = row["settings"]["setting"]
    if row["settings"]["method"] == "DiLoCo":
        return f"outer rate {setting[0]:g}, momentum {setting[1]:g}"
    return f"beta {setting[0]:g}" if setting else ""


def rate(row: Row, search: Search) -> str:
    """The learning rate, and whether one beyond the grid might be better."""
    lr = row["settings"]["lr"]
    return f"{lr:g}{' (edge)' * (lr in (min(search.rates), max(search.rates)))}"


def period_of(row: Row) -> str:
    """The communication period; DDP has none."""
    return "" if row["settings"]["method"] == "DDP" else str(row["settings"]["period"])


def megabytes(rows: Sequence[Row]) -> float:
    """What a worker has sent at the end, in MB."""
    return statistics.mean(last(rows, "bytes")) / 1e6


def newest(record: Table) -> dict[str, Any]:
    """Where the last trial ran, and from which commit."""
    return max((row["made"] for row in record), key=lambda made: made["at"])
