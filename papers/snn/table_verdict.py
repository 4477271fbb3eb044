"""Judges HTRU2 and Tox21. No torch."""

from __future__ import annotations

from statistics import fmean

from hooke.claim import Table, Verdict, mean_interval, verdict_word
from papers.snn.rank import METHODS


def pulsars(table: Table) -> Verdict:
    """Who has the largest mean area over the folds."""
    areas = {method: table.where(study="htru2", method=method).one("auc") for method in METHODS}
    order = sorted(areas, key=lambda method: -fmean(areas[method]))
    estimate = mean_interval(areas["SNN"])
    ours = ", ".join(f"{method} {fmean(areas[method]):.4f}" for method in order)
    paper = "SNN .9803, MSRAinit .9791, WeightNorm .9786, Highway .9766, LayerNorm .9762, BatchNorm .9760, ResNet .9753"
    note = (
        f"{len(areas['SNN'])} folds; the interval is over folds, of SNN. The paper's own lead over MSRAinit is p = .35."
    )
    return Verdict(verdict_word(order[0] == "SNN"), ours, paper, estimate.interval, 1, note)


def tox21_areas(table: Table) -> dict[str, dict[int, list[float]]]:
    """Method -> depth -> test area of every seed."""
    rows = table.where(study="tox21")
    out: dict[str, dict[int, list[float]]] = {}
    for (method, depth), one in rows.groups("method", "depth").items():
        out.setdefault(method, {})[depth] = one.one("auc")
    return out


def tox21_best(table: Table) -> Verdict:
    """Who has the largest area at its best depth."""
    areas = tox21_areas(table)
    best = {method: max(by_depth.items(), key=lambda item: fmean(item[1])) for method, by_depth in areas.items()}
    order = sorted(best, key=lambda method: -fmean(best[method][1]))
    ours = ", ".join(f"{method} {100 * fmean(best[method][1]):.1f} at {best[method][0]}" for method in order)
    seeds = best["SNN"][1]
    deep = best["SNN"][0] >= 8
    interval = mean_interval([100 * seed for seed in seeds]).interval
    note = "Area in %, at each method's best depth by test area, as in the paper's table; interval of SNN."
    return Verdict(verdict_word(order[0] == "SNN" and deep), ours, "SNN 84.5 at 8", interval, len(seeds), note)


def tox21_deep(table: Table) -> Verdict:
    """Who loses least from the best to the greatest depth."""
    areas = tox21_areas(table)
    deepest = max(areas["SNN"])
    falls = {
        method: 100 * (max(fmean(a) for a in by_depth.values()) - fmean(by_depth[deepest]))
        for method, by_depth in areas.items()
        if deepest in by_depth
    }
    order = sorted(falls, key=falls.__getitem__)
    ours = ", ".join(f"{method} {falls[method]:.1f}" for method in order)
    paper = "SNN 2.0, MSRAinit 2.3, Highway 3.7, BatchNorm 4.0, LayerNorm 5.5, WeightNorm 27.1"
    note = f"Points of area lost from the best depth to {deepest} layers."
    return Verdict(verdict_word(order[0] == "SNN"), ours, paper, seeds=len(areas["SNN"][deepest]), note=note)
