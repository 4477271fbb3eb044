"""Rows of one or several runs -> one self-contained HTML page with pictures. No torch, no scripts, nothing fetched.

`read_run` computes, on plain numbers; what draws only looks at what `read_run` returned. matplotlib and jinja2 come
with the extra `hooke[report]` and are imported when a page is written, not before.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hooke.record import Row, read
from hooke.run import RunDirectory

Who = int | str
Groups = Mapping[tuple[Who, str], Sequence[Row]]


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


# What is computed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One curve, float arrays of one length: `values[i]` at three places on the way there.

    Args:
        seconds: Since the run started.
        steps: Optimizer steps that the worker which wrote the row had taken.
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
        """Where each stretch of values that are not finite begins, as indices."""
        broken = ~np.isfinite(self.values)
        return np.flatnonzero(broken & ~np.concatenate([[False], broken[:-1]]))


@dataclass(frozen=True)
class WorkerSummary:
    """What one worker did, in numbers.

    Args:
        worker: Its number.
        steps: Optimizer steps taken, over all restarts.
        examples: Training examples used.
        examples_per_second: Between its first and last row of examples; `None` with fewer than two.
        last_loss: Its last training loss, which may be nan; `None` where it wrote none.
        exchanges: How many it timed.
        seconds: From its first row to its last.
        waiting: Seconds that exchanges held up its training loop.
        background: Seconds of exchanges that ran beside its training.
        down: Seconds between its last row before a crash and the row that says it was started again.
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

    @property
    def waiting_share(self) -> float:
        """Share of its seconds that it waited, 0 to 1."""
        return self.waiting / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Alert:
    """One thing that went wrong, in a sentence that names the worker; `worker` is `None` where it is the run's."""

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
        return max(float(series.seconds[-1]) for curves in self.series.values() for series in curves.values())

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
            return next((called(who), series) for who, series in curves.items())
        return ("the workers on average", average(list(curves.values()))) if curves else None

    def end(self, name: str) -> float | None:
        """The last value of whoever stands for the run; of several workers, the mean of those that end finite."""
        curves = self.series.get(name, {})
        if "center" in curves or len(curves) == 1:
            return float(curves.get("center", next(iter(curves.values()))).values[-1])
        ends = [series.values[-1] for series in curves.values() if np.isfinite(series.values[-1])]
        return float(np.mean(ends)) if ends else None

    def best(self, name: str) -> float | None:
        """The best finite value of whoever stands for the run; the largest, where no end is the good one."""
        lead = self.lead(name)
        return float(METRICS[name].best(lead[1].finite)) if lead and len(lead[1].finite) else None


def read_run(directory: str | Path) -> RunData:
    """Read a run directory: `run.json` and `workers/*.jsonl`.

    Raises:
        FileNotFoundError: There is no such directory, or no `run.json` in it.
        ValueError: `run.json` is no JSON object, or no worker left a row.
    """
    files = RunDirectory(Path(directory))
    about = _about(files)
    groups = group(row for path in files.all_rows() for row in mend(list(read(path))))
    if not groups:
        raise ValueError(
            f"write_report: {files.path}/workers/*.jsonl must hold rows. Got none. "
            "Let the run take a few steps first, or write rows with worker.record(...)."
        )
    numbers = {int(path.stem) if path.stem.isdigit() else path.stem for path in files.all_rows()}
    numbers |= {who for who, _ in groups if who != "center"}
    workers = tuple(summarize(groups, who) for who in sorted(numbers, key=_place))
    curves: dict[str, dict[Who, Series]] = {}
    for who, name in sorted(groups, key=lambda key: _place(key[0])):
        seconds, steps, values = (_column(groups, who, name, field) for field in ("t", "taken", "value"))
        curves.setdefault(name, {})[who] = Series(seconds, steps, examples_by(groups, seconds), values)
    name = str(about.get("name") or files.path.resolve().name)
    return RunData(name, about, workers, curves, tuple(find_alerts(about, groups, workers)))


