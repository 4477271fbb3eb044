"""Rows of one or several runs -> one self-contained HTML page with pictures. No torch, no scripts, nothing fetched.

`read_run` computes, on plain numbers; the drawing below it only looks at what `read_run` returned. matplotlib and
jinja2 come with the extra `hooke[report]` and are imported when a page is written, not before.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hooke.record import Row, read
from hooke.run import RunDirectory

Who = int | str
Groups = Mapping[tuple[Who, str], list[Row]]

# ------------------------------------------------------------------------------------------------ what is computed


@dataclass(frozen=True)
class Series:
    """One curve: `values[i]` at three places on the way there, float arrays of one length.

    Args:
        seconds: Since the run started.
        steps: Optimizer steps of the worker that wrote the row.
        examples: Training examples that all workers together had used by then.
        values: May be nan or infinite.
    """

    seconds: np.ndarray
    steps: np.ndarray
    examples: np.ndarray
    values: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        """The finite values, in order."""
        return self.values[np.isfinite(self.values)]

    @property
    def breaks(self) -> np.ndarray:
        """Where a stretch of values that are not finite begins (indices)."""
        broken = ~np.isfinite(self.values)
        return np.flatnonzero(broken & ~np.concatenate([[False], broken[:-1]]))


@dataclass(frozen=True)
class WorkerSummary:
    """What one worker did, in numbers; seconds are counted from its first row to its last.

    Args:
        worker: Its number.
        steps: Optimizer steps taken.
        examples: Training examples used.
        examples_per_second: Between its first and last row of examples; `None` with fewer than two.
        last_loss: Its last training loss, which may be nan; `None` where it wrote none.
        exchanges: How many it timed.
        seconds: From its first row to its last.
        waiting: Seconds that exchanges held up its training loop.
        background: Seconds of exchanges that ran beside its training.
        down: Seconds between a crash and the row that says it was started again.
        bytes_sent: Toward the center.
        bytes_received: From the center.
        missed: Exchanges that did not happen.
        refused: Exchanges that the center refused.
        restarts: How often its process was started again.
    """

    worker: Who
    steps: int
    examples: int
    examples_per_second: float | None
    last_loss: float | None
    exchanges: int
    seconds: float
    waiting: float
    background: float
    down: float
    bytes_sent: float
    bytes_received: float
    missed: int
    refused: int
    restarts: int

    @property
    def computing(self) -> float:
        """Seconds that it neither waited nor was down."""
        return max(self.seconds - self.waiting - self.down, 0.0)


@dataclass(frozen=True)
class Alert:
    """One thing that went wrong, in a sentence that names the worker (`worker` is `None` where it is the run's)."""

    worker: Who | None
    text: str
    serious: bool = True


@dataclass(frozen=True)
class RunData:
    """One run as numbers, ready to draw.

    Args:
        name: Its name in `run.json`, or its folder's.
        about: Everything in `run.json`.
        workers: One summary a worker, in order.
        series: Row name -> who (a worker's number or `"center"`) -> its curve.
        alerts: What went wrong.
    """

    name: str
    about: dict[str, Any]
    workers: tuple[WorkerSummary, ...]
    series: dict[str, dict[Who, Series]]
    alerts: tuple[Alert, ...]

    @property
    def seconds(self) -> float:
        """Seconds from the start of the run to its last row."""
        return max(float(s.seconds[-1]) for curves in self.series.values() for s in curves.values())

    @property
    def steps(self) -> int:
        """Optimizer steps of the worker that took most."""
        return max((worker.steps for worker in self.workers), default=0)

    @property
    def examples(self) -> int:
        """Training examples that all workers used."""
        return sum(worker.examples for worker in self.workers)

    def lead(self, name: str) -> tuple[str, Series] | None:
        """Whose curve stands for the run: the center's, the only worker's, or the average of the workers."""
        curves = self.series.get(name, {})
        if "center" in curves:
            return "the center", curves["center"]
        if len(curves) == 1:
            return next((f"worker {who}", series) for who, series in curves.items())
        return ("the workers on average", average(list(curves.values()))) if curves else None


def read_run(directory: str | Path) -> RunData:
    """Read a run directory: `run.json` and `workers/*.jsonl`.

    Raises:
        FileNotFoundError: There is no such directory, or no `run.json` in it.
        ValueError: `run.json` is no JSON object, or no worker left a row.
    """
    files = RunDirectory(Path(directory))
    about = _about(files)
    groups = group(row for path in files.all_rows() for row in read(path))
    if not groups:
        raise ValueError(
            f"write_report: {files.path}/workers/*.jsonl must hold rows. Got none. "
            "Let the run take a few steps first, or write rows with hooke.Record."
        )
    numbers = {int(path.stem) if path.stem.isdigit() else path.stem for path in files.all_rows()}
    numbers |= {who for who, _ in groups if who != "center"}
    workers = tuple(summarize(groups, who) for who in sorted(numbers, key=lambda who: (isinstance(who, str), who)))
    curves: dict[str, dict[Who, Series]] = {}
    for who, name in sorted(groups, key=lambda key: (isinstance(key[0], str), key[0])):
        curves.setdefault(name, {})[who] = _series(groups, who, name)
    name = str(about.get("name") or files.path.resolve().name)
    return RunData(name, about, workers, curves, tuple(find_alerts(about, groups, workers)))


def _about(files: RunDirectory) -> dict[str, Any]:
    if not files.description.is_file():
        what = "a folder without one" if files.path.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"write_report: a run directory must hold run.json. Got {files.path}: {what}. "
            "Give the directory that `hooke run` printed, e.g. runs/NAME."
        )
    try:
        about = json.loads(files.description.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        about = f"{error}"
    if isinstance(about, dict):
        return about
    raise ValueError(
        f"write_report: {files.description} must hold one JSON object. Got: {about}. "
        "Repair the file, or put {} into it: every key is optional."
    )


def group(rows: Iterable[Row]) -> dict[tuple[Who, str], list[Row]]:
    """Rows by whom they are about and by name, each list in the order of time."""
    groups: dict[tuple[Who, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["worker"], row["name"]), []).append(row)
    return {key: sorted(group, key=lambda row: row["t"]) for key, group in groups.items()}


def _column(groups: Groups, who: Who, name: str, field: str = "value") -> np.ndarray:
    return np.array([row[field] for row in groups.get((who, name), [])], dtype=float)


def examples_by(groups: Groups, seconds: np.ndarray) -> np.ndarray:
    """Training examples that all workers together had used by each of `seconds`: the sum of their latest counts."""
    total = np.zeros(len(seconds))
    for who, name in groups:
        if name == "examples" and who != "center":
            counts = np.concatenate([[0.0], np.fmax.accumulate(_column(groups, who, name))])
            total += counts[np.searchsorted(_column(groups, who, name, "t"), seconds, side="right")]
    return total


def _series(groups: Groups, who: Who, name: str) -> Series:
    seconds = _column(groups, who, name, "t")
    steps = _column(groups, who, name, "step")
    return Series(seconds, steps, examples_by(groups, seconds), _column(groups, who, name))


def summarize(groups: Groups, who: Who) -> WorkerSummary:
    """What worker `who` did, from the rows of its run."""
    times = np.sort([row["t"] for (about, _), rows in groups.items() if about == who for row in rows])
    steps = [row["step"] for (about, _), rows in groups.items() if about == who for row in rows]
    examples, at = _column(groups, who, "examples"), _column(groups, who, "examples", "t")
    losses, restarted = _column(groups, who, "loss"), _column(groups, who, "restarted", "t")
    waiting = float(_column(groups, who, "wait_seconds").sum())
    exchanging = _column(groups, who, "exchange_seconds")
    before = [times[times < t][-1] if (times < t).any() else t for t in restarted]
    moving = len(at) > 1 and at[-1] > at[0]
    return WorkerSummary(
        worker=who,
        steps=max(steps, default=0),
        examples=int(examples.max(initial=0)),
        examples_per_second=float((examples[-1] - examples[0]) / (at[-1] - at[0])) if moving else None,
        last_loss=float(losses[-1]) if len(losses) else None,
        exchanges=len(exchanging),
        seconds=float(times[-1] - times[0]) if len(times) else 0.0,
        waiting=waiting,
        background=max(float(exchanging.sum()) - waiting, 0.0),
        down=float(sum(restarted - before)),
        bytes_sent=float(_column(groups, who, "bytes_sent").sum()),
        bytes_received=float(_column(groups, who, "bytes_received").sum()),
        missed=int(_column(groups, who, "missed").sum()),
        refused=int(_column(groups, who, "refused").sum()),
        restarts=int(_column(groups, who, "restarted").max(initial=0)),
    )


def find_alerts(about: Mapping[str, Any], groups: Groups, workers: Sequence[WorkerSummary]) -> list[Alert]:
    """Every refusal, missed exchange, restart, value that is not finite and recorded failure, by name."""
    alerts = []
    if about.get("exit_code") not in (None, 0):
        alerts.append(Alert(None, f"the run ended with exit code {about['exit_code']}"))
    states = about.get("workers_state")
    for who, state in states.items() if isinstance(states, dict) else ():
        if not re.match(r"(running|finished|done|ok|left|stopped|exit(ed)?( with)?( code)? 0)\b", str(state), re.I):
            alerts.append(Alert(int(who) if str(who).isdigit() else str(who), f"worker {who}: {state}"))
    started = about.get("workers")
    silent = set(range(started)) if isinstance(started, int) and started <= 4096 else set()
    silent = (silent | {w.worker for w in workers}) - {who for who, _ in groups}
    alerts += [Alert(who, f"worker {who} left no rows") for who in sorted(silent, key=str)]
    for w in workers:
        alerts += _troubles(groups, w)
    alerts += [
        Alert(who, f"the {name.replace('_', ' ')} of {_called(who)} was not finite from step {rows[i]['step']} on "
              f"({rows[i]['value']}; {_times(len(series.values) - len(series.finite), 'row')})")
        for (who, name), rows in groups.items() if name in METRICS
        for series in [_series(groups, who, name)] for i in series.breaks[:1]
    ]  # fmt: skip
    return sorted(
        alerts, key=lambda alert: (alert.worker is not None, isinstance(alert.worker, str), str(alert.worker))
    )


def _troubles(groups: Groups, w: WorkerSummary) -> list[Alert]:
    def first(name: str) -> str:
        row = next(row for row in groups[w.worker, name] if row["value"])
        return f"first at step {row['step']}" + (f": {row['note']}" if row.get("note") else "")

    alerts = []
    if w.refused:
        alerts.append(Alert(w.worker, f"worker {w.worker} was refused {_times(w.refused)}, {first('refused')}"))
    if w.missed:
        exchanges = _times(w.missed, "exchange")
        alerts.append(Alert(w.worker, f"worker {w.worker} missed {exchanges}, {first('missed')}", serious=False))
    if w.restarts:
        down = f"; {spell_seconds(w.down)} went by without it" if w.down else ""
        text = f"worker {w.worker} was started again {_times(w.restarts)}, {first('restarted')}{down}"
        alerts.append(Alert(w.worker, text, serious=False))
    return alerts


def _called(who: Who) -> str:
    return "the center" if who == "center" else f"worker {who}"


def _times(count: int, what: str = "time") -> str:
    return "once" if count == 1 and what == "time" else f"{count:,} {what}{'' if count == 1 else 's'}"


def average(curves: Sequence[Series], bins: int = 200) -> Series:
    """Curves of several workers as one: the mean of the finite values in up to `bins` equal spans of seconds."""
    fields = [np.concatenate([getattr(curve, field) for curve in curves]) for field in Series.__annotations__]
    fields = [field[np.isfinite(fields[-1])] for field in fields]
    seconds = fields[0]
    if not len(seconds):
        return Series(*fields)
    bins = min(bins, max(min(len(curve.values) for curve in curves), 1))
    span = np.ptp(seconds) or 1.0
    index = np.minimum(((seconds - seconds.min()) / span * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    means = [np.bincount(index, field, bins)[counts > 0] / counts[counts > 0] for field in fields]
    return Series(*means)


def thin(x: np.ndarray, y: np.ndarray, limit: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve: of every stretch its lowest and its highest, so that no peak is lost."""
    y = np.where(np.isfinite(y), y, np.nan)
    if len(y) <= limit:
        return x, y
    keep = []
    for part in np.array_split(np.arange(len(y)), limit // 2):
        low, high = np.where(np.isnan(y[part]), np.inf, y[part]), np.where(np.isnan(y[part]), -np.inf, y[part])
        keep += sorted({int(part[low.argmin()]), int(part[high.argmax()])})
    return x[keep], y[keep]


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """The running mean of the finite values among `window` neighbors; nan where `y` is not finite."""
    finite, ones = np.isfinite(y), np.ones(window)
    sums = np.convolve(np.where(finite, y, 0.0), ones, "same")[: len(y)]
    counts = np.convolve(finite.astype(float), ones, "same")[: len(y)]
    return np.where(finite, sums / np.maximum(counts, 1.0), np.nan)


def y_limits(values: np.ndarray) -> tuple[float, float]:
    """The span of finite `values` to draw: all of it, unless a few values far outside would crush the rest."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.quantile(values, [0.05, 0.95])
    reach = 0.6 * (high - low) or np.inf
    low, high = max(values.min(), low - reach), min(values.max(), high + reach)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - margin), float(high + margin)


# ------------------------------------------------------------------------------------------------------ how it is said


def spell_seconds(seconds: float) -> str:
    """A duration to read: `0.42 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"


def spell_short(value: float, unit: str = "") -> str:
    """A number to three digits: `0.042`, `640`, `12.3 k`, `1.2 M`; with a unit, `12.3 kB`."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return f"{value / power:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def spell_percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.4g} %"


@dataclass(frozen=True)
class Metric:
    """How a row is called, written, and which end of it is the good one."""

    label: str
    about: str
    best: Callable[[np.ndarray], Any] = np.max
    best_word: str = "at most"
    spell: Callable[[float], str] = spell_short


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", "share of held-out examples classified correctly", np.max, "at best", spell_percent),
    "test_loss": Metric("Held-out loss", "mean loss on held-out examples", np.min, "at best"),
    "loss": Metric("Training loss", "mean loss of the training batches since the last row", np.min, "at best"),
    "center_distance": Metric("Distance from the center", "Euclidean distance of a worker's parameters from x\u0303"),
    "staleness": Metric("Staleness", "exchanges of other workers since a worker's last one"),
}
"""The rows that are drawn as curves, in the order of the page."""

AXES = {"seconds": "seconds since the start", "steps": "steps per worker", "examples": "examples, all workers"}

# ------------------------------------------------------------------------------------------------------ how it is drawn

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
_INK, _MUTED, _RULE = "#010203", "#040506", "#070809"  # stand for colors that the page's light or dark theme decides
_THEME = {_INK: "var(--ink)", _MUTED: "var(--muted)", _RULE: "var(--rule)"}
_STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "text.color": _INK, "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED, "xtick.color": _RULE, "ytick.color": _RULE, "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": _RULE, "grid.linewidth": 0.6, "ytick.major.size": 0,
    "axes.axisbelow": True, "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round", "path.simplify": False,
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One line of a picture: its legend, its color, and whether it stands out (the center)."""

    label: str
    color: str
    series: Series
    heavy: bool = False


def color(index: int, count: int) -> str:
    """The color of worker or run `index` of `count`: a palette, or, where that is too short, a rainbow."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    return _PALETTE[index] if count <= len(_PALETTE) else to_hex(hsv_to_rgb((index / count, 0.65, 0.75)))


def draw(curves: Sequence[Curve], metric: Metric, axis: str, width: float) -> str:
    """One picture as inline SVG, `width` inches wide: `curves` of one metric against one of `AXES`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    longest = max((float(getattr(curve.series, axis).max(initial=0)) for curve in curves), default=0)
    size = next((size for size in (3600, 60) if longest > 3 * size), 1) if axis == "seconds" else 1
    with rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(width, 2.75), layout="constrained")
        axes = figure.add_subplot()
        limits = _limits(curves, metric)
        axes.set_ylim(*limits)
        for curve in curves:
            _draw_line(axes, curve, getattr(curve.series, axis) / size, limits)
        unit = {3600: "hours", 60: "minutes", 1: "seconds"}[size]
        axes.set_xlabel(AXES[axis].replace("seconds", unit), loc="right")
        for scale, spell in ((axes.xaxis, spell_short), (axes.yaxis, metric.spell)):
            scale.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            scale.set_major_formatter(FuncFormatter(lambda value, _, spell=spell: spell(value)))
        return _svg(figure, f"{metric.label} against {AXES[axis]}")


def _limits(curves: Sequence[Curve], metric: Metric) -> tuple[float, float]:
    low, high = y_limits(np.concatenate([curve.series.finite for curve in curves]))
    return (max(low, 0.0), min(high, 1.01)) if metric.spell is spell_percent else (low, high)


def _draw_line(axes: Any, curve: Curve, x: np.ndarray, limits: tuple[float, float]) -> None:
    y = curve.series.values
    look = {"color": curve.color, "zorder": 4 if curve.heavy else 3}
    few = "o" if len(y) <= 40 else ""
    window = _window(curve)
    if window > 1:
        axes.plot(*thin(x, y), color=curve.color, linewidth=0.6, alpha=0.25, zorder=2)
        y = smooth(y, window)
    width = 2.4 if curve.heavy else 1.4
    axes.plot(*thin(x, y), linewidth=width, marker=few, markersize=1.6 * width, **look)
    for i in curve.series.breaks:
        before = y[:i][np.isfinite(y[:i])]
        at = np.clip(before[-1] if len(before) else limits[0], *limits)
        axes.plot([x[i]], [at], marker="x", markersize=8, markeredgewidth=2.2, clip_on=False, **look | {"zorder": 6})


def _window(curve: Curve) -> int:
    """Over how many rows a noisy curve is smoothed; the center's is never."""
    return 1 if curve.heavy or len(curve.series.values) < 60 else max(len(curve.series.values) // 80 * 2 + 1, 7)


def _svg(figure: Any, says: str) -> str:
    """The figure as SVG that stands inside the page: its fonts, its theme's colors, and no address of any kind."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index(">", svg.index("<svg")) + 1 :], flags=re.S
    )
    svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d)\d+", r"\1", d[0]).replace(" \n", " "), svg)
    for old, new in ((r"font-family: [^;]*; ", ""), (r'<g id="[^"]*"', "<g"), (r' transform="rotate\(-0 [^"]*"', ""),
                     ("xlink:href", "href"), (r"\n\s*", "\n"), *_THEME.items()):  # fmt: skip
        svg = re.sub(old, new, svg)
    return f'<svg role="img" aria-label="{says}" {box[0] if box else ""}>{svg}'


# ------------------------------------------------------------------------------------------------------------ the page


@dataclass(frozen=True)
class Panel:
    """One finding: a title that says what is seen, its pictures, and what must be known to read them."""

    title: str
    about: str
    notes: tuple[str, ...]
    pictures: tuple[str, ...]


def _panel(title: str, name: str, curves: Sequence[Curve], axes: Sequence[str], about: str = "") -> Panel:
    metric, notes = METRICS[name], []
    window = max(_window(curve) for curve in curves)
    if window > 1:
        notes.append(f"Faint: every row. Strong: the running mean of up to {window} rows.")
    for curve in curves:
        for i in curve.series.breaks[:1]:
            step, value = int(curve.series.steps[i]), curve.series.values[i]
            notes.append(f"\u00d7 {curve.label}: not finite from step {step:,} on ({value}).")
    low, high = _limits(curves, metric)
    values = np.concatenate([curve.series.finite for curve in curves])
    outside = values[(values < low) | (values > high)]
    if len(outside):
        furthest = metric.spell(outside[np.abs(outside - np.median(values)).argmax()])
        notes.append(f"{_times(len(outside), 'row')} outside the picture, the furthest at {furthest}.")
    pictures = tuple(draw(curves, metric, axis, 11.6 / max(len(axes), 2)) for axis in axes)
    return Panel(title, about or metric.about, tuple(notes), pictures)


def _run_panels(run: RunData, colors: Mapping[Who, str]) -> list[Panel]:
    """The curves of every worker and of the center of one run."""
    panels = []
    for name in (name for name in METRICS if name in run.series):
        curves = [Curve(_called(who), colors[who], s, who == "center") for who, s in run.series[name].items()]
        who, lead = run.lead(name) or ("nobody", curves[0].series)
        metric, said = METRICS[name], "no finite value"
        if len(lead.finite):
            end, best = metric.spell(lead.finite[-1]), metric.spell(metric.best(lead.finite))
            said = f"{end} at the end, {metric.best_word} {best} ({who})"
        axes = ("seconds", "examples") if metric.best_word == "at best" else ("seconds",)
        panels.append(_panel(f"{metric.label}: {said}", name, curves, axes))
    return panels


def _comparing_panels(runs: Sequence[RunData], colors: Sequence[str]) -> list[Panel]:
    """The curve that stands for each run, overlaid."""
    panels = []
    for name in METRICS:
        leads = [(run.name, color, *lead) for run, color in zip(runs, colors, strict=True) if (lead := run.lead(name))]
        if not leads:
            continue
        metric = METRICS[name]
        ends = {label: series.finite[-1] for label, _, _, series in leads if len(series.finite)}
        best = min(ends, key=lambda label: abs(ends[label] - metric.best(list(ends.values()))), default=None)
        ranked = best is not None and len(ends) > 1 and metric.best_word == "at best"
        title = f"{metric.label}: {best} ends best, at {metric.spell(ends[best])}" if ranked else metric.label
        whose = {who for _, _, who, _ in leads}
        about = f"{metric.about}; " + (
            f"{whose.pop()} of each run"
            if len(whose) == 1
            else ", ".join(f"{label}: {who}" for label, _, who, _ in leads)
        )
        curves = [Curve(label, color, series) for label, color, _, series in leads]
        panels.append(_panel(title, name, curves, ("steps", "seconds", "examples"), about))
    return panels


@dataclass(frozen=True)
class Comparison:
    """One run's line in the table that compares several; `None` where the run has no such number.

    Args:
        name: The run's.
        differs: What in `run.json` is not the same in all runs.
        workers: How many wrote rows.
        steps: Optimizer steps of the worker that took most.
        examples: Training examples of all workers.
        seconds: Until the last row.
        final_accuracy: Of the center (or whoever stands for the run) at the end.
        best_accuracy: The highest it had.
        final_loss: On held-out examples where the runs have that, else in training.
    """

    name: str
    differs: dict[str, str]
    workers: int
    steps: int
    examples: int
    seconds: float
    final_accuracy: float | None
    best_accuracy: float | None
    final_loss: float | None


_SAYS_NOTHING = ("name", "started_at", "finished_at", "exit_code", "workers_state", "command")


def compare(runs: Sequence[RunData]) -> list[Comparison]:
    """The runs beside each other, with what differs between their `run.json`."""
    flat = [dict(_flatten(run.about)) for run in runs]
    keys = dict.fromkeys(key for about in flat for key in about if key.split(".")[0] not in _SAYS_NOTHING)
    differing = [key for key in keys if len({about.get(key, "\u2013") for about in flat}) > 1]
    short = {key: key.removeprefix("settings.") for key in differing}
    loss = _loss_name(runs)
    return [
        Comparison(
            run.name, {short[key]: about.get(key, "\u2013") for key in differing}, len(run.workers), run.steps,
            run.examples, run.seconds, _of(run, "accuracy", lambda values: values[-1]), _of(run, "accuracy", np.max),
            _of(run, loss, lambda values: values[-1]),
        )
        for run, about in zip(runs, flat, strict=True)
    ]  # fmt: skip


def _loss_name(runs: Sequence[RunData]) -> str:
    return "test_loss" if all("test_loss" in run.series for run in runs) else "loss"


def _of(run: RunData, name: str, number: Callable[[np.ndarray], Any]) -> float | None:
    lead = run.lead(name)
    return float(number(lead[1].finite)) if lead and len(lead[1].finite) else None


def _flatten(about: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if not isinstance(about, dict):
        return [(key, str(about))]
    return [pair for name, inner in about.items() for pair in _flatten(inner, f"{key}.{name}" if key else str(name))]


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """The numbers at the top of one run's page: what, how much, and one remark."""
    rates = [w.examples_per_second for w in run.workers if w.examples_per_second is not None]
    moved = sum(w.bytes_sent + w.bytes_received for w in run.workers)
    waited, seconds = sum(w.waiting for w in run.workers), sum(w.seconds for w in run.workers)
    tiles = [("steps per worker", f"{run.steps:,}", f"{_times(len(run.workers), 'worker')}")]
    tiles += [("training examples", spell_short(run.examples), f"{spell_short(sum(rates))} a second")] if rates else []
    for name in ("accuracy", "test_loss", "loss"):
        value = _of(run, name, lambda values: values[-1])
        if value is not None and (name != "loss" or len(tiles) < 4):
            who = (run.lead(name) or ("",))[0]
            tiles.append((METRICS[name].label.lower() + " at the end", METRICS[name].spell(value), f"of {who}"))
    tiles.append(("waiting for exchanges", _share(waited / (seconds or 1)), f"{spell_seconds(waited)} in all"))
    return tiles + ([("exchanged", spell_short(moved, "B"), "to the center and back")] if moved else [])


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _waited(run: RunData) -> str:
    """The title of the picture of seconds."""
    most = max(run.workers, key=lambda w: w.waiting / (w.seconds or 1))
    share = _share(most.waiting / (most.seconds or 1))
    if not most.waiting:
        return "No exchange held up training"
    one = f"Exchanges held up worker {most.worker}"
    return f"{one} for {share} of its time" if len(run.workers) == 1 else f"{one} most: {share} of its time"


_ORDER = ("command", "started_at", "finished_at", "exit_code", "commit", "versions", "device", "seeds", "settings",
          "workers", "workers_state")  # fmt: skip


def _command(words: object) -> str:
    return shlex.join(str(word) for word in words) if isinstance(words, list) else str(words)


def _optional(spell: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "\u2013" if value is None else spell(value)


def _page(runs: Sequence[RunData]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "short": _optional(spell_short), "percent": _optional(spell_percent), "rate": _optional(lambda v: f"{v:,.0f}"),
        "count": lambda v: f"{v:,}", "seconds": spell_seconds, "bytes": lambda v: spell_short(v, "B"), "share": _share,
        "times": _times, "command": _command,
        "ordered": lambda about: sorted(about.items(), key=lambda item: (*_ORDER, item[0]).index(item[0])),
    }  # fmt: skip
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(runs=runs, **(_one(runs[0]) if len(runs) == 1 else _several(runs)))


def _one(run: RunData) -> dict[str, Any]:
    colors: dict[Who, str] = {w.worker: color(i, len(run.workers)) for i, w in enumerate(run.workers)}
    legend = [(_called(who), colors[who], False) for who in colors]
    if any("center" in curves for curves in run.series.values()):
        legend.append(("the center", "var(--ink)", True))
    facts = [f"{key.split('_')[0]} {run.about[key]}" for key in ("started_at", "commit") if run.about.get(key)]
    facts = [f"{_times(len(run.workers), 'worker')}, {spell_seconds(run.seconds)}", *facts]
    panels = _run_panels(run, {**colors, "center": _INK})
    return {"title": run.name, "facts": facts, "colors": colors, "legend": legend, "panels": panels,
            "tiles": _tiles(run), "waited": _waited(run), "rows": []}  # fmt: skip


def _several(runs: Sequence[RunData]) -> dict[str, Any]:
    colors = [color(i, len(runs)) for i in range(len(runs))]
    rows, best = compare(runs), {}
    for field, pick in (("final_accuracy", max), ("best_accuracy", max), ("final_loss", min)):
        values = [getattr(row, field) for row in rows if getattr(row, field) is not None]
        best[field] = {row.name for row in rows if values and getattr(row, field) == pick(values)}
    legend = [(run.name, color, False) for run, color in zip(runs, colors, strict=True)]
    title = " / ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs, from {runs[0].name} on"
    return {"title": title, "facts": [f"{len(runs)} runs"], "colors": colors, "legend": legend, "rows": rows,
            "panels": _comparing_panels(runs, colors), "tiles": [], "best": best,
            "loss_name": METRICS[_loss_name(runs)].about}  # fmt: skip


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one HTML page about one run, or one that lays several runs over each other.

    Args:
        runs: Run directories: `run.json` and `workers/*.jsonl` in each.
        out: The page; `RUN_DIR/report.html` if left out, which only one run allows.

    Returns:
        Path: Where the page lies. It needs no other file and no network.

    Raises:
        FileNotFoundError: A run directory, or its `run.json`, is missing.
        ValueError: No run was given, several without `out`, or one of them holds no rows.
        ImportError: The extra `hooke[report]` is not installed.
    """
    paths = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if not paths:
        raise ValueError("write_report: runs must name at least one run directory. Got none. Give e.g. runs/NAME.")
    if out is None and len(paths) > 1:
        raise ValueError(
            f"write_report: out must be given for a page about several runs. Got {len(paths)} runs and no out. "
            'Say where the page goes, e.g. out="comparison.html".'
        )
    data = [read_run(path) for path in paths]
    _need_extra()
    names = Counter(run.name for run in data)
    data = [replace(run, name=f"{run.name} ({path})") if names[run.name] > 1 else run
            for run, path in zip(data, paths, strict=True)]  # fmt: skip
    page = RunDirectory(paths[0]).report if out is None else Path(out)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_page(data), encoding="utf-8")
    return page


def _need_extra() -> None:
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'write_report: matplotlib and jinja2 must be installed. Got: {error}. Run pip install "hooke[report]".'
        ) from error
