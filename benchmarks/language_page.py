"""The language model's part of docs/which_method.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import language
from comparison import INTERVALS, last, megabytes, minus, newest, number, own_setting, period_of, rate
from page import source, table

from hooke.claim import Estimate, Row, Table, mean_interval

COLORS = {"DDP": "#6b7280", "Local SGD": "#2563eb", "DiLoCo": "#15803d", "EASGD": "#c2410c"}
DASHES = {10: "-", 50: "--", 100: ":"}
SHARES = (0.01, 0.02, 0.1, 1.0)
"""Of DDP's bytes: the columns of the table at equal bytes."""


class Language:
    """The runs that are shown.

    Attributes:
        runs: (method, period) -> one run a seed.
        ddp: DDP's.
    """

    def __init__(self, record: Table) -> None:
        self.search, self._record = language.FULL, record
        self.runs = {(one["method"], one["period"]): self.search.shown(record, one) for one in self.search.setups}
        self.ddp = next(rows for (method, _), rows in self.runs.items() if method == "DDP")

    def at_end(self, method: str, period: int) -> Estimate:
        """Test loss after all examples."""
        return mean_interval(last(self.runs[method, period], "loss"))

    def lost(self, method: str, period: int) -> Estimate:
        """Test loss above DDP's, seed by seed."""
        return minus(self.runs[method, period], self.ddp, "loss")

    def share(self, method: str, period: int) -> float:
        """Of DDP's bytes."""
        return megabytes(self.runs[method, period]) / megabytes(self.ddp)

    def points(self, row: Row) -> list[tuple[float, float]]:
        """Bytes and loss along a run, DDP's first steps included."""
        same = {name: row["settings"][name] for name in ("method", "seed", "lr")}
        runs = [*self._record.where(study=language.BEGINNING, **same), row]
        return [point for one in runs for point in zip(one["result"]["bytes"], one["result"]["loss"], strict=True)]

    def after(self, rows: Sequence[Row], sent: float) -> str:
        """Mean test loss at the last recorded moment at which a worker had sent at most so many bytes."""
        curves = [self.points(row) for row in rows]
        until = [[loss for moved, loss in curve if moved <= 1.001 * sent] for curve in curves]
        if not all(until):
            return ""
        ended = all(curve[-1][0] < 0.999 * sent for curve in curves)
        return f"{statistics.mean(losses[-1] for losses in until):.3f}{' (ended)' * ended}"


def section(record: Table) -> str:
    """Tables and picture."""
    runs, cell = Language(record), language.FULL.cell
    text = (
        f"\n## A language model\n\nCharacters of War and Peace: a transformer of "
        f"{runs.ddp[0]['result']['parameters']:,} parameters ({cell['depth']} layers of {cell['width']}, context "
        f"{cell['context']}), {cell['workers']} workers, batch {cell['batch']} each, AdamW inside, {cell['steps']:,} "
        f"steps each, a warm-up of {cell['warmup']} steps and then a constant rate. The last tenth of the book is not "
        "trained on: its first half chose the settings, its second half is the test. DDP averages gradients in every "
        "step: it is one worker with the batches joined. Losses are those of the center, in nats a character; "
        "differences are taken seed by seed.\n"
    )
    text += f"\n### At equal examples\n\n{_equal_examples(runs)}{INTERVALS}\n### At equal bytes\n\n{_equal_bytes(runs)}"
    return text + source(newest(record), "HOOKE_DATA=FOLDER python benchmarks/language.py")


def _equal_examples(runs: Language) -> str:
    head = ["method", "period", "own setting", "rate", "seeds", "test loss", "above DDP", "MB sent", "of DDP's"]
    rows = [
        [
            method,
            period_of(mine[0]),
            own_setting(mine[0]),
            rate(mine[0], runs.search),
            str(len(mine)),
            number(runs.at_end(method, period), 3),
            "" if method == "DDP" else number(runs.lost(method, period), 3, sign="+"),
            f"{megabytes(mine):,.1f}",
            f"{100 * runs.share(method, period):.1f} %",
        ]
        for (method, period), mine in runs.runs.items()
    ]
    return table(head, rows)


def _equal_bytes(runs: Language) -> str:
    everything = megabytes(runs.ddp)
    head = ["method", "period", *(f"{everything * share:,.1f} MB ({100 * share:g} %)" for share in SHARES)]
    rows = [
        [method, period_of(mine[0]), *(runs.after(mine, 1e6 * everything * share) for share in SHARES)]
        for (method, _), mine in runs.runs.items()
    ]
    return (
        "The same runs, read at the moment at which a worker has sent so much (in brackets: the share of what DDP "
        "sends in all). A run that ended before has sent less and might go on. Around a ring of p a worker sends 2 (p "
        "- 1) / p vectors, DDP in every step, Local SGD and DiLoCo in every exchange; EASGD sends one to the center "
        "and takes one back, and the center's own link carries those of all workers.\n\n"
        + table(head, rows)
        + "\n![Test loss against bytes sent](which_method.svg)\n"
    )


def picture(record: Table, path: Path) -> None:
    """Mean test loss against bytes sent by a worker, each method and period at its best settings."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "hooke", "svg.fonttype": "path", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    runs = Language(record)
    for (method, period), rows in runs.runs.items():
        curves = zip(*(runs.points(row) for row in rows), strict=True)
        sent, losses = zip(*(map(statistics.mean, zip(*point, strict=True)) for point in curves), strict=True)
        style, label = ("-", method) if method == "DDP" else (DASHES[period], f"{method}, period {period}")
        axes.plot([one / 1e6 for one in sent], losses, style, color=COLORS[method], label=label, lw=1.8, marker=".")
    axes.set(xlabel="MB sent by a worker", ylabel="test loss (nats a character)", xscale="log", ylim=(None, 2.8))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
