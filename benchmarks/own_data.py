"""Workers with their own data, two classes each, nothing shared but the center: EASGD, Local SGD, DiLoCo.

HOOKE_DATA=FOLDER python benchmarks/own_data.py [--minutes M] [--jobs N]

Fashion-MNIST, five workers on the virtual clock of `hooke.simulate`, with real gradients, AdamW inside. The control is
the same images dealt out at random. DDP, one worker with the five batches joined, says what constant communication
would bring. The network has no batch normalization: its statistics would be those of two classes. Finished trials are
never run again.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import torch
from language import bytes_sent, rule_of
from search import Search, main, run_to
from torch import Tensor, nn
from torch.nn import functional as F

import hooke
from hooke.simulate import Cluster, Simulation
from papers import data
from papers.trial import Trials

CLASSES = 10


@cache
def parts(source: str) -> list[tuple[Tensor, Tensor]]:
    """Images as rows of values around 0, with classes: to train, to choose settings (a twelfth), to test.

    `"toy"`: scikit-learn's digits, which need no file.
    """
    x, y, test_x, test_y = data.fashion_mnist() if source == "fashion-mnist" else data.digits()
    mean, deviation = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    (x, test_x) = (torch.from_numpy(((one - mean) / deviation).astype(np.float32)) for one in (x, test_x))
    y, test_y = torch.from_numpy(y), torch.from_numpy(test_y)
    held = len(x) // 12
    return [(x[held:], y[held:]), (x[:held], y[:held]), (test_x, test_y)]


@cache
def shares(source: str, dealt: str, workers: int, seed: int) -> list[Tensor]:
    """Rows of each worker's training images: `"by class"`, as many whole classes each; or `"mixed"`, at random."""
    y = parts(source)[0][1]
    random = np.random.default_rng(seed)
    if dealt == "mixed":
        return [torch.from_numpy(part) for part in np.array_split(random.permutation(len(y)), workers)]
    classes = random.permutation(CLASSES).reshape(workers, -1)
    return [torch.isin(y, torch.from_numpy(own)).nonzero().flatten() for own in classes]


def drawn(
    source: str, dealt: str, batch: int, workers: int, seed: int, worker: int, step: int
) -> tuple[Tensor, Tensor]:
    """A batch of a worker's own images; the same for the same numbers."""
    x, y = parts(source)[0]
    own = shares(source, dealt, workers, seed)[worker]
    rows = own[torch.from_numpy(np.random.default_rng((seed, worker, step)).integers(0, len(own), batch))]
    return x[rows], y[rows]


def joined(source: str, dealt: str, batch: int, workers: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """What the workers draw at a step, as one batch."""
    x, y = zip(*(drawn(source, dealt, batch, workers, seed, worker, step) for worker in range(workers)), strict=True)
    return torch.cat(x), torch.cat(y)


def network(inputs: int, width: int) -> nn.Sequential:
    """A perceptron of two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def trial(
    method: str,
    dealt: str,
    period: int,
    lr: float,
    setting: list[float],
    seed: int,
    source: str,
    workers: int,
    width: int,
    batch: int,
    steps: int,
    points: int,
    averaged: bool = False,
) -> dict[str, Any]:
    """Train p workers for `steps` each; test accuracy of the center at `points` moments, then its validation loss.

    With `averaged` also the accuracy of the center's moving average over about the last tenth of the run.
    """
    torch.manual_seed(seed)
    train, validation, test = parts(source)
    model = network(train[0].shape[1], width)
    alone, star = method == "DDP", method == "EASGD"
    rule = rule_of(method, setting)
    if averaged:
        rule = hooke.Averaged(rule, rate=min(1.0, 10 * period / steps / (workers if star else 1)))
    simulation = Simulation(
        model,
        loss,
        (lambda _, step: joined(source, dealt, batch, workers, seed, step))
        if alone
        else (lambda worker, step: drawn(source, dealt, batch, workers, seed, worker, step)),
        rule,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr, fused=True),
        cluster=Cluster(1 if alone else workers, 1.0, jitter=0.1 if star else 0.0),  # with a jitter they take turns
        communication_period=period,
        synchronous=not star,
        stacked=False,
        seed=seed,
    )
    parameters, share = sum(p.numel() for p in model.parameters()), 1 if alone else workers
    result: dict[str, Any] = {"taken": [], "bytes": [], "accuracy": []}
    with simulation:
        for point in range(1, points + 1):
            run_to(simulation, share * steps * point // points)
            taken, exchanges = simulation.steps / share, simulation.exchanges / share
            result["taken"].append(taken)
            result["bytes"].append(bytes_sent(method, workers, parameters, taken, exchanges))
            result["accuracy"].append(measured(simulation, test)[0])
        if averaged:
            result["average_accuracy"] = measured(simulation, test, average=True)[0]
        return {**result, "validation": measured(simulation, validation)[1], "parameters": parameters}


@torch.no_grad()
def measured(simulation: Simulation, images: tuple[Tensor, Tensor], *, average: bool = False) -> tuple[float, float]:
    """Accuracy and mean loss of the center or of its running average."""
    with simulation.center_weights(average=average) as model:
        out = model(images[0])
    return float((out.argmax(1) == images[1]).double().mean()), float(F.cross_entropy(out, images[1]))


def _setups(periods: list[int], often: int) -> list[dict[str, Any]]:
    kinds = ("by class", "mixed")
    setups = [
        {"method": method, "dealt": dealt, "period": period}
        for dealt in kinds
        for period in periods
        for method in ("EASGD", "Local SGD", "DiLoCo")
    ]
    return setups + [{"method": "DDP", "dealt": dealt, "period": often} for dealt in kinds]


SETTINGS = {
    "DDP": [[]],
    "Local SGD": [[]],
    "DiLoCo": [[0.7, 0.9], [0.7, 0.5], [1.0, 0.5]],  # outer rate and momentum
    "EASGD": [[0.9], [0.45], [1.8]],  # beta
}

FULL = Search(
    setups=_setups([5, 50], often=100),
    rates=[0.001, 0.0003, 0.003, 0.0001],
    settings=SETTINGS,
    cell={"source": "fashion-mnist", "workers": 5, "width": 128, "batch": 32, "steps": 1000, "points": 10},
    seeds=[0, 1, 2],
)
"""DDP's period only says how often its center is refreshed, for the points."""

SMOKE = Search(
    setups=_setups([2], often=4),
    rates=[0.001],
    settings={method: values[:2] for method, values in SETTINGS.items()},
    cell=dict(FULL.cell) | {"source": "toy", "width": 8, "batch": 4, "steps": 8, "points": 2},
    seeds=[0, 1],
)
"""Sizes that take seconds and need no file."""

AVERAGES = "averages"


def run(record: Trials) -> None:
    """Run what the record does not hold; the runs by class once more, with an average of the center beside it."""
    search = SMOKE if record.smoke else FULL
    if search.run(record, trial):
        table, setups = record.table, [one for one in search.setups if one["dealt"] == "by class"]
        rows = [row for one in setups if one["method"] != "DDP" for row in search.shown(table, one)]
        record.study(AVERAGES, trial, [row["settings"] | {"averaged": True} for row in rows])


if __name__ == "__main__":
    sys.exit(main("own_data", (__doc__ or "").splitlines()[0], run))
