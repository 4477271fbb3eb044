"""Judges HTRU2 and Tox21. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from hooke.claim import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, Missing, Table, Verdict, lead_word, mean_interval
from papers.snn.rank import METHODS

DEEP = 32
"""Layers of the deepest nets in the paper's table 2."""


def lead(values: Mapping[str, Sequence[float]]) -> tuple[str, str, tuple[float, float]]:
    """SNN's lead over the best other by paired values: the word, the other's name, the interval of the lead."""
    other = max((method for method in values if method != "SNN"), key=lambda method: fmean(values[method]))
    found = mean_interval([a - b for a, b in zip(values["SNN"], values[other], strict=True)])
    return lead_word((found.low, found.high)), other, (found.low, found.high)


def pulsars(table: Table) -> Verdict:
    """SNN's lead in area over the best other, paired over the folds."""
    areas = {method: table.where(study="htru2", method=method).one("auc") for method in METHODS}
    order = sorted(areas, key=lambda method: -fmean(areas[method]))
    word, other, interval = lead(areas)
    ours = ", ".join(f"{method} {fmean(areas[method]):.4f}" for method in order)
    note = f"{len(areas['SNN'])} folds; the interval is of SNN's lead over {other}, paired over folds."
    return Verdict(word, ours, "", interval, 1, note)


def tox21_areas(table: Table) -> dict[str, dict[int, list[float]]]:
    """Method -> depth -> test area of every seed.

    Raises:
        Missing: A method has not run at every depth that another has.
    """
    areas: dict[str, dict[int, list[float]]] = {}
    for (method, depth), one in table.where(study="tox21").groups("method", "depth").items():
        areas.setdefault(method, {})[depth] = one.one("auc")
    if set(areas) < set(METHODS) or len({frozenset(by_depth) for by_depth in areas.values()}) > 1:
        raise Missing("Not every method at every depth is in the record of Tox21.")
    return areas


def _best_depth(by_depth: Mapping[int, Sequence[float]]) -> int:
    return max(by_depth, key=lambda depth: fmean(by_depth[depth]))


def tox21_best(table: Table) -> Verdict:
    """SNN's lead at its best depth over the best other at its own, paired over the seeds; and that depth."""
    areas = tox21_areas(table)
    depth = {method: _best_depth(by_depth) for method, by_depth in areas.items()}
    best = {method: [100 * area for area in areas[method][depth[method]]] for method in METHODS}
    order = sorted(best, key=lambda method: -fmean(best[method]))
    word, other, interval = lead(best)
    if word == REPRODUCED and depth["SNN"] < 8:
        word = NOT_REPRODUCED
    ours = ", ".join(f"{method} {fmean(best[method]):.1f} at {depth[method]}" for method in order)
    note = f"Area in %, at each method's best depth by test area, as in the paper; interval of SNN's lead over {other}."
    return Verdict(word, ours, "", interval, len(best["SNN"]), note)


def tox21_deep(table: Table) -> Verdict:
    """How much less area SNN loses from its best depth to the deepest than the best other, paired over the seeds."""
    areas = tox21_areas(table)
    deepest = max(areas["SNN"])
    kept = {
        method: [100 * (b - a) for a, b in zip(by_depth[_best_depth(by_depth)], by_depth[deepest], strict=True)]
        for method, by_depth in areas.items()
        if method != "ResNet" and fmean(by_depth[_best_depth(by_depth)]) > 0.55
    }
    if "SNN" not in kept or len(kept) < 2:
        raise Missing("Fewer than two methods, or not SNN, have learned anything of Tox21.")
    word, other, interval = lead(kept)
    order = sorted(kept, key=lambda method: -fmean(kept[method]))
    ours = ", ".join(f"{method} {-fmean(kept[method]):.1f}" for method in order)
    note = f"Points of area lost from the best depth to {deepest} layers; interval of what SNN loses less than {other}."
    return Verdict(word if deepest >= DEEP else NOT_JUDGED, ours, "", interval, len(kept["SNN"]), note)
