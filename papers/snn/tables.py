"""Tables for the documents, as Markdown, from the record alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

from hooke.claim import Table
from papers.markdown import markdown, verdicts_of
from papers.snn.claims import CLAIMS
from papers.snn.depth_verdict import best, end
from papers.snn.rank import METHODS
from papers.snn.uci_verdict import small_ranking, uci_ranking


def ranks(table: Table) -> str:
    """Rank differences under both grids, with intervals and tests."""
    found = {grid: uci_ranking(table, grid) for grid in ("paper", "equal")}
    by_method = {grid: {one.method: one for one in ranking} for grid, (ranking, _) in found.items()}
    rows = []
    for method in [one.method for one in found["equal"][0]]:
        row = [method]
        for grid in ("paper", "equal"):
            one = by_method[grid][method]
            low, high = one.interval
            row += [f"{one.difference:+.2f} ({low:+.2f} to {high:+.2f})", "" if method == "SNN" else f"{one.p:.2g}"]
        rows.append(row)
    tasks = found["equal"][1]
    head = ["method", "rank, the paper's grids", "p", "rank, equal grids", "p"]
    words = f"\n{tasks} tasks. Mean rank less 4, 95 % interval over tasks; p of Wilcoxon's test against SNN.\n"
    return markdown(head, rows) + words


def small(table: Table) -> str:
    """Ranks with random forest and support vector machine on the small tasks."""
    found, tasks = small_ranking(table)
    rows = [[one.method, f"{one.difference:+.2f} ({one.interval[0]:+.2f} to {one.interval[1]:+.2f})"] for one in found]
    return markdown(["method", "rank"], rows) + f"\n{tasks} tasks of at most 1,000 rows; mean rank less 5.\n"


def depth(table: Table) -> str:
    """Training error of every method at every depth, each at its best rate."""
    places = list(table.where(study="depth").groups("source", "depth"))
    lines = [[method, *(_errors(table, source, method, layers) for source, layers in places)] for method in METHODS]
    words = "\nError in % on training images, mean of the seeds, after as many steps for each method.\n"
    return markdown(["layers", *(f"{source}, {layers}" for source, layers in places)], lines) + words


def _errors(table: Table, source: str, method: str, layers: int) -> str:
    if not table.where(study="depth", source=source, method=method, depth=layers):
        return "not run"
    return f"{100 * fmean(map(end, best(table, source, method, layers)[1])):.1f}"


def gradients(table: Table) -> str:
    """How the gradient's variance grows at the fixed point."""
    chi = table.where(study="jacobian").one("backward_factor")
    return (
        f"At the fixed point the gradient's variance grows by {chi:.4f} a layer: {chi**32:.1f} times in 32 layers, "
        f"{chi**128:,.0f} times in 128.\n"
    )


TABLES: Mapping[str, Callable[[Table], str]] = {
    "verdicts": verdicts_of(CLAIMS),
    "gradients": gradients,
    "ranks": ranks,
    "small": small,
    "depth": depth,
}
