"""The pictures of the report, drawn from the record alone. matplotlib is imported by whoever makes the figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hooke.claim import Missing, Picture, Table
from papers.easgd.best import Best, best, lowest, numbers_of_workers, searched
from papers.easgd.training_verdict import DOWNPOURS, GROWTH, PERIODS, WORKERS, levels_of

COLORS = {
    "EAMSGD": "#c2410c",
    "EASGD": "#e0862a",
    "DOWNPOUR": "#2563eb",
    "ADOWNPOUR": "#60a5fa",
    "MVADOWNPOUR": "#93c5fd",
    "MDOWNPOUR": "#15803d",
    "MSGD": "#6b7280",
    "SGD": "#a8a29e",
}


def periods(table: Table, figure: Any) -> None:
    """Test error against virtual seconds for p = 4, one panel a period: the paper's figure 2."""
    figure.set_size_inches(9.6, 2.9)
    panels = figure.subplots(1, len(PERIODS), sharey=True)
    for axes, period in zip(panels, PERIODS, strict=True):
        shown = [("EAMSGD", WORKERS, period), ("EASGD", WORKERS, period)]
        shown += [(name, WORKERS, period) for name in DOWNPOURS]
        shown += [("MDOWNPOUR", WORKERS, 1)] * (period == 1) + [("MSGD", 1, 1)]
        _curves(table, axes, shown)
        axes.set(title=f"period {period}", xlabel="virtual seconds")
    panels[0].set_ylabel("test error")
    _legend(figure, panels)


def growth(table: Table, figure: Any) -> None:
    """Test error against virtual seconds, one panel a number of workers: the paper's figure 3."""
    numbers = numbers_of_workers(table, "EAMSGD", GROWTH["EAMSGD"])
    if not numbers:
        raise Missing("No run of EAMSGD at the period of the study of p is in the record.")
    figure.set_size_inches(2.7 * len(numbers) + 1.6, 2.9)
    panels = np.atleast_1d(figure.subplots(1, len(numbers), sharey=True))
    for axes, number in zip(panels, numbers, strict=True):
        _curves(table, axes, [*((name, number, period) for name, period in GROWTH.items()), ("MSGD", 1, 1)])
        axes.set(title=f"p = {number}", xlabel="virtual seconds")
    panels[0].set_ylabel("test error")
    _legend(figure, panels)


def _curves(table: Table, axes: Any, shown: Iterable[tuple[str, int, int]]) -> None:
    for method, workers, period in shown:
        try:
            one = best(table, method, workers, period)
        except Missing:
            continue
        errors = np.array(one.curves)
        axes.plot(one.seconds, errors.mean(0), color=COLORS[method], lw=1.4, label=method)
        axes.fill_between(one.seconds, errors.min(0), errors.max(0), color=COLORS[method], alpha=0.15, lw=0)
    axes.grid(alpha=0.25, lw=0.5)


def _legend(figure: Any, panels: Any) -> None:
    named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not named:
        raise Missing("No run for this picture is in the record.")
    figure.legend(named.values(), named.keys(), loc="outside right center", fontsize=7, frameon=False)


def rates(table: Table, figure: Any) -> None:
    """Best test error of every rate that was tried, one panel a method: how wide the range of good rates is."""
    figure.set_size_inches(8.4, 2.7)
    methods = ("EAMSGD", "EASGD", "DOWNPOUR")
    panels = figure.subplots(1, len(methods), sharey=True)
    for axes, method in zip(panels, methods, strict=True):
        for shade, period in zip(np.linspace(0.35, 1, len(PERIODS)), PERIODS, strict=True):
            rows = searched(table, method, WORKERS, period)
            found = [(row["settings"]["lr"], lowest(row["result"]["error"])) for row in rows]
            if not found:
                raise Missing(f"No run of {method} at period {period} is in the record.")
            axes.semilogx(
                *zip(*found, strict=True), "o-", ms=3, color=COLORS[method], alpha=shade, label=f"period {period}"
            )
        axes.set(title=method, xlabel="learning rate")
        axes.legend(fontsize=7, frameon=False)
        axes.grid(alpha=0.25, lw=0.5)
    panels[0].set_ylabel("best test error")


