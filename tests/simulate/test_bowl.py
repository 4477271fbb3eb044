"""Workers on a noisy quadratic against literal references, hooke's rules, and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import hooke
from hooke.simulate import Bowl, Cluster, Descent, Event, timeline

H = (1.0, 0.3, 0.05)
BUSY = Cluster(5, (0.1, 0.1, 0.13, 0.2, 0.07), jitter=0.3, bandwidth=1e9, latency=0.01, lost=0.1)
RULES = {"easgd": hooke.EASGD(beta=0.9), "downpour": hooke.Downpour(), "local-sgd": hooke.LocalSGD()}


def events_of(cluster: Cluster, *, period: int = 4, overlap: bool = False, synchronous: bool = False, **length: float):
    lost = {} if not synchronous else {"lost": 0.0}
    cluster = Cluster(**{**vars(cluster), **lost})
    return list(
        timeline(
            cluster,
            values=1_000_000,
            communication_period=period,
            overlap=overlap,
            synchronous=synchronous,
            **(length or {"steps": 60}),  # pyright: ignore[reportArgumentType]
        )
    )


def literal(events: list[Event], bowl: Bowl, p: int, method: str, beta: float) -> np.ndarray:
    """Step by step, with hooke's own rules: every worker a loop over its steps, in the order of the events."""
    lr, momentum, h = bowl.lr, bowl.momentum, np.array(bowl.curvatures)
    rule = {**RULES, "easgd": hooke.EASGD(beta=beta)}[method]
    c = np.ones(len(h))
    x, v, start = (np.array([value] * p) for value in (c, 0 * c, c))
    step, pending = [0] * p, [(0 * c, 0)] * p

    def go(i: int, until: int) -> None:
        while step[i] < until:
            v[i] = momentum * v[i] - lr * h * (x[i] + momentum * v[i])
            x[i] = x[i] + v[i]
            step[i] += 1
            if step[i] == pending[i][1]:
                x[i] = x[i] - pending[i][0]

    def exchange(event: Event, seen: np.ndarray) -> None:
        i = event.worker
        state = () if method == "easgd" else (torch.from_numpy(start[i]),)
        bound = rule.bind(event.workers)
        held = torch.from_numpy(seen)
        delta = bound.delta(torch.from_numpy(x[i]), held, state)
        bound.absorb_(torch.from_numpy(c), delta, ())
        ready.append((event, delta))

    def settle() -> None:
        for event, delta in ready:
            i = event.worker
            bound = rule.bind(event.workers)
            state = () if method == "easgd" else (torch.from_numpy(start[i]),)
            correction = bound.settle(torch.from_numpy(x[i]), delta, torch.from_numpy(c), state).numpy()
            start[i] = x[i] - correction
            pending[i] = (correction, max(event.settled_step, event.step + 1))
        ready.clear()

    ready: list = []
    synchronous = len({event.absorbed for event in events}) < len(events) / 2
    for _, together in itertools.groupby(events, key=lambda e: (e.absorbed, synchronous or e.worker)):
        seen = c.copy() if synchronous else c
        for event in together:
            if event.kind == "exchange":
                go(event.worker, event.step)
                exchange(event, seen)
        settle()
    return c


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("way", ["waiting", "overlap", "synchronous"])
def test_without_noise_it_is_the_rule_applied_step_by_step(method: str, momentum: float, way: str) -> None:
    bowl = Bowl(H, lr=0.02, momentum=momentum)
    events = events_of(BUSY, overlap=way == "overlap", synchronous=way == "synchronous")
    run = Descent(bowl, 5, method=method, synchronous=way == "synchronous")  # pyright: ignore[reportArgumentType]
    for event in events:
        run.absorb(event)
    assert run.excess == pytest.approx(float(bowl.excess(run.center)))
    np.testing.assert_allclose(run.center, literal(events, bowl, 5, method, 0.9), rtol=1e-9, atol=1e-12)
    assert not np.allclose(run.center, 1.0, atol=0.01)
