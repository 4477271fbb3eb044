"""Writes docs/which_method.md and its picture from the records in benchmarks/results/.

python benchmarks/which_method.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import language
import machine
import own_data
from page import source, table
from search import Setup

from hooke.claim import Estimate, Row, Table, mean_interval

DOCS = Path(__file__).parent.parent / "docs"
COLORS = {"DDP": "#6b7280", "Local SGD": "#2563eb", "DiLoCo": "#15803d", "EASGD": "#c2410c"}
DASHES = {10: "-", 50: "--", 100: ":"}


def says(sentence: str, holds: bool) -> str:
    """A sentence that the record must bear out.

    Raises:
        ValueError: It does not.
    """
    if not holds:
        raise ValueError(f"which_method: the record must bear out every sentence. Got one it does not: {sentence}")
    return sentence


def last(rows: Sequence[Row], name: str) -> list[float]:
    """A curve's last value, seed by seed."""
    return [row["result"][name][-1] for row in rows]


def minus(rows: Sequence[Row], others: Sequence[Row], name: str) -> Estimate:
    """Differences between runs of the same seed at their ends."""
    theirs = {row["settings"]["seed"]: row["result"][name][-1] for row in others}
    seeds = [row for row in rows if row["settings"]["seed"] in theirs]
    return mean_interval([row["result"][name][-1] - theirs[row["settings"]["seed"]] for row in seeds])


def apart(estimate: Estimate) -> bool:
    """Whether the interval leaves out 0."""
    return estimate.interval is not None and not estimate.low <= 0 <= estimate.high


def number(estimate: Estimate, digits: int, scale: float = 1.0, sign: str = "") -> str:
    """A mean with its interval, or with the word that there is none."""
    mean, low, high = (f"{scale * each:{sign}.{digits}f}" for each in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]" if estimate.interval else f"{mean} (one seed)"


def own_setting(row: Row) -> str:
    """The setting that only this method has."""
    setting = row["settings"]["setting"]
    if row["settings"]["method"] == "DiLoCo":
        return f"outer rate {setting[0]:g}, momentum {setting[1]:g}"
    return f"beta {setting[0]:g}" if setting else ""


def title(setup: Setup) -> str:
    """As a sentence calls it."""
    return "DDP" if setup["method"] == "DDP" else f"{setup['method']} at period {setup['period']}"


def megabytes(rows: Sequence[Row]) -> float:
    """What a worker has sent at the end, in MB."""
    return statistics.mean(last(rows, "bytes")) / 1e6


# The language model --------------------------------------------------------------------------------------------------


class Language:
    """The runs that are shown, by method and period."""

    def __init__(self, record: Table) -> None:
        self.search, self.record = language.FULL, record
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

    def after(self, rows: Sequence[Row], sent: float) -> str:
        """Mean test loss at the last recorded moment at which a worker had sent at most so many bytes."""
        known = [self.points(row) for row in rows]
        until = [[loss for moved, loss in points if moved <= 1.001 * sent] for points in known]
        if not all(until):
            return ""
        ended = all(points[-1][0] < 0.999 * sent for points in known)
        return f"{statistics.mean(losses[-1] for losses in until):.3f}{' (ended)' * ended}"

    def points(self, row: Row) -> list[tuple[float, float]]:
        """Bytes and loss along a run, DDP's first steps included."""
        same = {name: row["settings"][name] for name in ("method", "seed", "lr")}
        runs = [*self.record.where(study=language.BEGINNING, **same), row]
        return [point for one in runs for point in zip(one["result"]["bytes"], one["result"]["loss"], strict=True)]


def language_section(record: Table) -> str:
    """Tables and picture of the language model."""
    runs, cell = Language(record), language.FULL.cell
    parameters = runs.ddp[0]["result"]["parameters"]
    head = ["method", "period", "own setting", "rate", "seeds", "test loss", "above DDP", "MB sent", "of DDP's"]
    rows = [
        [
            method,
            "" if method == "DDP" else str(period),
            own_setting(mine[0]),
            f"{mine[0]['settings']['lr']:g}",
            str(len(mine)),
            number(runs.at_end(method, period), 3),
            "" if method == "DDP" else number(runs.lost(method, period), 3, sign="+"),
            f"{megabytes(mine):,.1f}",
            f"{100 * runs.share(method, period):.1f} %",
        ]
        for (method, period), mine in runs.runs.items()
    ]
    text = (
        f"\n## A language model\n\nCharacters of War and Peace: a transformer of {parameters:,} parameters "
        f"({cell['depth']} layers of {cell['width']}, context {cell['context']}), {cell['workers']} workers, batch "
        f"{cell['batch']} each, AdamW inside, {cell['steps']:,} steps each, a warm-up of {cell['warmup']} steps and "
        "then a constant rate. The last tenth of the book is not trained on: its first half chose the settings, its "
        "second half is the test. DDP averages gradients in every step: it is one worker with the batches joined. "
        "Losses are those of the center, in nats a character; differences are taken seed by seed.\n\n"
        "### At equal examples\n\n"
    )
    text += table(head, rows) + _intervals() + "\n### At equal bytes\n\n" + _equal_bytes(runs)
    return text + source(_newest(record), "HOOKE_DATA=FOLDER python benchmarks/language.py")


