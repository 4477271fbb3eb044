"""Rates first, then a method's own setting, then more seeds: the same search for every method of a comparison.

A setup is what is compared (method, period, data). With the first seed each setup tries every learning rate, then at
the best rate every value of its own setting (beta; the outer rate and momentum), then, where another value than the
first was best, every rate with it; the other seeds run the best. What is best is said by data that no table shows. All
setups go through one stage before any goes on to the next, so that a record that was cut short holds every setup.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine

from hooke.claim import Row, Table
from hooke.simulate import Simulation
from papers.trial import Function, Trials

Setup = dict[str, Any]
STAGES = ("rates", "settings", "rates again", "seeds")


@dataclass(frozen=True)
class Search:
    """A comparison, and how its settings are chosen.

    Args:
        setups: What is compared; each has a `method`.
        rates: Learning rates, for every method.
        settings: Method -> values of its own setting, the paper's first; `[[]]` where there is none.
        cell: What all trials have in common.
        seeds: The first searches; all are shown.
    """

    setups: Sequence[Setup]
    rates: Sequence[float]
    settings: Mapping[str, Sequence[list[float]]]
    cell: dict[str, Any]
    seeds: Sequence[int]

    def run(self, record: Trials, trial: Function) -> bool:
        """Run what the record does not hold, no stage before the one before it is complete; whether all is there."""
        for stage in STAGES:
            cells = getattr(self, f"_{stage.replace(' ', '_')}")(record.table)
            if len(record.study(stage, trial, cells)) < len(cells):
                return False
        return True

    def best(self, table: Table, setup: Setup) -> Row:
        """The trial of the first seed with the lowest `validation`.

        Raises:
            Missing: No trial of this setup is in the record.
        """
        rows = _of_stages(table).where(**setup, **self.cell, seed=self.seeds[0])
        rows.column("validation")
        return min(rows, key=lambda row: _or_infinity(row["result"]["validation"]))

    def shown(self, table: Table, setup: Setup) -> list[Row]:
        """The trials at the best settings of a setup, one a seed, in the order of the seeds."""
        settings = self.best(table, setup)["settings"]
        rows = _of_stages(table).where(**{name: value for name, value in settings.items() if name != "seed"})
        seeds = {row["settings"]["seed"]: row for row in rows}
        return [seeds[seed] for seed in self.seeds if seed in seeds]

    def _rates(self, _: Table) -> list[Setup]:
        first = {"seed": self.seeds[0], **self.cell}
        return [
            setup | first | {"lr": lr, "setting": self.settings[setup["method"]][0]}
            for lr in self.rates
            for setup in self.setups
        ]

    def _settings(self, table: Table) -> list[Setup]:
        cells = []
        for setup in self.setups:
            searched = table.where(study="rates")
            cells += [
                self.best(searched, setup)["settings"] | {"setting": setting}
                for setting in self.settings[setup["method"]][1:]
            ]
        return cells

    def _rates_again(self, table: Table) -> list[Setup]:
        cells = []
        for setup in self.setups:
            best = self.best(table.where(study=lambda name: name in STAGES[:2]), setup)["settings"]
            if best["setting"] != self.settings[setup["method"]][0]:
                cells += [best | {"lr": lr} for lr in self.rates if lr != best["lr"]]
        return cells

    def _seeds(self, table: Table) -> list[Setup]:
        best = [self.best(table, setup)["settings"] for setup in self.setups]
        return [one | {"seed": seed} for seed in self.seeds[1:] for one in best]


def _of_stages(table: Table) -> Table:
    """Without what else a record holds."""
    return table.where(study=lambda name: name in STAGES)


def _or_infinity(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def ring_vectors(workers: int) -> float:
    """Vectors that each worker sends, and receives, in one ring all-reduce: 2 (p - 1) / p."""
    return 2 * (workers - 1) / workers


def run_to(simulation: Simulation, steps: int) -> None:
    """Let the clock run until the center has heard of so many steps of all workers together."""
    while simulation.steps < steps:
        simulation.run(until=simulation.seconds + 1)


def main(name: str, description: str, run: Callable[[Trials], object]) -> int:
    """The command of a comparison: `run` adds to the record what it does not hold.

    Returns:
        int: The exit code, 1 where a trial failed.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, help="start no trial later than this; run again to go on")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once; -1: one a core")
    parser.add_argument("--smoke", action="store_true", help="sizes that take seconds and need no file")
    parser.add_argument("--out", type=Path, help="the record; default: results/ here, with --smoke runs/")
    arguments = parser.parse_args()
    home = Path("runs") / f"{name}-smoke.jsonl" if arguments.smoke else machine.RESULTS / f"{name}.jsonl"
    record = Trials(arguments.out or home, arguments.jobs, minutes=arguments.minutes, smoke=arguments.smoke)
    run(record)
    for study, count in record.left.items():
        print(f"{study}: {count} trials were not started. Run this again to go on.")
    return int(record.failed > 0)