def speed_up(table: Table, figure: Any) -> None:
    """Virtual seconds to fixed test errors against the number of workers: the paper's figures 4 and 5."""
    alone = best(table, "MSGD", 1, 1)
    numbers = numbers_of_workers(table, "EAMSGD", GROWTH["EAMSGD"])
    figure.set_size_inches(8.4, 2.7)
    levels = levels_of(alone)
    panels = figure.subplots(1, len(levels), sharey=True)
    for axes, level in zip(np.atleast_1d(panels), levels, strict=True):
        for method in GROWTH:
            runs: list[Best] = [alone]
            for number in numbers:
                try:
                    runs.append(best(table, method, number, GROWTH[method]))
                except Missing:
                    continue
            seconds = [np.median(one.seconds_to(level)) for one in runs]
            reached = [(one.workers, second) for one, second in zip(runs, seconds, strict=True) if np.isfinite(second)]
            axes.plot(*zip(*reached, strict=True), "o-", ms=3, color=COLORS[method], label=method)
        axes.set(title=f"to {100 * level:.1f} %", xlabel="workers (1: MSGD)", xscale="log")
        axes.set_xticks([1, *numbers], [str(number) for number in (1, *numbers)])
        axes.minorticks_off()
        axes.grid(alpha=0.25, lw=0.5)
    np.atleast_1d(panels)[0].set_ylabel("virtual seconds")
    _legend(figure, np.atleast_1d(panels))


def admm(table: Table, figure: Any) -> None:
    """ADMM's spectral radius over figure 1's grid, and figure 2's path beside EASGD's."""
    maps, examples = table.where(study="admm map"), table.where(study="admm example")
    if not len(maps) or not len(examples):
        raise Missing("No trial of ADMM is in the record.")
    figure.set_size_inches(9.6, 2.9)
    panels = figure.subplots(1, len(maps) + 1)
    for axes, row in zip(panels, maps, strict=False):
        result = row["result"]
        radius = np.array(result["radius"])
        image = axes.pcolormesh(result["etas"], result["rhos"], radius, vmin=0.998, vmax=1.002, cmap="RdBu_r")
        axes.contour(result["etas"], result["rhos"], radius, levels=[1.0], colors="black", linewidths=0.8)
        axes.set(title=f"ADMM, p = {row['settings']['workers']}", xlabel="eta", ylabel="rho")
        axes.set_xticks([0.002, 0.006, 0.01])
        figure.colorbar(image, ax=axes, format="%.3f")
    result = min(examples, key=lambda row: row["settings"]["workers"])["result"]
    rounds = np.arange(len(result["admm"])) * result["every"]
    panels[-1].semilogy(rounds, result["admm"], color=COLORS["DOWNPOUR"], lw=0.8, label="ADMM")
    panels[-1].semilogy(rounds, np.maximum(result["easgd"], 1e-6), color=COLORS["EAMSGD"], lw=1.2, label="EASGD")
    panels[-1].set(title="eta = 0.001, rho = 2.5", xlabel="rounds", ylabel="distance of the center from 0")
    panels[-1].legend(fontsize=7, frameon=False)


PICTURES = (
    Picture(
        "The period, four workers",
        "Mean and range of the seeds, each method at its best rate. MSGD is one worker; a worker has a processor of "
        "its own.",
        periods,
    ),
    Picture(
        "The number of workers",
        "Elastic methods exchange every 10 steps, DOWNPOUR at every one. Mean and range of the seeds.",
        growth,
    ),
    Picture(
        "Seconds to a test error",
        "Medians of the seeds; a point is missing where most seeds do not get there.",
        speed_up,
    ),
    Picture("Every rate that was tried", "Four workers, the first seed.", rates),
    Picture(
        "ADMM and EASGD on a quadratic",
        "Red: the round's spectral radius is above 1. Right: the path from 1000 of the paper's example, p = 3.",
        admm,
    ),
)
