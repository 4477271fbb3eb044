"""The part of docs/which_method.md on workers with their own data."""

from __future__ import annotations

import own_data
from comparison import INTERVALS, last, megabytes, minus, newest, number, own_setting, period_of, rate
from page import source, table

from hooke.claim import Estimate, Table, mean_interval


class OwnData:
    """The runs that are shown.

    Attributes:
        runs: (method, how the images are dealt, period) -> one run a seed.
        ddp: How the images are dealt -> DDP's.
    """

    def __init__(self, record: Table) -> None:
        self.search = own_data.FULL
        names = ("method", "dealt", "period")
        self.runs = {tuple(one[name] for name in names): self.search.shown(record, one) for one in self.search.setups}
        self.ddp = {dealt: rows for (method, dealt, _), rows in self.runs.items() if method == "DDP"}

    def at_end(self, method: str, dealt: str, period: int) -> Estimate:
        """Test accuracy after all examples."""
        return mean_interval(last(self.runs[method, dealt, period], "accuracy"))

    def lost(self, method: str, dealt: str, period: int) -> Estimate:
        """Test accuracy below DDP's, seed by seed."""
        return minus(self.ddp[dealt], self.runs[method, dealt, period], "accuracy")


def section(record: Table) -> str:
    """Its tables."""
    runs, cell = OwnData(record), own_data.FULL.cell
    text = (
        f"\n## Workers with their own data\n\nFashion-MNIST, {cell['workers']} workers, two classes each: nobody sees "
        "a class of another, and nothing is shared but the center. The control is the same images dealt out at random. "
        f"A perceptron with two hidden layers of {cell['width']}, without batch normalization (its statistics would be "
        f"those of two classes), AdamW inside, batch {cell['batch']}, {cell['steps']:,} steps a worker, constant rate. "
        "Accuracies are those of the center on the test images; the settings were chosen on training images that were "
        "held out. The methods of one period exchange equally often, with one vector each way to EASGD's center and 2 "
        "(p - 1) / p around the others' ring.\n\n"
    )
    text += _accuracies(runs) + INTERVALS + _averages(runs, record)
    return text + source(newest(record), "HOOKE_DATA=FOLDER python benchmarks/own_data.py")


def _accuracies(runs: OwnData) -> str:
    head = ["data", "method", "period", "own setting", "rate", "seeds", "accuracy (%)", "below DDP (points)", "MB sent"]
    rows = [
        [
            dealt,
            method,
            period_of(mine[0]),
            own_setting(mine[0]),
            rate(mine[0], runs.search),
            str(len(mine)),
            number(runs.at_end(method, dealt, period), 1, 100),
            "" if method == "DDP" else number(runs.lost(method, dealt, period), 1, 100),
            f"{megabytes(mine):,.1f}",
        ]
        for (method, dealt, period), mine in runs.runs.items()
    ]
    return table(head, rows)


def _averages(runs: OwnData, record: Table) -> str:
    rows = []
    for (method, dealt, period), shown in runs.runs.items():
        settings = {name: value for name, value in shown[0]["settings"].items() if name != "seed"}
        mine = record.where(study=own_data.AVERAGES, **settings)
        if dealt == "by class" and len(mine):
            beside = mean_interval(mine.column("average_accuracy"))
            center = number(mean_interval(last(mine, "accuracy")), 1, 100)
            rows.append([method, str(period), center, number(beside, 1, 100)])
    if not rows:
        return ""
    return (
        "\n### A moving average of the center\n\nThe same runs by class, with an average over about the last tenth of "
        "the run beside the center (`hooke.Averaged`). It changes no training.\n\n"
        + table(["method", "period", "accuracy of the center (%)", "of its average (%)"], rows)
    )