def _equal_bytes(runs: Language) -> str:
    shares = (0.01, 0.02, 0.1, 1.0)
    everything = 1e6 * megabytes(runs.ddp)
    head = ["method", "period", *(f"{everything * share / 1e6:,.1f} MB ({100 * share:g} %)" for share in shares)]
    rows = [
        [method, "" if method == "DDP" else str(period), *(runs.after(rows, everything * share) for share in shares)]
        for (method, period), rows in runs.runs.items()
    ]
    return (
        "The same runs, read at the moment at which a worker has sent so much (in brackets: the share of what DDP "
        "sends in all). A run that ended before has sent less and might go on.\n\n"
        + table(head, rows)
        + "\n![Test loss against bytes sent](which_method.svg)\n"
    )


def _intervals() -> str:
    return "\nIn brackets: 95 % intervals over seeds (Student's t). With three seeds they are wide.\n"


def _newest(record: Table) -> Row:
    return max((row["made"] for row in record), key=lambda made: made["at"])


# Workers with their own data -----------------------------------------------------------------------------------------


class OwnData:
    """The runs that are shown, by method, deal and period."""

    def __init__(self, record: Table) -> None:
        self.search = own_data.FULL
        self.runs = {
            (one["method"], one["dealt"], one["period"]): self.search.shown(record, one) for one in self.search.setups
        }
        self.ddp = {dealt: rows for (method, dealt, _), rows in self.runs.items() if method == "DDP"}

    def at_end(self, method: str, dealt: str, period: int) -> Estimate:
        """Test accuracy after all examples."""
        return mean_interval(last(self.runs[method, dealt, period], "accuracy"))

    def lost(self, method: str, dealt: str, period: int) -> Estimate:
        """Test accuracy above DDP's, seed by seed."""
        return minus(self.runs[method, dealt, period], self.ddp[dealt], "accuracy")


def own_data_section(record: Table) -> str:
    """Table of the workers with their own data."""
    runs, cell = OwnData(record), own_data.FULL.cell
    head = ["data", "method", "period", "own setting", "rate", "seeds", "accuracy (%)", "above DDP (points)", "MB sent"]
    rows = [
        [
            dealt,
            method,
            "" if method == "DDP" else str(period),
            own_setting(mine[0]),
            f"{mine[0]['settings']['lr']:g}",
            str(len(mine)),
            number(runs.at_end(method, dealt, period), 1, 100),
            "" if method == "DDP" else number(runs.lost(method, dealt, period), 1, 100, "+"),
            f"{megabytes(mine):,.1f}",
        ]
        for (method, dealt, period), mine in runs.runs.items()
    ]
    text = (
        f"\n## Workers with their own data\n\nFashion-MNIST, {cell['workers']} workers, two classes each: nobody sees "
        "a class of another, and nothing is shared but the center. The control is the same images dealt out at random. "
        f"A perceptron with two hidden layers of {cell['width']}, without batch normalization (its statistics would be "
        f"those of two classes), AdamW inside, batch {cell['batch']}, {cell['steps']:,} steps a worker, constant rate. "
        "Accuracies are those of the center on the test images. The methods of one period exchange equally often; an "
        "exchange costs 2 (p - 1) / p vectors each way around a ring, one each way to EASGD's center.\n\n"
    )
    return (
        text
        + table(head, rows)
        + _intervals()
        + source(_newest(record), "HOOKE_DATA=FOLDER python benchmarks/own_data.py")
    )


# The page ------------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Which method when

Made by `python benchmarks/which_method.py` from the records in `benchmarks/results/`: no number here is typed by hand,
and a sentence that the records do not bear out stops the program. The tasks are small, so take the order of methods
from here and not the sizes of the differences. Every method searched the same learning rates with one seed, then two
more values of its own setting where it has one (DiLoCo: outer rate and momentum; EASGD: beta) at the best rate; the
other seeds run the best. The runs are those of real workers with real gradients, in one process on a virtual clock
(`hooke.simulate`), where the workers are equally fast; EASGD's take turns at random.
"""


def in_short(records: dict[str, Table]) -> str:
    """The answers, each with what it rests on."""
    return ""


SECTIONS: tuple[tuple[str, Callable[[Table], str]], ...] = (
    ("language", language_section),
    ("own_data", own_data_section),
)
"""Record and what it says; a record that is not there is left out."""


def records() -> dict[str, Table]:
    """The records that are there."""
    paths = {name: machine.RESULTS / f"{name}.jsonl" for name, _ in SECTIONS}
    return {name: Table.read(path) for name, path in paths.items() if path.exists()}


def page() -> str:
    """The whole text of docs/which_method.md."""
    known = records()
    return INTRODUCTION + in_short(known) + "".join(write(known[name]) for name, write in SECTIONS if name in known)


def picture(record: Table, path: Path) -> None:
    """Mean test loss against bytes sent a worker, each setup at its best settings."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "hooke", "svg.fonttype": "path", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    runs = Language(record)
    for (method, period), rows in runs.runs.items():
        curves = zip(*(runs.points(row) for row in rows), strict=True)
        sent, losses = zip(*(map(statistics.mean, zip(*point, strict=True)) for point in curves), strict=True)
        style = "-" if method == "DDP" else DASHES[period]
        label = title({"method": method, "period": period})
        axes.plot([one / 1e6 for one in sent], losses, style, color=COLORS[method], label=label, lw=1.8, marker=".")
    axes.set(xlabel="MB sent by a worker", ylabel="test loss (nats a character)", xscale="log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    (DOCS / "which_method.md").write_text(page())
    picture(records()["language"], DOCS / "which_method.svg")


if __name__ == "__main__":
    main()
