"""Advice as text and as a picture. matplotlib is imported when something is drawn."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from hooke.plan.advice import METHODS, WIDTHS, Advice, Row
from hooke.plan.quantity import spell, spell_seconds
from hooke.stability import rounded_down

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 100
_BLUE, _ORANGE, _GRAY = "#3f86c6", "#e0862a", "#8796a5"


def table(advice: Advice) -> str:
    """The judgment, one exchange, what hides it, then a line for each number of workers."""
    unit = "example" if advice.batch else "step"
    head = (
        "workers",
        "stable",
        "lr * curvature",
        "speed-up",
        f"{unit}s/s",
        f"bytes/{unit}",
        "overlap:",
        "period",
        "hidden",
    )
    above = ("", "", "below", "", "", "a worker", "speed-up", "", "from")
    lines = [head, above, *(_cells(row, advice) for row in advice.rows())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    aligned.insert(2, "-" * max(map(len, aligned)))
    last = "Speed-up counts examples. How many of them a given accuracy takes is for a run to tell."
    said, cost = (
        [wrapped for line in lines for wrapped in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]
        for lines in (_judgment(advice), _exchange(advice))
    )
    return "\n".join([*said, "", *cost, "", *(line.rstrip() for line in aligned), "", last])


def _cells(row: Row, advice: Advice) -> tuple[str, ...]:
    stable = {None: "?", True: "yes", False: "NO"}[row.is_stable]
    return (
        f"{row.workers}{' *' if row.workers == advice.workers else '  '}",
        stable,
        rounded_down(row.border),
        f"{row.speed_up:.4g}",
        spell(row.examples_per_second),
        spell(row.bytes_per_example, "B"),
        f"{row.overlap_speed_up:.4g}",
        _steps(row.overlap_period),
        _steps(row.hiding_period),
    )


def _steps(period: float) -> str:
    return f"{period:.0f}" if period < 1e6 else spell(period)


def _judgment(advice: Advice) -> list[str]:
    stability = advice.stability()
    momentum = f", momentum {advice.momentum:g}" if advice.method == "eamsgd" else ""
    workers = f"{advice.workers} worker{'s' if advice.workers > 1 else ''}"
    what = f"{METHODS[advice.method]}{momentum}, {workers}, period {advice.star.period}:"
    overlap = advice.overlap_border()
    if not advice.is_judged:
        missing = [f"--{name}" for name in ("lr", "curvature") if getattr(advice, name) is None]
        lines = [f"{what} stable while lr * curvature < {rounded_down(stability.border)}."]
        lines.append(f"Give {' and '.join(missing)} to have it judged.")
    elif stability.is_stable:
        lines = [f"{what} stable. The learning rate could be {rounded_down(stability.margin)} times as large."]
    else:
        lines = [f"{what} NOT STABLE. {stability.remedy}"]
    if overlap is not None and overlap < min(stability.border, _product(advice, stability.border)):
        lines.append(f"With overlap it is sure to be stable only while lr * curvature < {rounded_down(overlap)}.")
    if overlap is None:
        lines.append("With overlap its stability is not known: use easgd or eamsgd there.")
    return lines


def _product(advice: Advice, otherwise: float) -> float:
    """lr * curvature, if it is known."""
    return otherwise if advice.lr is None or advice.curvature is None else advice.lr * advice.curvature


def _exchange(advice: Advice) -> list[str]:
    star = advice.star
    sent = spell(star.bytes_each_way, "B")
    codecs = [advice.exchange(width) for width in WIDTHS if not advice.exchange(width)["sent_today"]]
    would = "; ".join(
        f"{one['values']} {spell_seconds(one['seconds'])}, period {_steps(one['hiding_period'])}" for one in codecs
    )
    hidden, real = star.hiding_period(advice.workers), star.real_period(advice.workers, overlap=True)
    longer = "" if real == star.period else f"; at period {star.period} the real one would be {_steps(real)}"
    return [
        f"One exchange: {sent} up, {sent} down, {spell_seconds(star.exchange_seconds)}. "
        f"A step: {spell_seconds(star.step_seconds)}.",
        f"With overlap it is hidden from period {_steps(hidden)} on{longer}.",
        f"Fewer bits a value, which hooke does not send yet, would make that: {would}.",
        f"Without overlap {star.saturated_from} workers fill the center's link: more would bring nothing.",
    ]


def picture(advice: Advice) -> Figure:
    """Two panels: speed-up against workers; the border of lr * curvature against the period, with this setting."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--picture needs matplotlib. Got none. Install it: pip install 'hooke[report]'.") from error

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    speed, border = figure.subplots(1, 2)
    rows = advice.rows()
    workers = [row.workers for row in rows]
    speed.plot(workers, [row.overlap_speed_up for row in rows], color=_ORANGE, label="with overlap")
    speed.plot(workers, [row.speed_up for row in rows], "o-", color=_BLUE, markersize=3, label="waiting for exchanges")
    speed.axvline(advice.star.saturated_from, color=_GRAY, linewidth=0.8, label="the center's link is full")
    _label(speed, "workers", "speed-up over one worker alone", advice.workers)
    speed.set_yscale("log", base=2)
    periods = sorted({2**power for power in range(11)} | {advice.star.period})
    borders = [advice.stability(period=period).border for period in periods]
    border.plot(periods, borders, "o-", color=_BLUE, markersize=3)
    border.fill_between(
        periods, borders, color=_BLUE, alpha=0.12, linewidth=0, label=f"{METHODS[advice.method]} is stable"
    )
    if advice.lr is not None and advice.curvature is not None:
        border.plot(advice.star.period, advice.lr * advice.curvature, "X", color=_ORANGE, label="learning rate given")
    if advice.is_elastic:
        border.set_ylim(bottom=0)
    else:
        border.set_yscale("log")
    _label(border, "communication period", "learning rate * curvature", advice.star.period)
    for axis in (speed.xaxis, speed.yaxis, border.xaxis):
        axis.set_major_formatter("{x:g}")
    return figure


def _label(axes: Any, x: str, y: str, given: int) -> None:
    axes.axvline(given, color=_BLUE, linewidth=0.8, linestyle="--", label="as given")
    axes.set_xscale("log", base=2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