def _about(files: RunDirectory) -> dict[str, Any]:
    try:
        about = json.loads(files.description.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise FileNotFoundError(
            f"write_report: a run directory must hold run.json. Got {files.description}: {error.strerror}. "
            "Give the directory that `hooke run` printed, e.g. runs/NAME."
        ) from error
    except ValueError as error:
        about = f"{error}"
    if isinstance(about, dict):
        return about
    raise ValueError(
        f"write_report: {files.description} must hold one JSON object. Got: {about}. "
        "Repair the file, or put {} into it: every key is optional."
    )


def counted(counts: Sequence[float]) -> np.ndarray:
    """A count that began anew, or fell back to a checkpoint, when its process was started again: made to go on.

    What the first count after a fall adds is not known; it is taken to be the median of what the others add, or all of
    it where it is less.

    Example:
        >>> counted([64, 128, 192, 64, 128]).tolist()
        [64.0, 128.0, 192.0, 256.0, 320.0]
    """
    known = _finite(np.asarray(counts, dtype=float))
    added = np.diff(known, prepend=0.0)
    typical = np.median(added[added > 0]) if (added > 0).any() else 0.0
    return np.cumsum(np.where(added < 0, np.minimum(known, typical), added))


def mend(rows: Sequence[Row]) -> Sequence[Row]:
    """Add `taken`, the steps over all restarts, to the rows of one file; mend its counts of examples likewise."""
    trained = [row for row in rows if row["name"] != "restarted"]  # that row precedes the return to a checkpoint
    for row, taken in zip(trained, counted([row["step"] for row in trained]), strict=True):
        row["taken"] = int(taken)
    examples = [row for row in rows if row["name"] == "examples"]
    for row, count in zip(examples, counted([row["value"] for row in examples]), strict=True):
        row["value"] = float(count)
    taken = 0
    for row in rows:
        taken = row.setdefault("taken", taken)
    return rows


def group(rows: Iterable[Row]) -> dict[tuple[Who, str], list[Row]]:
    """Rows by whom they are about and by name, each list in the order of time."""
    groups: dict[tuple[Who, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["worker"], row["name"]), []).append(row)
    return {key: sorted(group, key=lambda row: row["t"]) for key, group in groups.items()}


def _column(groups: Groups, who: Who, name: str, field: str = "value") -> np.ndarray:
    return np.array([row[field] for row in groups.get((who, name), [])], dtype=float)


def _finite(column: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(column), column, 0.0)


def examples_by(groups: Groups, seconds: np.ndarray) -> np.ndarray:
    """Training examples that all workers together had used by each of `seconds`: the sum of their latest counts."""
    total = np.zeros(len(seconds))
    for who, name in groups:
        if name == "examples" and who != "center":
            counts = np.concatenate([[0.0], _column(groups, who, name)])
            total += counts[np.searchsorted(_column(groups, who, name, "t"), seconds, side="right")]
    return total


def summarize(groups: Groups, who: Who) -> WorkerSummary:
    """What worker `who` did, from the rows of its run."""
    own = [row for (about, _), rows in groups.items() if about == who for row in rows]
    times = np.sort([row["t"] for row in own])
    examples, at = _column(groups, who, "examples"), _column(groups, who, "examples", "t")
    losses, restarted = _column(groups, who, "loss"), _column(groups, who, "restarted", "t")
    before = [times[times < t][-1] if (times < t).any() else t for t in restarted]
    restarts = [0, *_finite(_column(groups, who, "restarted"))]  # counts anew when the run is resumed
    total = {name: float(_finite(_column(groups, who, name)).sum()) for name in _SUMMED}
    return WorkerSummary(
        worker=who,
        steps=max((row["taken"] for row in own), default=0),
        examples=int(examples.max(initial=0)),
        examples_per_second=float((examples[-1] - examples[0]) / np.ptp(at)) if len(at) > 1 and np.ptp(at) else None,
        last_loss=float(losses[-1]) if len(losses) else None,
        exchanges=len(groups.get((who, "exchange_seconds"), [])),
        seconds=float(np.ptp(times)) if len(times) else 0.0,
        waiting=total["wait_seconds"],
        background=max(total["exchange_seconds"] - total["wait_seconds"], 0.0),
        down=float(sum(restarted - before)),
        bytes_sent=total["bytes_sent"],
        bytes_received=total["bytes_received"],
        missed=int(total["missed"]),
        refused=int(total["refused"]),
        restarts=int(sum(n - last if n > last else n for last, n in pairwise(restarts))),
    )


_SUMMED = ("exchange_seconds", "wait_seconds", "bytes_sent", "bytes_received", "missed", "refused")


def average(curves: Sequence[Series], bins: int = 200) -> Series:
    """Curves of several workers as one: the mean of the finite values in up to `bins` equal spans of seconds."""
    names = ("seconds", "steps", "examples", "values")
    fields = [np.concatenate([getattr(curve, name) for curve in curves]) for name in names]
    seconds, *others = (field[np.isfinite(fields[-1])] for field in fields)
    if not len(seconds):
        return Series(seconds, *others)
    bins = max(min(bins, *(len(curve.values) for curve in curves)), 1)
    index = np.minimum(((seconds - seconds.min()) / (np.ptp(seconds) or 1.0) * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    means = [np.bincount(index, field, bins)[counts > 0] / counts[counts > 0] for field in (seconds, *others)]
    return Series(means[0], np.maximum.accumulate(means[1]), np.maximum.accumulate(means[2]), means[3])


def differences(runs: Sequence[RunData]) -> list[dict[str, str]]:
    """For each run, what its `run.json` says and not all of the others': settings, seeds, versions, device."""
    flat = [dict(_flatten(run.about)) for run in runs]
    keys = [
        key
        for key in dict.fromkeys(key for about in flat for key in about)
        if len({about.get(key) for about in flat}) > 1
    ]
    keys = [key for key in keys if not _SAYS_NOTHING & {key, key.partition(".")[0]}]
    keys.sort(key=lambda key: not key.startswith("settings."))
    return [{key.removeprefix("settings."): about[key] for key in keys if key in about} for about in flat]


def _flatten(about: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(about, dict):
        yield key, _command(about)
        return
    for name, inner in about.items():
        yield from _flatten(inner, f"{key}.{name}" if key else str(name))


_SAYS_NOTHING = {"name", "command", "workers", "settings.workers", "started_at", "finished_at", "elapsed_seconds"}
_SAYS_NOTHING |= {"exit_code", "workers_state", "restarts", "resumed"}

# What went wrong ----------------------------------------------------------------------------------------------------


def find_alerts(about: Mapping[str, Any], groups: Groups, workers: Sequence[WorkerSummary]) -> list[Alert]:
    """Every recorded failure, refusal, missed exchange, restart and value that is not finite, by name."""
    alerts = [*_recorded_failures(about)]
    started = about.get("workers")
    silent = set(range(started)) if isinstance(started, int) and started <= 4096 else set()
    silent = (silent | {w.worker for w in workers}) - {who for who, _ in groups}
    alerts += [Alert(who, f"worker {who} left no rows") for who in silent]
    for w in workers:
        alerts += _troubles(groups, w)
    for (who, name), rows in groups.items():
        bad = [row for row in rows if name in METRICS and not np.isfinite(row["value"])]
        if bad:
            what = f"the {METRICS[name].label.lower()} of {called(who)} was not finite in {times(len(bad), 'row')}"
            alerts.append(Alert(who, f"{what}, first at step {bad[0]['step']:,}: {bad[0]['value']}"))
    return sorted(alerts, key=lambda alert: (alert.worker is not None, *_place(alert.worker)))


def _recorded_failures(about: Mapping[str, Any]) -> Iterator[Alert]:
    """What `run.json` says: the exit code, and how each worker ended."""
    code, states = about.get("exit_code"), about.get("workers_state")
    if isinstance(code, int) and code > 128:
        yield Alert(None, f"the run was stopped by signal {code - 128}", serious=False)
    elif code not in (None, 0):
        yield Alert(None, f"the run ended with exit code {code}")
    for who, state in states.items() if isinstance(states, dict) else ():
        if not re.match(_WELL, str(state), re.IGNORECASE):
            yield Alert(int(who) if who.isdigit() else who, f"worker {who} {state}")


_WELL = r"(starting|training|running|restarting|finished|done|ok|stopped|left)\b"


def _troubles(groups: Groups, w: WorkerSummary) -> Iterator[Alert]:
    def first(name: str) -> str:
        row = next(row for row in groups[w.worker, name] if row["value"])
        return f"first at step {row['step']:,}" + (f": {row['note']}" if row.get("note") else "")

    if w.refused:
        yield Alert(w.worker, f"worker {w.worker} was refused {times(w.refused)}, {first('refused')}")
    if w.missed:
        yield Alert(
            w.worker, f"worker {w.worker} missed {times(w.missed, 'exchange')}, {first('missed')}", serious=False
        )
    if w.restarts:
        row = groups[w.worker, "restarted"][0]
        away = f" after step {row['taken']:,}; away for {spell_seconds(w.down)} in all" if w.down else ""
        when = f"first at {spell_seconds(row['t'])}{away}"
        yield Alert(w.worker, f"worker {w.worker} was started again {times(w.restarts)}, {when}", serious=False)


def _place(who: Who | None) -> tuple[bool, int, str]:
    """Sorts workers by number, then whatever else by name."""
    return (False, who, "") if isinstance(who, int) else (True, 0, str(who))


# How it is said -----------------------------------------------------------------------------------------------------


def called(who: Who) -> str:
    """How a sentence calls a worker or the center."""
    return "the center" if who == "center" else f"worker {who}"


def times(count: int, what: str = "time") -> str:
    """A count with its noun: `once`, `3 times`, `1 exchange`."""
    return "once" if count == 1 and what == "time" else f"{count:,} {what}{'' if count == 1 else 's'}"


def spell_seconds(seconds: float) -> str:
    """A duration to read: `0.42 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 99.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"


def spell_short(value: float, unit: str = "", digits: int = 3) -> str:
    """A number to a few digits: `0.042`, `640`, `12.3 k`, `1.2 M`; with a unit, `12.3 kB`."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return f"{value / power:.{digits}g} {letter}{unit}"
    return f"{value:.{digits}g} {unit}".strip()


def spell_percent(value: float, digits: int = 4) -> str:
    """A share as a percentage to a few digits."""
    return f"{100 * value:.{digits}g} %"


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _command(words: object) -> str:
    return (shlex.join(str(word) for word in words) or "none") if isinstance(words, list) else str(words)


@dataclass(frozen=True)
class Metric:
    """How a row is called and written, and which end of it is the good one."""

    label: str
    about: str
    best: Callable[[np.ndarray], Any] = np.max
    best_word: str = "at most"
    spell: Callable[..., str] = spell_short

    @property
    def ranks(self) -> bool:
        """Whether one end of it is the good one."""
        return self.best_word == "at best"


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", "share of held-out examples classified correctly", np.max, "at best", spell_percent),
    "test_loss": Metric("Held-out loss", "mean loss on held-out examples", np.min, "at best"),
    "loss": Metric("Training loss", "mean loss of the training batches since the last row", np.min, "at best"),
    "center_distance": Metric("Distance from the center", "Euclidean distance of a worker's parameters from x\u0303"),
    "staleness": Metric("Staleness", "exchanges of other workers since a worker's last one"),
}
"""The rows that are drawn as curves, in the order of the page."""

# How it is drawn ----------------------------------------------------------------------------------------------------

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
_INK, _MUTED, _RULE = "#010203", "#040506", "#070809"  # stand for colors that the page's light or dark theme decides
_THEME = {_INK: "var(--ink)", _MUTED: "var(--muted)", _RULE: "var(--rule)"}
_STYLE = {
    "svg.fonttype": "none", "font.size": 8, "text.color": _INK, "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED, "xtick.color": _RULE, "ytick.color": _RULE, "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": _RULE, "grid.linewidth": 0.6, "ytick.major.size": 0,
    "axes.axisbelow": True, "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round",
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
    return f'<svg role="img" aria-label="{says}" {box[0] if box else ""}>{svg}'


# The page -----------------------------------------------------------------------------------------------------------


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
    panels = [_panel_of_one(run, name, {**colors, "center": _INK}) for name in METRICS if name in run.series]
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


def _html(runs: Sequence[RunData]) -> str:
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError(
            f'write_report: matplotlib and jinja2 must be installed. Got: {error}. Run pip install "hooke[report]".'
        ) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "short": lambda v: "\u2013" if v is None else spell_short(v), "count": lambda v: f"{v:,}", "share": _share,
        "seconds": spell_seconds, "bytes": lambda v: spell_short(v, "B"), "times": times, "command": _command,
        "ordered": lambda about: sorted(about.items(), key=lambda item: (*_ORDER, item[0]).index(item[0])),
    }  # fmt: skip
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    return template.render(runs=runs, metrics=METRICS, **(_one(runs[0]) if len(runs) == 1 else _several(runs)))
