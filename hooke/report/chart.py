"""Curves as pictures: SVG that takes its colors from the page. matplotlib is imported when something is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from hooke.report.data import Series
from hooke.report.words import Metric, spell_percent, spell_short

AXES = {"seconds": "seconds since the start", "steps": "steps per worker", "examples": "examples, all workers"}
"""What a curve is drawn against: fields of `Series`."""

_PALETTE = (
    "#3f86c6",
    "#e0862a",
    "#2fa07a",
    "#cc5a86",
    "#8b73d6",
    "#a89a2b",
    "#3fb0c4",
    "#d2603c",
    "#8796a5",
    "#a06f4f",
)
INK, _MUTED, _RULE = "#010203", "#040506", "#070809"  # stand for colors that the page's light or dark theme decides
_THEME = {INK: "var(--ink)", _MUTED: "var(--muted)", _RULE: "var(--rule)"}
_STYLE = {
    "svg.fonttype": "none", "font.size": 8, "text.color": INK, "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED, "xtick.color": _RULE, "ytick.color": _RULE, "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": _RULE, "grid.linewidth": 0.6, "ytick.major.size": 0,
    "svg.hashsalt": "hooke", "axes.axisbelow": True, "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One line of a picture: its name, its color, and whether it stands out (the center)."""

    label: str
    color: str
    series: Series
    heavy: bool = False

    @property
    def window(self) -> int:
        """Over how many rows it is smoothed; a short curve is not."""
        rows = len(self.series.values)
        return 1 if rows < 60 else max(rows // 80 * 2 + 1, 7)


def thin(x: np.ndarray, y: np.ndarray, limit: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve: of every stretch its lowest and its highest, so that no peak is lost."""
    y = np.where(np.isfinite(y), y, np.nan)
    if len(y) <= limit:
        return x, y
    low, high = np.where(np.isnan(y), np.inf, y), np.where(np.isnan(y), -np.inf, y)
    parts = np.array_split(np.arange(len(y)), limit // 2)
    keep = [i for part in parts for i in sorted({int(part[low[part].argmin()]), int(part[high[part].argmax()])})]
    return x[keep], y[keep]


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """The running mean of the finite values among `window` neighbors; nan where `y` is not finite."""
    finite = np.isfinite(y)
    sums, counts = (np.convolve(part, np.ones(window), "same") for part in (np.where(finite, y, 0.0), finite * 1.0))
    return np.where(finite, sums / np.maximum(counts, 1.0), np.nan)


def y_limits(curves: Sequence[Curve], metric: Metric) -> tuple[float, float]:
    """The heights to draw: of all finite values, unless a few far outside would crush the rest."""
    values = np.concatenate([curve.series.finite for curve in curves])
    if not len(values):
        return 0.0, 1.0
    low, high = np.quantile(values, [0.05, 0.95])
    reach = (high - low) or np.inf
    low, high = max(values.min(), low - reach), min(values.max(), high + reach)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = float(low - margin), float(high + margin)
    return (max(low, 0.0), min(high, 1.01)) if metric.spell is spell_percent else (low, high)


def color(index: int, count: int) -> str:
    """The color of worker or run `index` of `count`: from a palette, or, where that is too short, a rainbow."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    if count <= len(_PALETTE):
        return _PALETTE[index]
    red, green, blue = hsv_to_rgb((index / count, 0.65, 0.75)).tolist()
    return to_hex((red, green, blue))


def draw(curves: Sequence[Curve], metric: Metric, axis: str, width: float) -> str:
    """One picture as inline SVG, `width` inches wide: `curves` of one metric against one of `AXES`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    places = np.concatenate([getattr(curve.series, axis) for curve in curves])
    first, longest = float(places.min(initial=np.inf)), float(places.max(initial=0.0))
    left = first - 0.02 * (longest - first) if 0.25 * longest < first < longest else 0.0
    units = {3600: "hours", 60: "minutes", 1: "seconds"} if axis == "seconds" else {1: "seconds"}
    size = next((size for size in units if longest > 3 * size), 1)
    with rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(width, 2.4), layout="constrained")
        axes = figure.add_subplot()
        limits = y_limits(curves, metric)
        axes.set(ylim=limits, xlim=(left / size, (longest + 0.02 * (longest - left)) / size or 1.0))
        for curve in curves:
            _draw_curve(axes, curve, getattr(curve.series, axis) / size, limits)
        axes.set_xlabel(AXES[axis].replace("seconds", units[size]), loc="right")
        for scale, spell in ((axes.xaxis, spell_short), (axes.yaxis, metric.spell)):
            scale.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            scale.set_major_formatter(FuncFormatter(lambda value, _, spell=spell: spell(value, digits=6)))
        return _svg(figure, f"{metric.label} against {AXES[axis]}")


def paint(draw: Callable[[Any], None], says: str) -> str:
    """What `draw` draws on a matplotlib Figure, 10 inches wide, as inline SVG; `says` describes it in words."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"axes.prop_cycle": f"cycler('color', {list(_PALETTE)})", "legend.frameon": False, "axes.titlesize": 8.5}
    with rc_context({**_STYLE, **style}):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        draw(figure)
        return _svg(figure, says)


def alone(svg: str) -> str:
    """A painted picture as a file of its own: colors that light and dark pages bear, and a font."""
    for variable, color in {"var(--ink)": "#6b7280", "var(--muted)": "#7f8a99", "var(--rule)": "#8f99a640"}.items():
        svg = svg.replace(variable, color)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)


def _draw_curve(axes: Any, curve: Curve, x: np.ndarray, limits: tuple[float, float]) -> None:
    y = curve.series.values
    if curve.window > 1:
        axes.plot(*thin(x, y), color=curve.color, linewidth=0.5, alpha=0.22, zorder=2)
        y = smooth(y, curve.window)
    width, front = (2.4, 4) if curve.heavy else (1.4, 3)
    dots = {"marker": "o" if len(y) <= 40 else "", "markersize": 1.6 * width}
    axes.plot(*thin(x, y), color=curve.color, linewidth=width, zorder=front, **dots)
    for i in curve.series.breaks:
        before = y[:i][np.isfinite(y[:i])]
        height = float(np.clip(before[-1] if len(before) else limits[0], *limits))
        axes.plot([x[i]], [height], "x", color=curve.color, markersize=8, markeredgewidth=2.2, clip_on=False, zorder=6)


def _svg(figure: Any, says: str) -> str:
    """The figure as SVG that stands inside the page: its fonts, its theme's colors, and no address of any kind."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    head, _, svg = buffer.getvalue().partition("<metadata>")
    svg = re.sub(r"<style.*?</style>", "", svg.partition("</metadata>")[2], count=1, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', head)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+| (?=\n)", r"\1", path[0]), svg)
    drop = (
        r"font-family: [^;]*; ",
        r' id="(?!m|p)[^"]*"(?=>)',
        r' transform="rotate\(-0 [^"]*"',
        r"(?<=\n) +",
        "xlink:",
    )
    svg = re.sub("|".join(drop), "", svg)
    for stand_in, theme in _THEME.items():
        svg = svg.replace(stand_in, theme)
    return f'<svg role="img" aria-label="{escape(says)}" {box[0] if box else ""}>{svg}'
