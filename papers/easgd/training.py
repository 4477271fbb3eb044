"""One run of the seven-layer network on CIFAR-10, on a virtual clock: any of the paper's methods."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import hooke
from hooke.simulate import Cluster, Simulation
from papers.easgd.images import Images, images

MOMENTUM = 0.99
"""Of every method with momentum (section 5)."""

WEIGHT_DECAY = 1e-4
BETA = 0.9
DIVERGED = 20
"""Exchanges refused to a worker (values not finite) after which a run is ended."""


def network(width: int) -> nn.Sequential:
    """The paper's seven-layer network; 64 is its width.

    (3,28) C(64,24) P(64,12) C(128,8) P(128,4) C(64,2) D(256,1) S(10,1), ReLU everywhere, dropout 0.5 around D.
    """
    return nn.Sequential(
        nn.Conv2d(3, width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, width, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * width, 4 * width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4 * width, 10),
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def rule_of(method: str) -> hooke.Rule:
    """What a method exchanges. Averages are kept beside the rule whose center they average."""
    return {
        "SGD": hooke.Averaged(hooke.LocalSGD()),  # its average is ASGD
        "MVASGD": hooke.Averaged(hooke.LocalSGD(), rate=0.001),
        "MSGD": hooke.LocalSGD(),
        "DOWNPOUR": hooke.Averaged(hooke.Downpour()),  # its average is ADOWNPOUR
        "MVADOWNPOUR": hooke.Averaged(hooke.Downpour(), rate=0.001),
        "MDOWNPOUR": hooke.MDownpour(MOMENTUM),
        "EASGD": hooke.EASGD(beta=BETA),
        "EAMSGD": hooke.EAMSGD(beta=BETA),
    }[method]


def optimizer_of(method: str, parameters: Any, lr: float) -> torch.optim.SGD:
    """A worker's own optimizer."""
    if method in ("MSGD", "EAMSGD"):
        return torch.optim.SGD(parameters, lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    return torch.optim.SGD(parameters, lr, weight_decay=WEIGHT_DECAY)


def clock(width: int, batch: int, source: str, rounds: int = 30) -> dict[str, Any]:
    """Median seconds of one SGD step, one thread, on the machine that runs this."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, shown = network(width), images(source)
    optimizer = optimizer_of("SGD", model.parameters(), 0.01)
    seconds = []
    for step in range(rounds):
        began = time.perf_counter()
        loss(model, shown.batch(batch, 0, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return {"seconds": round(median(seconds), 5), "parameters": sum(p.numel() for p in model.parameters())}


def trial(
    method: str,
    workers: int,
    period: int,
    lr: float,
    seed: int,
    width: int,
    batch: int,
    steps: int,
    points: int,
    source: str,
    step_seconds: float,
    bandwidth: float,
    latency: float,
    jitter: float,
) -> dict[str, Any]:
    """Train for the virtual seconds that one worker alone needs for `steps`; test errors at `points` moments."""
    shown = images(source)
    torch.manual_seed(seed)
    alone = workers == 1
    simulation = Simulation(
        network(width),
        loss,
        lambda worker, step: shown.batch(batch, seed, worker, step),
        rule_of(method),
        optimizer=lambda parameters: optimizer_of(method, parameters, lr),
        cluster=Cluster(
            workers,
            step_seconds,
            jitter,
            bandwidth=math.inf if alone else bandwidth,
            latency=0.0 if alone else latency,
        ),
        communication_period=period,
        seed=seed,
    )
    result: dict[str, Any] = {"seconds": [], "error": [], "loss": [], "average_error": []}
    tested: dict[str, float] = {}
    with simulation:
        for point in range(1, points + 1):
            if simulation.refused <= DIVERGED * workers:
                simulation.run(until=step_seconds * steps * point / points)
                tested = _tested(simulation, shown)
            result["seconds"].append(round(step_seconds * steps * point / points, 4))
            for name, value in tested.items():
                result[name].append(value)
        return {**result, "taken": simulation.steps, "exchanges": simulation.exchanges, "refused": simulation.refused}


def _tested(simulation: Simulation, shown: Images) -> dict[str, float]:
    with simulation.center_weights() as model:
        error, test_loss = error_of(model, shown)
    tested = {"error": error, "loss": test_loss}
    if isinstance(simulation.rule, hooke.Averaged):
        with simulation.center_weights(average=True) as model:
            tested["average_error"] = error_of(model, shown)[0]
    return tested


@torch.no_grad()
def error_of(model: nn.Module, shown: Images) -> tuple[float, float]:
    """Share of the test images that are classified wrongly, and their mean loss."""
    model.eval()
    wrong, total = 0, 0.0
    for x, y in zip(shown.test.split(500), shown.test_classes.split(500), strict=True):
        out = model(x)
        wrong += int((out.argmax(1) != y).sum())
        total += float(nn.functional.cross_entropy(out, y, reduction="sum"))
    return wrong / len(shown.test), total / len(shown.test)
