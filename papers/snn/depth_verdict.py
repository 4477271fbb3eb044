"""Judges figure 1. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from hooke.claim import NOT_JUDGED, Missing, Table, Verdict, lead_word, mean_interval, verdict_word
from papers.snn.rank import METHODS

DEPTHS = (8, 16, 32)
"""Layers in the paper's figure."""


def best(table: Table, source: str, method: str, depth: int) -> tuple[str, list[list[float]]]:
    """Of the rate with the lowest training error at the end: the rate, and the curve of every seed.

    Raises:
        Missing: The trial is not in the record.
    """
    rates = table.where(study="depth", source=source, method=method, depth=depth).one("rates_result")
    rate = min(rates, key=lambda rate: fmean(map(end, rates[rate]["train_error"])))
    return rate, rates[rate]["train_error"]


def end(curve: Sequence[float]) -> float:
    """A curve's value at the end: the mean of its last three points."""
    return fmean(curve[-3:])


def ends(table: Table, source: str, method: str, depth: int) -> list[float]:
    """Training errors at the end, one a seed, at the method's best rate."""
    return [end(curve) for curve in best(table, source, method, depth)[1]]


def depths(table: Table, methods: Sequence[str], **chosen: str) -> list[int]:
    """Depths at which all of `methods` have run on the chosen source.

    Raises:
        Missing: There is none.
    """
    rows = table.where(study="depth", **chosen)
    found = [set(rows.where(method=method).column("depth")) for method in methods]
    common = sorted(set.intersection(*found))
    if not common:
        raise Missing("No depth at which every method has run is in the record.")
    return common


def lower_than_batch_norm(source: str) -> Callable[[Table], Verdict]:
    """Every seed of the SNN below every seed of the batch-normalized net, at every depth."""

    def holds(table: Table) -> Verdict:
        parts, wins, ours = [], [], []
        found = depths(table, ("SNN", "BatchNorm"), source=source)
        for depth in found:
            (rate, snn), (other, norm) = (best(table, source, method, depth) for method in ("SNN", "BatchNorm"))
            ours, theirs = list(map(end, snn)), list(map(end, norm))
            a, b = 100 * fmean(ours), 100 * fmean(theirs)
            parts.append(f"{depth} layers: {a:.1f} (rate {rate}) against {b:.1f} % (rate {other})")
            wins.append(max(ours) < min(theirs))
        word = verdict_word(all(wins)) if set(DEPTHS) <= set(found) else NOT_JUDGED
        note = "Training error at the end, SNN against ReLU with batch normalization."
        return Verdict(word, "; ".join(parts), seeds=len(ours), note=note)

    return holds


def steadier(table: Table) -> Verdict:
    """Jumps of the training error between evaluations in the second half, batch norm's over SNN's, cell by cell."""
    ratios, seeds = [], 0
    for source in dict.fromkeys(table.where(study="depth").column("source")):
        for depth in depths(table, ("SNN", "BatchNorm"), source=source):
            snn, norm = (best(table, source, method, depth)[1] for method in ("SNN", "BatchNorm"))
            ratios += [math.log(_jump(b) / _jump(a)) for a, b in zip(snn, norm, strict=True)]
            seeds = len(snn)
    estimate = mean_interval(ratios)
    low, high = math.exp(estimate.low), math.exp(estimate.high)
    ours = f"batch normalization jumps {math.exp(estimate.mean):.2f} times as far"
    note = f"Mean jump relative to the error itself, geometric mean over {len(ratios)} pairs of nets."
    return Verdict(lead_word((estimate.low, estimate.high)), ours, "", (low, high), seeds, note)


def _jump(curve: Sequence[float]) -> float:
    tail = np.array(curve[len(curve) // 2 :])
    return float(np.abs(np.diff(tail)).mean() + 1e-4) / (tail.mean() + 1e-3)  # a step of the count is 5e-4


def deepest_best(table: Table) -> Verdict:
    """Every seed of the SNN below every seed of every other method at 32 layers, on every data set that is whole."""
    depth = max(DEPTHS)
    parts, wins, seeds, left_out = [], [], 0, []
    for source in dict.fromkeys(table.where(study="depth").column("source")):
        try:
            found = {method: ends(table, source, method, depth) for method in METHODS}
        except Missing:
            left_out.append(source)
            continue
        order = sorted(found, key=lambda method: fmean(found[method]))
        wins.append(max(found["SNN"]) < min(min(found[method]) for method in METHODS if method != "SNN"))
        seeds = len(found["SNN"])
        parts.append(f"{source}: " + ", ".join(f"{method} {100 * fmean(found[method]):.1f}" for method in order) + " %")
    if not wins:
        raise Missing(f"No data set on which every method has run at {depth} layers is in the record.")
    note = f"Training error at the end of {depth} layers, each method at its best rate of the grid."
    note += f" Not all methods have run on {', '.join(left_out)}." * bool(left_out)
    return Verdict(verdict_word(all(wins)), "; ".join(parts), seeds=seeds, note=note)
