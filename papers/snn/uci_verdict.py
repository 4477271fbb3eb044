"""Judges the UCI benchmark. No torch."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from hooke.claim import Missing, Table, Verdict, mean_interval, verdict_word
from papers.snn.rank import METHODS, Ranking, accuracies, ranking


def uci_ranking(table: Table, grid: str, large: bool = False) -> tuple[list[Ranking], int]:
    """Ranks under one grid, and over how many tasks; `large` keeps those of more than 1,000 rows.

    Raises:
        Missing: Fewer than two tasks are whole.
    """
    rows = table.where(study="uci")
    if large:
        rows = rows.where(rows=lambda count: count > 1000)
    tasks = accuracies(rows, f"{grid}_accuracy", METHODS)
    if len(tasks) < 2:
        raise Missing("Fewer than two UCI tasks have been run with every method.")
    return ranking(tasks, METHODS), len(tasks)


def uci(grid: str, paper: str, large: bool = False) -> Callable[[Table], Verdict]:
    """SNN first, and significantly better than at least four of the six others."""

    def holds(table: Table) -> Verdict:
        found, tasks = uci_ranking(table, grid, large)
        ours = ", ".join(f"{one.method} {one.difference:+.3f} (p {one.p:.2g})" for one in found)
        snn = next(one for one in found if one.method == "SNN")
        others = [one for one in found if one is not snn]
        clear = sum(one.p < 0.05 and one.difference > snn.difference for one in others)
        ahead = [one.method for one in found if one.difference < snn.difference]
        place = f"{', '.join(ahead)} rank before SNN" if ahead else "SNN is first"
        note = f"{tasks} tasks; {place}; it is significantly better than {clear} of 6 (Wilcoxon, 5 %); interval of SNN."
        return Verdict(verdict_word(found[0] is snn and clear >= 4), ours, paper, snn.interval, 1, note)

    return holds


def chosen_depth(table: Table) -> Verdict:
    """Mean number of layers that tuning chose, equal grid."""
    rows = table.where(study="uci")
    depths = {method: rows.where(method=method).column("equal_depth") for method in METHODS}
    means = {method: fmean(values) for method, values in depths.items()}
    ours = ", ".join(f"{method} {means[method]:.1f}" for method in sorted(means, key=lambda m: -means[m]))
    estimate = mean_interval(depths["SNN"])
    deepest = max(means, key=means.__getitem__) == "SNN"
    paper = "SNN 10.8, MSRAinit 7.1, LayerNorm 7.0, ResNet 6.35 blocks, BatchNorm 6.0, Highway 5.9, WeightNorm 3.8"
    return Verdict(
        verdict_word(deepest), ours, paper, estimate.interval, 1, "Mean number of layers chosen; interval of SNN."
    )


def small_ranking(table: Table) -> tuple[list[Ranking], int]:
    """Ranks with random forest and support vector machine, on the tasks that all have done."""
    tasks = accuracies(table.where(study="uci"), "equal_accuracy", METHODS)
    more = accuracies(table.where(study="classical"), "accuracy", ("RandomForest", "SVM"))
    both = {task: {**row, **more[task]} for task, row in tasks.items() if task in more}
    if len(both) < 2:
        raise Missing("Fewer than two small UCI tasks have been run with every method.")
    return ranking(both, (*METHODS, "RandomForest", "SVM")), len(both)


def small(table: Table) -> Verdict:
    """Whether random forest and support vector machine rank before SNN."""
    found, tasks = small_ranking(table)
    ours = ", ".join(f"{one.method} {one.difference:+.2f}" for one in found)
    place = {one.method: number for number, one in enumerate(found)}
    ahead = place["RandomForest"] < place["SNN"] and place["SVM"] < place["SNN"]
    note = f"{tasks} tasks of at most 1,000 rows, equal grid; differences to the middle rank."
    return Verdict(verdict_word(ahead), ours, "random forest and SVM before SNN", seeds=1, note=note)
