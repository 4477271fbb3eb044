"""A simulation of bowls, and the literal loop over the events of the timeline that it must equal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from cases import ETA, Quadratic
from torch import Tensor, nn

from hooke.rule import Rule
from hooke.simulate import Cluster, Drift, Event, Failure, Simulation, timeline

SIZE = 9
A = Quadratic(SIZE, 0, torch.float64).A.numpy()
BEGIN = Quadratic(SIZE, 0, torch.float64).x.detach().numpy()


def minimum_of(worker: int, step: int = 0) -> Tensor:
    """Worker i's batches: the minimum of a bowl, which moves a little at each step."""
    fixed = np.random.default_rng(100 + worker).normal(size=SIZE)
    return torch.tensor(fixed + 0.1 * np.random.default_rng((worker, step)).normal(size=SIZE), dtype=torch.float32)


def bowl(model: nn.Module, b: Tensor) -> Tensor:
    away = model.x - b
    return away @ model.A @ away / 2


def sgd(momentum: float = 0.0) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=ETA, momentum=momentum, nesterov=momentum > 0)


def simulated(rule: Rule, cluster: Cluster, until: float, *, momentum: float = 0.0, **options: Any) -> np.ndarray:
    """The center of a simulation on bowls."""
    settings = {"communication_period": 4, "batches": minimum_of, "optimizer": sgd(momentum)} | options
    with Simulation(Quadratic(SIZE, 0), bowl, rule=rule, cluster=cluster, **settings) as simulation:
        simulation.run(until)
        return simulation.center[:SIZE].double().numpy()


class Literal:
    """Event by event, in float64, with what an exchange takes from x subtracted when it settles."""

    def __init__(self, rule: Rule, p: int, momentum: float, batches: Callable[[int, int], Tensor]) -> None:
        self.rule, self.momentum, self.batches = rule, momentum, batches
        self.center = torch.tensor(BEGIN)
        self.memory = rule.init_center(self.center)
        self.x, self.v, self.state, self.taken, self.owed = {}, {}, {}, {}, {}
        for worker in range(p):
            self.join(worker)

    def join(self, worker: int) -> None:
        self.x[worker] = self.center.clone()
        self.v[worker] = torch.zeros(SIZE, dtype=torch.float64)
        self.state[worker] = self.rule.init(self.center)
        self.taken[worker], self.owed[worker] = 0, (math.inf, None)

    def walk(self, worker: int, step: int) -> None:
        while self.taken[worker] < step:
            x, v = self.x[worker], self.v[worker]
            b = self.batches(worker, self.taken[worker]).double()
            v = self.momentum * v - ETA * torch.tensor(A) @ (x + self.momentum * v - b)
            self.x[worker], self.v[worker] = x + v, v
            self.taken[worker] += 1
            self.settle(worker)

    def settle(self, worker: int) -> None:
        at, correction = self.owed[worker]
        if at <= self.taken[worker]:
            self.x[worker], self.owed[worker] = self.x[worker] - correction, (math.inf, None)

    def exchange(self, event: Event) -> None:
        """Jacobi waits for the step; where the worker waits for the exchange, Gauss-Seidel does not."""
        worker, x = event.worker, self.x[event.worker].clone()
        if not x.isfinite().all():
            return
        out = torch.empty_like(x)
        self.rule.bind(event.workers).exchange_(x, self.center, self.state[worker], out, memory=self.memory)
        at = event.settled_step
        if at == event.step and self.rule.order == "jacobi":
            at += 1
        self.owed[worker] = at, out
        self.settle(worker)

    def happen(self, event: Event) -> None:
        if event.kind == "joined":
            self.join(event.worker)
        elif event.kind == "exchange" and (event.step or self.rule.order == "jacobi"):
            self.walk(event.worker, event.step)
            self.exchange(event)


def events_of(cluster: Cluster, until: float, period: int = 4, **options: Any) -> list[Event]:
    """Those that a simulation of bowls goes by; a vector of 9 fills a line of 16."""
    every = timeline(cluster, values=16, communication_period=period, steps=1 << 40, **options)
    return list(itertools.takewhile(lambda event: event.absorbed <= until, every))


def expected(rule: Rule, cluster: Cluster, until: float, *, momentum: float = 0.0, period: int = 4, **options: Any):
    batches = options.pop("batches", minimum_of)
    literal = Literal(rule, cluster.num_workers, momentum, batches)
    for event in events_of(cluster, until, period, **options):
        literal.happen(event)
    return literal.center.numpy()


def assert_close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-5) -> None:
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


MORTAL = Cluster(
    4,
    [1.0, 1.2, 1.4, 1.9],
    jitter=0.1,
    drift=Drift(every=10.0, sigma=0.3),
    bandwidth=16 * 32 / 0.3,
    latency=0.05,
    failures=(Failure(1, 13.0), Failure(2, 9.0, back=20.5), Failure(2, 31.0, back=33.0), Failure(3, 0.0, back=7.0)),
    lost=0.1,
)
