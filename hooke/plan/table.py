"""Advice as text and as a picture. matplotlib is imported when something is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hooke.plan.advice import Advice, Row
from hooke.plan.measurement import Copy, Measured
from hooke.plan.quantity import spell, spell_seconds
from hooke.plan.ring import Ring
from hooke.plan.star import WIDTHS, Star
from hooke.stability import rounded_down

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 100
_BLUE, _ORANGE, _GRAY = "#3f86c6", "#e0862a", "#8796a5"


def table(advice: Advice) -> str:
    """What was measured, the judgment, one exchange, what hides it, then a line for each number of workers."""
    unit = _unit(advice.batch)
    head = ("workers", "stable", "lr * curvature", "speed-up", f"{unit}s/s", f"bytes/{unit}")
    above = ("", "", "below", "", "", "a worker")
    overlapped = isinstance(advice.network, Star)
    head += ("overlap:", "period", "hidden") if overlapped else ("waits under",)
    above += ("speed-up", "", "from") if overlapped else ("1/10 from",)
    lines = [head, above, *(_cells(row, advice) for row in advice.rows())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    aligned.insert(2, "-" * max(map(len, aligned)))
    last = "Speed-up counts examples. How many of them a given accuracy takes is for a run to tell."
    parts = [_measurement(advice), _judgment(advice), _exchange(advice)]
    wrapped = [
        [piece for line in part for piece in textwrap.wrap(line, WIDTH, subsequent_indent="  ")] for part in parts
    ]
    text = "\n\n".join("\n".join(part) for part in wrapped if part)
    return "\n".join([text, "", *(line.rstrip() for line in aligned), "", last])


def _cells(row: Row, advice: Advice) -> tuple[str, ...]:
    stable = {None: "?", True: "yes", False: "NO"}[row.is_stable]
    cells = (
        f"{row.workers}{' *' if row.workers == advice.workers else '  '}",
        stable,
        "?" if row.border is None else rounded_down(row.border),
        f"{row.speed_up:.4g}",
        spell(row.examples_per_second),
        spell(row.bytes_per_example, "B"),
    )
    if row.overlap_speed_up is None or row.overlap_period is None:
        return (*cells, _steps(row.hiding_period))
    return (*cells, f"{row.overlap_speed_up:.4g}", _steps(row.overlap_period), _steps(row.hiding_period))


def _steps(period: float) -> str:
    return f"{period:.0f}" if period < 1e6 else spell(period)


def _measurement(advice: Advice) -> list[str]:
    if advice.measured is None:
        return []
    alone, period = advice.measured.alone, advice.network.period
    momentum = f", momentum {alone.momentum:g}" if alone.momentum else ""
    changing = " and changing: give the largest by --lr" if alone.lr_changes else ""
    own = "auto" if alone.automatic else alone.period
    lines = [
        f"{advice.measured.script}, {alone.steps} steps on this machine: {alone.rule}, period {own}, "
        f"{alone.optimizer} with lr {alone.lr:.4g}{changing}{momentum}, {alone.parameters:,} values on {alone.device}."
    ]
    lines.append(_here(advice.measured, (alone,), period))
    if advice.measured.together:
        lines.append(_here(advice.measured, advice.measured.together, period))
    is_asked = alone.curvatures or alone.curvature_failure is not None
    return [*lines, *([_curvature(advice.measured)] if is_asked else [])]


def _here(measured: Measured, copies: Sequence[Copy], period: int) -> str:
    """One or several processes at once on this machine."""
    seconds = sum(copy.step_seconds or 0.0 for copy in copies) / len(copies)
    waits = [copy.exchange_seconds for copy in copies if copy.exchange_seconds is not None]
    wait = f", an exchange {spell_seconds(sum(waits) / len(waits))}" if waits else ""
    who = f"{_count(len(copies), 'worker')}, {_count(copies[0].threads, 'thread')} each"
    rate = measured.examples_per_second(len(copies), period) or 0.0
    return f"Here {who}: a step {spell_seconds(seconds)}{wait}; {spell(rate)} {_unit(copies[0].batch)}s/s."


def _unit(batch: float | None) -> str:
    return "step" if batch is None else "example"


def _curvature(measured: Measured) -> str:
    top, copy = measured.curvature, measured.alone
    if top is None:
        return f"The curvature could not be measured: {copy.curvature_failure}. Give it by --curvature."
    values = [value for place in copy.curvatures for value in place]
    unsure = f", give or take {copy.curvature_doubt:.0%}," if copy.curvature_doubt > 0.01 else ""
    return (
        f"Curvature {top:.3g}{unsure} in the middle of single batches ({min(values):.3g} to {max(values):.3g}); it "
        "changes while a run learns."
    )


def _judgment(advice: Advice) -> list[str]:
    momentum = f", momentum {advice.momentum:g}" if advice.method == "eamsgd" else ""
    what = f"{advice.title}{momentum}, {_count(advice.workers, 'worker')}, period {advice.network.period}:"
    if not advice.has_border:
        return [f"{what} not judged. {advice.unjudged}"]
    stability, overlap = advice.stability(), advice.overlap_border()
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
    if overlap is None and not advice.at_once:
        lines.append("With overlap its stability is not known: use easgd or eamsgd there.")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _product(advice: Advice, otherwise: float) -> float:
    """lr * curvature, if it is known."""
    return otherwise if advice.lr is None or advice.curvature is None else advice.lr * advice.curvature


def _exchange(advice: Advice) -> list[str]:
    network = advice.network
    sent = spell(network.sent_bytes(advice.workers), "B")
    narrow = [advice.exchange(codec) for codec in WIDTHS if codec != "float32"]
    fewer = "; ".join(
        f"{one['values']} {spell_seconds(one['seconds'])}, period {_steps(one['hiding_period'])}" for one in narrow
    )
    one = (
        f"One exchange over links of {spell(network.bandwidth, 'bit/s')}: {sent} up, {sent} down, "
        f"{spell_seconds(network.wait_seconds(advice.workers))}. A step: {spell_seconds(network.step_seconds)}."
    )
    if isinstance(network, Ring) and advice.workers == 1:
        return ["One rank alone exchanges with nobody."]
    hidden = network.hiding_period(advice.workers)
    if not isinstance(network, Star):
        waits = f"All ranks wait for it: less than a tenth of their time from period {_steps(hidden)} on."
        would = f"Fewer bits a value, which ranks that exchange at once don't send yet, would make that: {fewer}."
        return [one, waits, would]
    real = network.real_period(advice.workers, overlap=True)
    longer = "" if real == network.period else f"; at period {network.period} the real one would be {_steps(real)}"
    return [
        one,
        f"With overlap it is hidden from period {_steps(hidden)} on{longer}.",
        f"A remote center's codec makes that: {fewer}.",
        f"Without overlap {network.saturated_from} workers fill the center's link: more would bring nothing.",
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
    if isinstance(advice.network, Star):
        speed.plot(workers, [row.overlap_speed_up for row in rows], color=_ORANGE, label="with overlap")
        speed.axvline(advice.network.saturated_from, color=_GRAY, linewidth=0.8, label="the center's link is full")
    speed.plot(workers, [row.speed_up for row in rows], "o-", color=_BLUE, markersize=3, label="waiting for exchanges")
    _label(speed, "workers", "speed-up over one worker alone", advice.workers)
    speed.set_yscale("log", base=2)
    _draw_border(border, advice)
    for axis in (speed.xaxis, speed.yaxis, border.xaxis):
        axis.set_major_formatter("{x:g}")
    return figure


def _draw_border(border: Any, advice: Advice) -> None:
    if not advice.has_border:
        border.set_axis_off()
        border.text(0.5, 0.5, textwrap.fill(advice.unjudged, 40), ha="center", va="center", transform=border.transAxes)
        return
    periods = sorted({2**power for power in range(11)} | {advice.network.period})
    borders = [advice.stability(period=period).border for period in periods]
    border.plot(periods, borders, "o-", color=_BLUE, markersize=3)
    border.fill_between(periods, borders, color=_BLUE, alpha=0.12, linewidth=0, label=f"{advice.title} is stable")
    if advice.lr is not None and advice.curvature is not None:
        border.plot(
            advice.network.period, advice.lr * advice.curvature, "X", color=_ORANGE, label="learning rate given"
        )
    if advice.is_elastic:
        border.set_ylim(bottom=0)
    else:
        border.set_yscale("log")
    _label(border, "communication period", "learning rate * curvature", advice.network.period)


def _label(axes: Any, x: str, y: str, given: int) -> None:
    axes.axvline(given, color=_BLUE, linewidth=0.8, linestyle="--", label="as given")
    axes.set_xscale("log", base=2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
