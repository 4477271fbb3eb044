"""A made-up record of `papers.zhang2015easgd`: its own plan, with results that show every claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from hooke.claim import Table
from papers.zhang2015easgd import FULL, run

Row = dict[str, Any]

FLOORS = {"SGD": 0.5, "MVASGD": 0.5, "MSGD": 0.45, "EAMSGD": 0.3, "EASGD": 0.4, "MDOWNPOUR": 0.5}
SPEEDS = {1: 3.0, 2: 6.0, 4: 6.0, 8: 10.0, 16: 14.0}
BEST = 1
"""Place of the best rate in a method's grid; the first where all is learned in short periods only."""


class Plan:
    """Stands for `papers.trial.Trials`: no trial runs, its result is made up."""

    def __init__(self, result_of: Callable[[str, Row], Row]) -> None:
        self.rows: list[Row] = []
        self._result_of = result_of

    @property
    def table(self) -> Table:
        return Table(self.rows)

    def study(self, name: str, function: Callable[..., Row], cells: Any) -> Table:
        cells = cells() if callable(cells) else cells
        new = [{"study": name, "settings": dict(c), "result": self._result_of(name, c), "made": {}} for c in cells]
        self.rows += deepcopy(new)
        return Table(new)


def result_of(study: str, cell: Row) -> Row:
    """What shows every claim."""
    if study in ANALYSIS:
        return deepcopy(ANALYSIS[study](cell))
    if study == "clock":
        return {"seconds": 0.003, "parameters": 23482}
    points, speed = cell["points"], SPEEDS[cell["workers"]]
    floor = _floor(cell["method"], cell["workers"], cell["period"]) + 0.002 * cell["seed"] * (cell["workers"] > 1)
    floor += disadvantage(cell)
    curve = [floor + (0.9 - floor) * math.exp(-speed * (i + 1) / points) for i in range(points)]
    if cell["method"] == "DOWNPOUR" and cell["period"] > 4 and cell["lr"] == FULL["rates"]["DOWNPOUR"][BEST]:
        curve = [0.7] + [0.9] * (points - 1)
    if study == "real":
        moments = [cell["seconds"] * (i + 1) / points for i in range(points)]
        return {"moments": moments, "error": curve, "exchanges": 1000}
    seconds = [0.003 * cell["steps"] * (i + 1) / points for i in range(points)]
    averages = [error + 0.005 for error in curve]
    return {"seconds": seconds, "error": curve, "loss": curve, "average_error": averages, "taken": 9, "exchanges": 9,
            "refused": 0}  # fmt: skip


def _floor(method: str, workers: int, period: int) -> float:
    if "DOWNPOUR" in method and method != "MDOWNPOUR":
        return 0.46 + 0.1 * (period > 4) - 0.001 * workers
    return FLOORS[method] - 0.001 * workers - 0.0005 * period


def disadvantage(cell: Row) -> float:
    """What a rate that is not the best costs."""
    grid = FULL["rates"].get(cell["method"], [cell["lr"]])
    best = len(grid) - 1 if cell["method"] == "DOWNPOUR" and cell["period"] > 4 else min(BEST, len(grid) - 1)
    return 0.01 * abs(grid.index(cell["lr"]) - best)


ANALYSIS: dict[str, Callable[[Row], Row]] = {
    "easgd map": lambda cell: {"points": 25, "agree": 25, "stable_share": 0.5},
    "admm map": lambda cell: {
        "etas": [0.005, 0.01],
        "rhos": [5.0, 10.0],
        "radius": [[0.999, 0.999], [0.999, 1.001]],
        "unstable_share": 0.25,
        "easgd_largest": 0.9995,
    },
    "admm example": lambda cell: {
        "every": 20,
        "admm": [1000.0, 900.0, 1500.0],
        "easgd": [1000.0, 100.0, 0.0],
        "radius": 1.001,
        "easgd_radius": 0.999,
        "last_over_first": 1.5,
    },
    "downpour map": lambda cell: {
        "factor": {1: 0.8, 4: 0.258, 16: -1.239, 64: -2.85}[cell["period"]],
        "closed": {1: 0.8, 4: 0.258, 16: -1.239, 64: -2.85}[cell["period"]],
        "easgd_last": 1e-11,
        "easgd_radius": 0.96,
    },
}


@cache
def _full() -> tuple[Row, ...]:
    plan = Plan(result_of)
    run(FULL, plan)
    return tuple(plan.rows)


def full() -> list[Row]:
    """Every trial that `run` asks for."""
    return deepcopy(list(_full()))


def repeated(rows: list[Row], study: str, seeds: Sequence[int] = (1, 2), **settings: Any) -> list[Row]:
    """The same with more seeds of the search's trials that have these settings."""
    more = [{**deepcopy(row), "study": f"{study}, repeated"} for row in chosen(rows, study=study, **settings)]
    return rows + [{**row, "settings": {**row["settings"], "seed": seed}} for row in more for seed in seeds]


def chosen(rows: list[Row], study: str | None = None, **settings: Any) -> list[Row]:
    """The rows of a study with these settings, themselves."""
    return [row for row in rows if study in (None, row["study"]) and settings.items() <= row["settings"].items()]


def without(rows: list[Row], study: str | None = None, **settings: Any) -> list[Row]:
    """The others."""
    left_out = {id(row) for row in chosen(rows, study, **settings)}
    return [row for row in rows if id(row) not in left_out]


def shifted(rows: list[Row], by: float, study: str | None = None, *columns: str, **settings: Any) -> list[Row]:
    """The same with errors of these rows moved by so much."""
    for row in chosen(rows, study, **settings):
        for column in columns or ("error", "average_error"):
            if column in row["result"]:
                row["result"][column] = [error + by for error in row["result"][column]]
    return rows


def changed(rows: list[Row], study: str, result: Row, **settings: Any) -> list[Row]:
    """The same with other results in these rows."""
    for row in chosen(rows, study, **settings):
        row["result"] |= result
    return rows
