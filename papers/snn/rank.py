"""Ranks of methods over tasks, as Klambauer et al. compare them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hooke.claim import Missing, Table

METHODS = ("SNN", "MSRAinit", "LayerNorm", "Highway", "ResNet", "WeightNorm", "BatchNorm")
"""The paper's names of its seven methods, best first (its table 1)."""


@dataclass(frozen=True)
class Ranking:
    """One method among the others.

    Attributes:
        method: Its name.
        difference: Its mean rank over the tasks less the rank in the middle; below 0 is better than the middle.
        interval: 95 % of that, from bootstrap samples of the tasks.
        p: Two-sided Wilcoxon signed-rank test of its ranks against the reference method's; 1.0 for that one itself.
    """

    method: str
    difference: float
    interval: tuple[float, float]
    p: float


def accuracies(table: Table, column: str, methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """Task -> method -> a number of its result, of the tasks that every method has done.

    Raises:
        Missing: There is none, or a method has done a task with two settings.
    """
    found: dict[str, dict[str, float]] = {}
    for row in table:
        task, method = row["settings"]["task"], row["settings"]["method"]
        if method in found.setdefault(task, {}):
            raise Missing(f"{method} has two trials of {task} in the record, with other settings. Remove one kind.")
        found[task][method] = row["result"][column]
    whole = {task: row for task, row in found.items() if set(methods) <= set(row)}
    if not whole:
        raise Missing("No task that every method has done is in the record.")
    return whole


def ranks(tasks: Mapping[str, Mapping[str, float]], methods: Sequence[str]) -> np.ndarray:
    """(tasks, methods): rank of each accuracy among the methods of its task, 1 the best, equal ones share the mean."""
    from scipy.stats import rankdata

    table = np.array([[row[method] for method in methods] for row in tasks.values()])
    return rankdata(-np.round(table, 6), axis=1)


def ranking(tasks: Mapping[str, Mapping[str, float]], methods: Sequence[str], reference: str = "SNN") -> list[Ranking]:
    """All methods, the best first."""
    from scipy.stats import wilcoxon

    table = ranks(tasks, methods)
    middle = (len(methods) + 1) / 2
    picks = np.random.default_rng(0).integers(0, len(table), (2000, len(table)))
    boots = table[picks].mean(1) - middle
    low, high = np.quantile(boots, [0.025, 0.975], axis=0)
    base = table[:, list(methods).index(reference)]
    out = []
    for i, method in enumerate(methods):
        apart = table[:, i] - base
        test: Any = wilcoxon(apart) if apart.any() else None
        p = float(test.pvalue) if test else 1.0
        out.append(Ranking(method, float(table[:, i].mean() - middle), (float(low[i]), float(high[i])), p))
    return sorted(out, key=lambda one: one.difference)
