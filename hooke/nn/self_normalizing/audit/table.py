"""An audit as text and as a picture. matplotlib is imported when something is drawn."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from hooke.nn.self_normalizing.audit.finding import MEAN, VARIANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hooke.nn.self_normalizing.audit.report import AuditReport, LayerStatistics

WIDTH = 100
_NAME = 22

_COLUMNS = ("layer", "type", "omega", "tau", "mean", "variance", "after", "mean", "variance", "predicted", "gradient")
"""One line of the table: the layer, its weights, before its activation, the activation, after it, backward."""


def table(report: AuditReport, rows: int) -> str:
    """The layers as aligned text, then the findings or one sentence that there are none."""
    lines = [_COLUMNS, *(_line(layer) for layer in report.layers)]
    if len(report.layers) > rows:
        cut = len(report.layers) - rows + 1
        lines[1 + rows // 2 : 1 + rows // 2 + cut] = [(f"... {cut} more", *[""] * (len(_COLUMNS) - 1))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    left = {"layer", "type", "after"}
    aligned = [
        "  ".join(
            cell.ljust(width) if title in left else cell.rjust(width)
            for cell, width, title in zip(line, widths, _COLUMNS, strict=True)
        ).rstrip()
        for line in lines
    ]
    head = f"Inputs: mean {_number(report.input_mean)}, variance {_number(report.input_variance)}"
    return "\n".join([head, "", aligned[0], "-" * max(map(len, aligned)), *aligned[1:], "", *_told(report)])


def _line(layer: LayerStatistics) -> tuple[str, ...]:
    return (
        _short(layer.name, _NAME),
        _short(layer.type, 12),
        _signed(layer.omega),
        _number(layer.tau),
        _signed(layer.mean),
        _number(layer.variance),
        _short(layer.activation, 8),
        _signed(layer.activation_mean),
        _number(layer.activation_variance),
        _number(layer.predicted_variance),
        _number(layer.gradient_variance),
    )


def _short(name: str, width: int) -> str:
    """The name, its beginning cut where it is too long: the end tells layers apart."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _number(value: float) -> str:
    """A number that can't be negative, in at most 8 characters; "-" where there is none."""
    if math.isfinite(value) and value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return _signed(value)


def _signed(value: float) -> str:
    """A number around zero, in at most 8 characters; "-" where there is none."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 1e5:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _told(report: AuditReport) -> list[str]:
    if not report.findings:
        return ["No findings."]
    count = len(report.findings)
    lines = [f"{count} finding{'s' * (count > 1)}:"]
    for i, finding in enumerate(report.findings, 1):
        lines += textwrap.wrap(f"{i}. {finding}", WIDTH, subsequent_indent="   ", break_on_hyphens=False)
    return lines


_PANELS = (
    ("mean after the activation", "activation_mean", "mean", MEAN),
    ("variance after the activation", "activation_variance", "variance", VARIANCE),
    ("gradient variance", "gradient_variance", "", None),
)


def picture(report: AuditReport) -> Figure:
    """Three panels over depth: means, variances, gradient variances; theorem 1's domain as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    selu = any(layer.activation == "selu" for layer in report.layers)
    for axes, (title, after, before, band) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        depth = range(1, len(report.layers) + 1)
        values = [_after(layer, after, before) for layer in report.layers]
        axes.plot(depth, values, "o-", color="#3f86c6", markersize=3, linewidth=1.2, label="measured")
        if band and selu:
            axes.axhspan(*band, color="#2fa07a", alpha=0.18, linewidth=0, label="theorem 1")
            predicted = [getattr(layer, f"predicted_{before}") for layer in report.layers]
            axes.plot(depth, predicted, "x", color="#e0862a", markersize=4, label="predicted")
            axes.legend(fontsize=7, frameon=False)
        if "variance" in title and any(0 < value < math.inf for value in values):
            axes.set_yscale("log")
        _label(axes, title)
    return figure


def _after(layer: LayerStatistics, after: str, before: str) -> float:
    """The value after the activation, or after the layer itself where no activation follows."""
    value = getattr(layer, after)
    value = getattr(layer, before) if before and math.isnan(value) else value
    return value if math.isfinite(value) else math.nan


def _label(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("layer", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
