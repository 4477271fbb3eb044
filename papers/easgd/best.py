"""What each method reached at its best learning rate. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from hooke.claim import Missing, Table

AVERAGES = {"ASGD": "SGD", "ADOWNPOUR": "DOWNPOUR"}
"""Methods whose average was kept beside another method's center, in the same run."""

AVERAGED_ALONE = {"MVASGD": "SGD", "MVADOWNPOUR": "DOWNPOUR"}
"""Methods whose average had runs of its own, at the rate that was best for the other method's center."""

SEARCHES = ("periods", "growth")
MORE = "more workers"
"""The study whose rates come from the study of the number of workers."""

MOST = 0.85
"""A test error above which nothing has been learned; guessing has 0.9."""


def lowest(errors: Sequence[float]) -> float:
    """The least of them; what is no number counts as infinite."""
    return min((error for error in errors if not math.isnan(error)), default=math.inf)


def best_rate(rows: Table) -> float:
    """The rate with the lowest test error at any recorded moment, as the paper reports it.

    Raises:
        Missing: There is no row.
    """
    if not len(rows):
        raise Missing("No trial from which a learning rate could be chosen is in the record.")
    return min(rows, key=lambda row: lowest(row["result"]["error"]))["settings"]["lr"]


@dataclass(frozen=True)
class Best:
    """The runs of one method in one setting at its best rate, in the order of their seeds.

    Attributes:
        method: Its name.
        workers: p.
        period: tau.
        lr: The rate.
        seconds: Virtual seconds of the recorded moments.
        seeds: One a curve, increasing.
        curves: Test error at those moments, one curve a seed.
    """

    method: str
    workers: int
    period: int
    lr: float
    seconds: list[float]
    seeds: list[int]
    curves: list[list[float]]

    @property
    def errors(self) -> list[float]:
        """The best test error of each seed."""
        return [lowest(curve) for curve in self.curves]

    @property
    def error(self) -> float:
        """The mean of the seeds' best test errors."""
        return fmean(self.errors)

    def seconds_to(self, level: float) -> list[float]:
        """When each seed's test error first was `level` or less, between two moments on a line; inf if never."""
        return [seconds_to(self.seconds, curve, level) for curve in self.curves]


def paired(ours: Best, theirs: Best, value: Callable[[Best], Sequence[float]]) -> list[tuple[float, float]]:
    """A value of both, for every seed that both have run.

    Raises:
        Missing: They have no seed in common.
    """
    mine, other = (dict(zip(one.seeds, value(one), strict=True)) for one in (ours, theirs))
    both = [(mine[seed], other[seed]) for seed in ours.seeds if seed in other]
    if not both:
        raise Missing(f"No seed of {ours.method} and of {theirs.method} is the same in the record.")
    return both


def best(table: Table, method: str, workers: int, period: int) -> Best:
    """The runs of `method` at its best rate.

    Raises:
        Missing: There is none, or one seed has several.
    """
    base = AVERAGES.get(method, AVERAGED_ALONE.get(method, method))
    column = "average_error" if base != method else "error"
    if method in AVERAGED_ALONE:
        lr = best_rate(_searched(table, base, workers, period))
        rows = table.where(study="averages", method=method, workers=workers, period=period, lr=lr)
    else:
        rows = _at_best(table, base, workers, period)
    rows = sorted(rows, key=lambda row: row["settings"]["seed"])
    if not rows:
        raise Missing(f"No run of {method} with {workers} workers and period {period} is in the record.")
    seeds = [row["settings"]["seed"] for row in rows]
    if len(set(seeds)) < len(seeds):
        raise Missing(
            f"{method} with {workers} workers and period {period} has several runs of one seed in the record."
        )
    first, curves = rows[0], [row["result"][column] for row in rows]
    return Best(method, workers, period, first["settings"]["lr"], first["result"]["seconds"], seeds, curves)


def _at_best(table: Table, method: str, workers: int, period: int) -> Sequence[dict[str, Any]] | Table:
    where = {"method": method, "workers": workers, "period": period}
    for study in SEARCHES:
        searched = table.where(study=study, **where)
        if len(searched):
            lr = best_rate(searched)
            return [*searched.where(lr=lr), *table.where(study=f"{study}, repeated", lr=lr, **where)]
    more = table.where(study=MORE, **where)
    if not len(more):
        return more
    growth = table.where(study="growth", method=method, period=period)
    most = max(growth.column("workers"))
    return more.where(lr=best_rate(growth.where(workers=most)))  # an older rate's rows may still be in the record


def _searched(table: Table, method: str, workers: int, period: int) -> Table:
    return table.where(study=lambda name: name in SEARCHES, method=method, workers=workers, period=period)


def searched(table: Table, method: str, workers: int, period: int) -> list[dict[str, Any]]:
    """Every rate's run of the search, in the order of the rates."""
    return sorted(_searched(table, method, workers, period), key=lambda row: row["settings"]["lr"])


def tried(table: Table, method: str, workers: int, period: int) -> list[dict[str, Any]]:
    """Every run of the search and of its repetitions, in the order of the rates and seeds."""
    names = (*SEARCHES, *(f"{study}, repeated" for study in SEARCHES))
    rows = table.where(study=lambda name: name in names, method=method, workers=workers, period=period)
    return sorted(rows, key=lambda row: (row["settings"]["lr"], row["settings"]["seed"]))


def is_at_edge(table: Table, one: Best) -> bool:
    """Whether the best rate is the smallest or the largest that was tried, so that one beyond it may be better."""
    base = AVERAGES.get(one.method, AVERAGED_ALONE.get(one.method, one.method))
    rates = [row["settings"]["lr"] for row in _searched(table, base, one.workers, one.period)]
    return bool(rates) and one.lr in (min(rates), max(rates))


def numbers_of_workers(table: Table, method: str, period: int) -> list[int]:
    """With how many workers `method` has run on the virtual clock at this period, increasing."""
    rows = table.where(study=lambda name: name in (*SEARCHES, MORE), method=method, period=period)
    return sorted({row["settings"]["workers"] for row in rows})


def seconds_to(seconds: Sequence[float], errors: Sequence[float], level: float) -> float:
    """`crossing` of a curve that begins at second 0 with every image wrong."""
    return crossing([0.0, *seconds], [1.0, *errors], level)


def crossing(seconds: Sequence[float], errors: Sequence[float], level: float) -> float:
    """When a curve comes down to `level` or below, on a line between two moments; inf if never."""
    for (begin, before), (end, after) in pairwise(zip(seconds, errors, strict=True)):
        if after <= level:
            share = (before - level) / (before - after) if after < before < math.inf else 1.0
            return begin + share * (end - begin)
    return math.inf
