"""Judges the UCI benchmark. No torch."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from hooke.claim import NOT_JUDGED, Missing, Table, Verdict, lead_word, mean_interval, verdict_word
from papers.snn.rank import METHODS, Ranking, accuracies, ranking

ENOUGH, ENOUGH_LARGE, ENOUGH_SMALL = 60, 15, 30
"""Tasks that must be whole before ranks are judged: all of them, those of more than 1,000 rows, those of fewer."""


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


def uci(grid: str, large: bool = False) -> Callable[[Table], Verdict]:
    """SNN first, and significantly better than at least four of the six others."""

    def holds(table: Table) -> Verdict:
        found, tasks = uci_ranking(table, grid, large)
        snn = next(one for one in found if one.method == "SNN")
        others = [one for one in found if one is not snn]
        ours = ", ".join(
            f"{one.method} {one.difference:+.3f}" + (f" (p {one.p:.2g})" if one is not snn else "") for one in found
        )
        clear = sum(one.p < 0.05 and one.difference > snn.difference for one in others)
        first = all(one.difference > snn.difference for one in others)
        word = verdict_word(first and clear >= 4) if tasks >= (ENOUGH_LARGE if large else ENOUGH) else NOT_JUDGED
        note = f"{tasks} tasks, one seed. p is Wilcoxon's against SNN; the interval is of SNN's rank, over tasks."
        return Verdict(word, ours, "", snn.interval, 1, f"{note} {_edges(table, grid)}")

    return holds


def _edges(table: Table, grid: str) -> str:
    """How often tuning chose the largest learning rate of the grid, by method."""
    rows = table.where(study="uci")
    top = max(rows.column(f"{grid}_lr"))
    shares = [
        f"{method} {100 * fmean(lr == top for lr in rows.where(method=method).column(f'{grid}_lr')):.0f} %"
        for method in METHODS
    ]
    return f"The largest rate, {top:g}, was chosen by {', '.join(shares)}."


def chosen_depth(table: Table) -> Verdict:
    """Layers that tuning chose with the paper's grids, on whole tasks; ResNet, counted in blocks, is left out."""
    rows = table.where(study="uci")
    methods = [method for method in METHODS if method != "ResNet"]
    tasks = accuracies(rows, "paper_depth", METHODS)
    means = {method: fmean(row[method] for row in tasks.values()) for method in methods}
    order = sorted(means, key=lambda method: -means[method])
    other = next(method for method in order if method != "SNN")
    lead = mean_interval([row["SNN"] - row[other] for row in tasks.values()])
    ours = ", ".join(f"{method} {means[method]:.1f}" for method in order)
    word = lead_word((lead.low, lead.high)) if len(tasks) >= ENOUGH else NOT_JUDGED
    return Verdict(word, ours, "", lead.interval, 1, f"{len(tasks)} tasks; interval of SNN's lead over {other}.")


def small_ranking(table: Table) -> tuple[list[Ranking], int]:
    """Ranks with random forest and support vector machine, on the tasks that all have done.

    Raises:
        Missing: Fewer than two tasks are whole.
    """
    tasks = accuracies(table.where(study="uci"), "equal_accuracy", METHODS)
    more = accuracies(table.where(study="classical"), "accuracy", ("RandomForest", "SVM"))
    both = {task: {**row, **more[task]} for task, row in tasks.items() if task in more}
    if len(both) < 2:
        raise Missing("Fewer than two small UCI tasks have been run with every method.")
    return ranking(both, (*METHODS, "RandomForest", "SVM")), len(both)


def small(table: Table) -> Verdict:
    """Random forest and support vector machine both rank before SNN."""
    found, tasks = small_ranking(table)
    by_method = {one.method: one for one in found}
    snn = by_method["SNN"]
    ahead = all(by_method[method].difference < snn.difference for method in ("RandomForest", "SVM"))
    ours = ", ".join(f"{one.method} {one.difference:+.2f}" for one in found)
    tests = ", ".join(f"{method} p {by_method[method].p:.2g}" for method in ("RandomForest", "SVM"))
    note = f"{tasks} tasks of at most 1,000 rows, equal grid; rank less 5; Wilcoxon's test against SNN: {tests}."
    word = verdict_word(ahead) if tasks >= ENOUGH_SMALL else NOT_JUDGED
    return Verdict(word, ours, "", snn.interval, 1, note)
