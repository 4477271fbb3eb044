"""The pictures of the report, drawn from the record alone. matplotlib is imported by whoever makes the figure."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np

from hooke.claim import Missing, Picture, Table
from papers.snn.depth_verdict import best
from papers.snn.rank import METHODS
from papers.snn.table_verdict import tox21_areas
from papers.snn.theory_verdict import spread
from papers.snn.uci_verdict import uci_ranking

COLORS = {
    "SNN": "#c2410c",
    "MSRAinit": "#2563eb",
    "LayerNorm": "#15803d",
    "Highway": "#7c3aed",
    "ResNet": "#0891b2",
    "WeightNorm": "#a16207",
    "BatchNorm": "#6b7280",
}


def flow(table: Table, figure: Any) -> None:
    """Arrows from each (mean, variance) to where one layer takes it."""
    rows = table.where(study="flow")
    row = rows[0] if len(rows) else {}
    if not row:
        raise Missing("No trial of the study flow in the record.")
    x, y = np.meshgrid(row["settings"]["means"], row["settings"]["variances"])
    to_x, to_y = np.array(row["result"]["to_mean"]), np.array(row["result"]["to_variance"])
    figure.set_size_inches(6.4, 4.4)
    axes = figure.add_subplot()
    axes.quiver(x, y, to_x - x, to_y - y, angles="xy", scale_units="xy", scale=3, width=0.0022, color="#8796a5")
    for path in row["result"]["paths"]:
        axes.plot(*zip(*path, strict=True), "o-", color=COLORS["SNN"], ms=3, lw=1.2)
    axes.add_patch(_box(axes))
    axes.set(xlabel="mean", ylabel="variance", xlim=(-1, 1), ylim=(0, 2.5))


def _box(axes: Any) -> Any:
    from matplotlib.patches import Rectangle

    axes.text(0.11, 1.51, "theorem 1", fontsize=7, color=COLORS["MSRAinit"])
    return Rectangle((-0.1, 0.8), 0.2, 0.7, fill=False, ec=COLORS["MSRAinit"], lw=1.2)


def moments(table: Table, figure: Any) -> None:
    """Mean and variance of the last layer against width, and variance through 32 layers."""
    rows = table.where(study="moments")
    groups = rows.where(depth=32).groups("width")
    figure.set_size_inches(7.6, 3.0)
    left, right = figure.subplots(1, 2)
    shades = np.linspace(0.25, 1.0, len(groups))
    for shade, ((width,), one) in zip(shades, sorted(groups.items()), strict=True):
        variances = np.array(one.column("variances"))
        depths = np.arange(1, variances.shape[1] + 1)
        low, middle, high = np.quantile(variances, [0.1, 0.5, 0.9], axis=0)
        left.plot(depths, middle, color=COLORS["SNN"], alpha=shade, lw=1.4, label=f"width {width}")
        left.fill_between(depths, low, high, color=COLORS["SNN"], alpha=0.08 * shade, lw=0)
    left.set(xlabel="layer", ylabel="variance of the activations", ylim=(0.4, 1.6))
    left.legend(fontsize=6.5, frameon=False, ncols=2)
    widths = sorted(set(rows.column("width")))
    for depth in sorted(set(rows.column("depth"))):
        at = rows.where(depth=depth).groups("width")
        right.loglog(widths, [spread(at[(width,)]) for width in widths], "o-", ms=3, label=f"{depth} layers")
    reference = np.array(widths, float)
    right.loglog(reference, 2 * reference**-0.5, "--", color="#8796a5", lw=1, label="width$^{-1/2}$")
    right.set_xticks(widths, [str(width) for width in widths])
    right.minorticks_off()
    right.set(xlabel="width", ylabel="distance of the variance from 1")
    right.legend(fontsize=6.5, frameon=False)


def dropout(table: Table, figure: Any) -> None:
    """Variance through the layers under alpha and plain dropout."""
    rows = table.where(study="dropout")
    figure.set_size_inches(7.6, 2.8)
    for axes, kind in zip(figure.subplots(1, 2), ("alpha", "plain"), strict=True):
        for (p,), one in sorted(rows.where(kind=kind).groups("p").items()):
            variances = np.array(one.column("variances")).mean(0)
            axes.plot(np.arange(1, len(variances) + 1), variances, lw=1.4, label=f"rate {p:g}")
        axes.set(title=f"{kind} dropout", xlabel="layer")
        if kind == "plain":
            axes.set_yscale("log")
        else:
            axes.set_ylim(0.5, 1.5)
        axes.legend(fontsize=6.5, frameon=False)
    figure.axes[0].set_ylabel("variance of the activations")


def depth(table: Table, figure: Any) -> None:
    """Training error against steps, each method at its best rate."""
    rows = table.where(study="depth")
    sources, depths = list(dict.fromkeys(rows.column("source"))), sorted(set(rows.column("depth")))
    figure.set_size_inches(8.4, 2.5 * len(sources))
    grid = figure.subplots(len(sources), len(depths), squeeze=False, sharey="row")
    for line, source in zip(grid, sources, strict=True):
        for axes, layers in zip(line, depths, strict=True):
            _curves(axes, rows.where(source=source, depth=layers))
            axes.set(title=f"{source}, {layers} layers", yscale="log", xlabel="steps")
        line[0].set_ylabel("training error")
    grid[0][0].legend(fontsize=6, frameon=False, ncols=2)


def _curves(axes: Any, rows: Table) -> None:
    for method in METHODS:
        one = rows.where(method=method)
        if not len(one):
            continue
        source, layers = one.one("source"), one.one("depth")
        curves = np.array(best(rows, source, method, layers)[1])
        axes.plot(one.one("steps_seen"), curves.mean(0), color=COLORS[method], lw=1.2, label=method)


def ranks(table: Table, figure: Any) -> None:
    """Rank differences with intervals, both grids."""
    figure.set_size_inches(8.0, 2.8)
    for axes, grid in zip(figure.subplots(1, 2, sharex=True), ("paper", "equal"), strict=True):
        found, tasks = uci_ranking(table, grid)
        for place, one in enumerate(reversed(found)):
            axes.plot(one.interval, [place, place], color=COLORS[one.method], lw=1.6)
            axes.plot([one.difference], [place], "o", color=COLORS[one.method], ms=5)
        axes.axvline(0, color="#8796a5", lw=0.8)
        axes.set_yticks(range(len(found)), [one.method for one in reversed(found)])
        axes.tick_params(axis="y", labelcolor="#8796a5")
        title = {"paper": "the paper's own grids", "equal": "equal grids"}[grid]
        axes.set(title=f"{title}, {tasks} tasks", xlabel="mean rank less 4 (left is better)")


def tox21(table: Table, figure: Any) -> None:
    """Area against depth."""
    figure.set_size_inches(6.2, 3.2)
    axes = figure.add_subplot()
    areas = tox21_areas(table)
    depths = sorted({depth for by_depth in areas.values() for depth in by_depth})
    for method, by_depth in areas.items():
        axes.plot(
            sorted(by_depth),
            [100 * fmean(by_depth[d]) for d in sorted(by_depth)],
            "o-",
            ms=3,
            color=COLORS[method],
            label=method,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [str(d) for d in depths])
    axes.set(xlabel="layers", ylabel="area under the ROC curve (%)")
    axes.legend(fontsize=6.5, frameon=False)


def dissent(table: Table, figure: Any) -> None:
    """Validation accuracy against evaluations."""
    rows = table.where(study="dissent")
    figure.set_size_inches(8.4, 2.6)
    for axes, variant in zip(figure.subplots(1, 3, sharey=True), ("plain", "batch norm", "theory"), strict=True):
        for activation, color in (("ReLU", COLORS["MSRAinit"]), ("SELU", COLORS["SNN"])):
            one = rows.where(variant=variant, activation=activation)
            curves = 100 * np.array(one.column("curve"))
            steps = one[0]["settings"]["every"] * np.arange(1, curves.shape[1] + 1)
            axes.plot(steps, curves.mean(0), color=color, lw=1.4, label=activation)
            axes.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0)
        axes.set(title=variant, xlabel="steps")
        axes.legend(fontsize=6.5, frameon=False)
    figure.axes[0].set_ylabel("validation accuracy (%)")


PICTURES = (
    Picture(
        "One layer moves mean and variance toward the fixed point",
        "Arrows show a third of the way that one layer goes (omega 0.1, tau 1); lines follow five starts through "
        "twelve layers; the box is the domain of theorem 1.",
        flow,
    ),
    Picture(
        "Wide nets keep their moments, narrow ones scatter",
        "Nets at initialization, standard normal inputs. Left: median variance and the middle 80 % of the seeds. "
        "Right: root mean square distance of the last layer's variance from 1.",
        moments,
    ),
    Picture(
        "Alpha dropout keeps the variance, plain dropout does not",
        "SELU nets at initialization, mean of the seeds; the two scales differ.",
        dropout,
    ),
    Picture(
        "Training error of deep nets",
        "Each method at its best learning rate of the grid for that depth; mean of the seeds.",
        depth,
    ),
    Picture(
        "Ranks on the UCI tasks",
        "Mean rank of test accuracy among the seven methods less 4, with 95 % bootstrap intervals over tasks.",
        ranks,
    ),
    Picture(
        "Tox21: area against depth",
        "Test area, mean of the assays and seeds; rate and dropout chosen on validation rows.",
        tox21,
    ),
    Picture(
        "The dissent: sums of words",
        "Sentence pairs, mean and range of the seeds. plain: Keras's default initialization, plain sums; theory: "
        "LeCun's initialization (He's for ReLU), sums over the root of the number of words, alpha "
        "dropout.",
        dissent,
    ),
)
