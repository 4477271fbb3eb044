"""Judges figure 1. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median

import numpy as np

from hooke.claim import Table, Verdict, verdict_word
from papers.snn.rank import METHODS


def errors(table: Table, source: str, method: str, depth: int, what: str = "train_error") -> dict[str, list[float]]:
    """For every rate the errors at the end, one a seed; of a training curve the mean of its last three points.

    Raises:
        Missing: The trial is not in the record.
    """
    rates = table.where(study="depth", source=source, method=method, depth=depth).one("rates_result")
    return {
        rate: [fmean(value[-3:]) if isinstance(value, list) else value for value in of[what]]
        for rate, of in rates.items()
    }


def best_errors(table: Table, source: str, method: str, depth: int) -> list[float]:
    """Training errors of the seeds at the method's best rate."""
    return min(errors(table, source, method, depth).values(), key=fmean)


def _depths(table: Table) -> list[int]:
    return sorted(set(table.where(study="depth").column("depth")))


def faster_than_batch_norm(source: str) -> Callable[[Table], Verdict]:
    """Every seed of the SNN below every seed of the batch-normalized net, at every depth."""

    def holds(table: Table) -> Verdict:
        parts, wins, seeds = [], [], 0
        for depth in _depths(table):
            snn, norm = (best_errors(table, source, method, depth) for method in ("SNN", "BatchNorm"))
            seeds = len(snn)
            parts.append(f"{depth}: {100 * fmean(snn):.1f} / {100 * fmean(norm):.1f} %")
            wins.append(max(snn) < min(norm))
        note = "Training error, SNN / ReLU with batch normalization, each at its best rate; every seed must be better."
        return Verdict(verdict_word(all(wins)), "; ".join(parts), "lower at 8, 16, 32 (figure)", seeds=seeds, note=note)

    return holds


def steadier(table: Table) -> Verdict:
    """How much the training error jumps from one evaluation to the next in the second half, at each one's best rate."""
    sources = list(dict.fromkeys(table.where(study="depth").column("source")))
    jumps: dict[str, list[float]] = {"SNN": [], "BatchNorm": []}
    for source in sources:
        for depth in _depths(table):
            for method, found in jumps.items():
                rates = table.where(study="depth", source=source, method=method, depth=depth).one("rates_result")
                best = min(rates.values(), key=lambda of: fmean(fmean(curve[-3:]) for curve in of["train_error"]))
                found += [_jump(curve) for curve in best["train_error"]]
    ratio = median(jumps["BatchNorm"]) / max(median(jumps["SNN"]), 1e-12)
    ours = f"batch normalization jumps {ratio:.2f} times as far"
    note = "Median over data sets, depths and seeds of the mean jump between evaluations, relative to the error itself."
    return Verdict(verdict_word(ratio > 1.25), ours, "higher variance (figure)", seeds=len(jumps["SNN"]), note=note)


def _jump(curve: Sequence[float]) -> float:
    tail = np.array(curve[len(curve) // 2 :])
    return float(np.abs(np.diff(tail)).mean() / max(tail.mean(), 1e-3))


def deepest_best(table: Table) -> Verdict:
    """Who has the lowest training error at the greatest depth."""
    depth = max(_depths(table))
    sources = list(dict.fromkeys(table.where(study="depth").column("source")))
    parts, wins, seeds = [], [], 0
    for source in sources:
        means = {method: fmean(best_errors(table, source, method, depth)) for method in METHODS}
        order = sorted(means, key=means.__getitem__)
        seeds = len(best_errors(table, source, "SNN", depth))
        wins.append(order[0] == "SNN")
        parts.append(f"{source}: " + ", ".join(f"{method} {100 * means[method]:.1f}" for method in order) + " %")
    note = f"Training error at {depth} layers, each method at its best rate of the grid."
    return Verdict(verdict_word(all(wins)), "; ".join(parts), "SNN best", seeds=seeds, note=note)
