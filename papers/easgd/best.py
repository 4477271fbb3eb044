"""What each method reached at its best learning rate. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hooke.claim import Missing, Table

AVERAGES = {"ASGD": "SGD", "ADOWNPOUR": "DOWNPOUR"}
"""Methods whose average was kept beside another method's center, in the same run."""

AVERAGED_ALONE = {"MVASGD": "SGD", "MVADOWNPOUR": "DOWNPOUR"}
"""Methods whose average had runs of its own, at the rate that was best for the other method's center."""

SEARCHES = ("periods", "growth")
MOST = 0.85
"""A test error above which nothing has been learned; guessing has 0.9."""


def best_rate(rows: Table) -> float:
    """The rate with the lowest test error at any recorded moment, as the paper reports it.

    Raises:
        Missing: There is no row.
    """
    if not len(rows):
        raise Missing("No trial from which a learning rate could be chosen is in the record.")
    return min(rows, key=lambda row: min(row["result"]["error"]))["settings"]["lr"]


@dataclass(frozen=True)
class Best:
    """The runs of one method in one setting at its best rate, in the order of their seeds.

    Attributes:
        method: Its name.
        workers: p.
        period: tau.
        lr: The rate.
        seconds: Virtual seconds of the recorded moments.
        curves: Test error at those moments, one curve a seed.
    """

    method: str
    workers: int
    period: int
    lr: float
    seconds: list[float]
    curves: list[list[float]]

    @property
    def errors(self) -> list[float]:
        """The best test error of each seed."""
        return [min(curve) for curve in self.curves]

    def seconds_to(self, level: float) -> list[float]:
        """When each seed's test error first was `level` or less, between two moments on a line; inf if never."""
        return [crossing([0.0, *self.seconds], [1.0, *curve], level) for curve in self.curves]


def best(table: Table, method: str, workers: int, period: int) -> Best:
    """The runs of `method` at its best rate.

    Raises:
        Missing: There is none.
    """
    base = AVERAGES.get(method, AVERAGED_ALONE.get(method, method))
    column = "average_error" if base != method else "error"
    if method in AVERAGED_ALONE:
        rows = _seeded(table.where(study="averages", method=method, workers=workers, period=period))
    else:
        rows = _at_best(table, base, workers, period)
    if not rows:
        raise Missing(f"No run of {method} with {workers} workers and period {period} is in the record.")
    first = rows[0]
    curves = [row["result"][column] for row in rows]
    return Best(method, workers, period, first["settings"]["lr"], first["result"]["seconds"], curves)


def _at_best(table: Table, method: str, workers: int, period: int) -> Sequence[dict[str, Any]]:
    where = {"method": method, "workers": workers, "period": period}
    for study in SEARCHES:
        searched = table.where(study=study, **where)
        if len(searched):
            lr = best_rate(searched)
            again = table.where(study=f"{study}, repeated", lr=lr, **where)
            return _seeded([*searched.where(lr=lr), *again])
    return _seeded(table.where(study="more workers", **where))


def searched(table: Table, method: str, workers: int, period: int) -> list[dict[str, Any]]:
    """Every rate's run of the search, in the order of the rates."""
    where = {"method": method, "workers": workers, "period": period}
    rows = [row for study in SEARCHES for row in table.where(study=study, **where)]
    return sorted(rows, key=lambda row: row["settings"]["lr"])


def _seeded(rows: Sequence[dict[str, Any]] | Table) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["settings"]["seed"])


def crossing(seconds: list[float], errors: list[float], level: float) -> float:
    """When a curve first is at `level` or below, on a line between two moments; inf if never."""
    for i, error in enumerate(errors):
        if i > 0 and error <= level:
            share = (errors[i - 1] - level) / (errors[i - 1] - error)
            return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])
    return float("inf")
