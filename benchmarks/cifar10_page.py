"""The part of docs/which_method.md on CIFAR-10, from the record of papers/zhang2015easgd.py."""

from __future__ import annotations

from pathlib import Path

from comparison import newest, says

from hooke.claim import Estimate, Missing, Table, mean_interval
from papers.easgd.best import Best, best, numbers_of_workers, paired
from papers.easgd.tables import TABLES
from papers.easgd.training_verdict import GROWTH, PERIODS, WORKERS

RECORD = Path(__file__).parent.parent / "papers" / "results" / "zhang2015easgd.jsonl"
METHODS = ("EAMSGD", "EASGD", "DOWNPOUR")


def section(record: Table) -> str:
    """Its tables."""
    made = newest(record.where(study="periods"))
    return (
        "\n## SGD inside: images\n\nCIFAR-10, a convolutional network, the methods of the paper on elastic averaging, "
        "every worker on a processor of its own, equal virtual seconds. [The whole study, and how it differs from the "
        "paper's](elastic_averaging.md). Four workers:\n\n"
        + TABLES["periods"](record)
        + "\nThe number of workers:\n\n"
        + TABLES["workers"](record)
        + f"\n`HOOKE_DATA=FOLDER python -m papers zhang2015easgd` on {made['cores']} cores ({made['cpu']}), torch "
        f"{made['torch']}, hooke {made['commit'][:10]}, {made['at'][:10]}.\n"
    )


class Cifar10:
    """The runs that the answers rest on.

    Raises:
        Missing: Some are not in the record.
    """

    def __init__(self, record: Table) -> None:
        self.record = record
        self.runs = {(name, tau): best(record, name, WORKERS, tau) for name in METHODS for tau in PERIODS}
        self.alone = {name: best(record, name, 1, 1) for name in ("MSGD", "SGD")}
        if min(len(one.seeds) for one in [*self.runs.values(), *self.alone.values()]) < 3:
            raise Missing("Not every setting has three seeds.")

    def method(self) -> list[str]:
        """Which method."""
        return [self._spring(), self._every_step()]

    def _every_step(self) -> str:
        average = best(self.record, "MVADOWNPOUR", WORKERS, PERIODS[0])
        spring, ours, downpour = (self.runs[name, PERIODS[0]] for name in ("EASGD", "EAMSGD", "DOWNPOUR"))
        lead = _lead(ours, average)
        return says(
            "Who can afford an exchange in every step may take DOWNPOUR: there it ends at "
            f"{100 * downpour.error:.1f} % test error, EASGD at {100 * spring.error:.1f} %, and three seeds do not "
            f"tell its moving average ({100 * average.error:.1f} %) from EAMSGD ({100 * ours.error:.1f} %).",
            downpour.error < spring.error and lead.low < 0 < lead.high,
        )

    def _spring(self) -> str:
        ours = [self.runs["EAMSGD", tau] for tau in PERIODS]
        beaten = [(one, self.runs[name, tau]) for one, tau in zip(ours, PERIODS, strict=True) for name in METHODS[1:]]
        smallest = min((_lead(one, other) for one, other in beaten), key=lambda lead: lead.mean)
        return says(
            "With SGD inside, EAMSGD: on CIFAR-10 with four workers it has the lowest mean error of EAMSGD, EASGD and "
            f"DOWNPOUR at every period from {PERIODS[0]} to {PERIODS[-1]}, by {smallest.mean:.1f} points or more, and "
            f"{_lead(ours[0], self.alone['MSGD']).mean:.1f} less than one worker with the same momentum.",
            smallest.mean > 0 and _ahead(ours[0], self.alone["MSGD"]),
        )

    def period(self) -> str:
        """Which period."""
        costs = {name: -_lead(self.runs[name, PERIODS[-1]], self.runs[name, PERIODS[0]]).mean for name in METHODS}
        said = ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
        return says(
            f"A spring bears long periods, DOWNPOUR does not: {PERIODS[-1]} in place of {PERIODS[0]} costs {said} "
            "points of test error on CIFAR-10.",
            max(costs["EASGD"], costs["EAMSGD"]) < costs["DOWNPOUR"]
            and _ahead(self.runs["DOWNPOUR", PERIODS[0]], self.runs["DOWNPOUR", PERIODS[-1]]),
        )

    def workers(self) -> list[str]:
        """How many workers."""
        said = []
        for name in ("EAMSGD", "EASGD"):
            runs = [
                best(self.record, name, p, GROWTH[name]) for p in numbers_of_workers(self.record, name, GROWTH[name])
            ]
            runs = [one for one in runs if len(one.seeds) >= 3]
            errors = ", ".join(f"{100 * one.error:.1f} % with {one.workers}" for one in runs)
            lead = _lead(runs[-1], runs[0])
            said.append(
                f"On CIFAR-10 {name} ends at {errors} workers after as many seconds; the lead of the most over the "
                f"fewest is {_interval(lead)} points."
            )
        return said


def _lead(ours: Best, theirs: Best) -> Estimate:
    return mean_interval([100 * (b - a) for a, b in paired(ours, theirs, lambda one: one.errors)])


def _ahead(ours: Best, theirs: Best) -> bool:
    """Whether every seed is lower than the same seed of the other."""
    return all(a < b for a, b in paired(ours, theirs, lambda one: one.errors))


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]"
