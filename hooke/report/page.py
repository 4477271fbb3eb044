"""The page: what `read_run` computed, laid out. jinja2 is imported when a page is written, not before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hooke.report.chart import INK, Curve, color, draw, y_limits
from hooke.report.data import RunData, differences
from hooke.report.read import read_run
from hooke.report.template import need_extra, render
from hooke.report.words import (
    METRICS,
    Metric,
    Who,
    called,
    spell_percent,
    spell_seconds,
    spell_short,
    times,
)
from hooke.run import RunDirectory


def write_report(runs: Sequence[str | Path] | str | Path, out: str | Path | None = None) -> Path:
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
    names = Counter(run.name for run in data)
    same = [names[run.name] > 1 for run in data]
    data = [
        replace(run, name=f"{run.name} ({path})") if s else run for run, path, s in zip(data, paths, same, strict=True)
    ]
    page = RunDirectory(paths[0]).report if out is None else Path(out)
    html = _html(data)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    return page


@dataclass(frozen=True)
class Panel:
    """One finding: a title that says what is seen, its pictures, and what must be known to read them."""

    title: str
    about: str
    notes: tuple[str, ...]
    pictures: tuple[str, ...]


def _panel(title: str, about: str, metric: Metric, curves: Sequence[Curve], axes: Sequence[str]) -> Panel:
    notes = []
    window = max(curve.window for curve in curves)
    if window > 1:
        notes.append(f"Faint: every row. Strong: the running mean of up to {window} rows.")
    for curve in curves:
        for i in curve.series.breaks[:1]:
            at, value = int(curve.series.steps[i]), curve.series.values[i]
            notes.append(f"\u00d7 {curve.label}: not finite at step {at:,} ({value}).")
    low, high = y_limits(curves, metric)
    values = np.concatenate([curve.series.finite for curve in curves])
    outside = values[(values < low) | (values > high)]
    if len(outside):
        furthest = metric.spell(float(outside[np.abs(outside - np.median(values)).argmax()]))
        notes.append(f"{times(len(outside), 'row')} outside the picture, the furthest at {furthest}.")
    pictures = tuple(draw(curves, metric, axis, 10 / max(len(axes), 2)) for axis in axes)
    return Panel(title, about, tuple(notes), pictures)


def _panel_of_one(run: RunData, name: str, colors: Mapping[Who, str]) -> Panel:
    """The curves of every worker and of the center of one run."""
    metric, lead, end, best = METRICS[name], run.lead(name), run.end(name), run.best(name)
    curves = [Curve(called(who), colors[who], series, who == "center") for who, series in run.series[name].items()]
    said = "no finite value"
    if lead is not None and end is not None and best is not None:
        said = f"{metric.spell(end)} at the end, {metric.best_word} {metric.spell(best)} ({lead[0]})"
    axes = ("seconds", "examples") if metric.ranks else ("seconds",)
    return _panel(f"{metric.label}: {said}", metric.about, metric, curves, axes)


def _panel_of_several(runs: Sequence[RunData], name: str, colors: Sequence[str]) -> Panel | None:
    """The curve that stands for each run, overlaid; `None` where no run has this row."""
    metric, title = METRICS[name], METRICS[name].label
    leads = [(run.name, color, *lead) for run, color in zip(runs, colors, strict=True) if (lead := run.lead(name))]
    if not leads:
        return None
    ends = {run.name: end for run in runs if (end := run.end(name)) is not None and np.isfinite(end)}
    if metric.ranks and len(ends) > 1:
        first = (min if metric.best is np.min else max)(ends, key=ends.__getitem__)
        title += f": {first} ends best, at {metric.spell(ends[first])}"
    [(most, _)] = Counter(who for _, _, who, _ in leads).most_common(1)
    about = [metric.about, f"of {most}", *(f"{label}: {who}" for label, _, who, _ in leads if who != most)]
    curves = [Curve(label, color, series) for label, color, _, series in leads]
    return _panel(
        title, "; ".join(about), metric, curves, ("steps", "seconds", "examples") if metric.ranks else ("steps",)
    )


def _one(run: RunData) -> dict[str, Any]:
    """What the page about one run shows beside its numbers."""
    colors: dict[Who, str] = {w.worker: color(i, len(run.workers)) for i, w in enumerate(run.workers)}
    legend = [(called(who), colors[who], False) for who in colors]
    if any("center" in curves for curves in run.series.values()):
        legend.append(("the center", "var(--ink)", True))
    facts = [times(len(run.workers), "worker"), spell_seconds(run.seconds)]
    for key, said, length in (("started_at", "started", 40), ("commit", "commit", 10)):
        facts += [f"{said} {str(run.about[key])[:length]}"] if run.about.get(key) else []
    panels = [_panel_of_one(run, name, {**colors, "center": INK}) for name in METRICS if name in run.series]
    return {"title": run.name, "facts": facts, "colors": colors, "legend": legend, "panels": panels}


def _several(runs: Sequence[RunData]) -> dict[str, Any]:
    """What the page about several runs shows beside their numbers."""
    colors = [color(i, len(runs)) for i in range(len(runs))]
    loss = "test_loss" if all("test_loss" in run.series for run in runs) else "loss"
    columns = {
        "final accuracy": _cells(spell_percent, max, [run.end("accuracy") for run in runs]),
        "best accuracy": _cells(spell_percent, max, [run.best("accuracy") for run in runs]),
        f"final {METRICS[loss].label.lower()}": _cells(spell_short, min, [run.end(loss) for run in runs]),
    }
    facts = [times(sum(len(run.workers) for run in runs), "worker"), f"{sum(run.examples for run in runs):,} examples"]
    return {
        "title": " / ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs",
        "facts": facts,
        "colors": colors,
        "legend": [(run.name, color, False) for run, color in zip(runs, colors, strict=True)],
        "panels": [panel for name in METRICS if (panel := _panel_of_several(runs, name, colors))],
        "differs": differences(runs),
        "columns": columns,
    }


def _cells(
    spell: Callable[[float], str], pick: Callable[..., Any], values: list[float | None]
) -> list[tuple[str, bool]]:
    """A column of the table that compares runs: what to write, and whether it is the best."""
    best = pick((value for value in values if value is not None and np.isfinite(value)), default=None)
    return [("\u2013" if value is None else spell(value), value is not None and value == best) for value in values]


_ORDER = ("name", "command", "started_at", "finished_at", "elapsed_seconds", "exit_code", "commit", "dirty", "versions",
          "device", "seeds", "settings", "workers", "workers_state")  # fmt: skip


def _ordered(about: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What is known about a run, what matters most first."""
    return sorted(about.items(), key=lambda item: (*_ORDER, item[0]).index(item[0]))


def _html(runs: Sequence[RunData]) -> str:
    need_extra("write_report")
    about = _one(runs[0]) if len(runs) == 1 else _several(runs)
    return render("page.html.j2", {"ordered": _ordered}, runs=runs, metrics=METRICS, **about)
