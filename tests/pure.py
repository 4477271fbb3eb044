"""Pure rules on a quadratic of each worker's own, in float64: one after the other, or all at once."""

from __future__ import annotations

import numpy as np
import torch
from cases import ETA, Quadratic
from torch import Tensor

from hooke.rule import Rule, State

STEPS, SIZE = 100, 9
FORMS = ("delta and settle", "exchange_ in place", "exchange_ with out")


PROBLEMS = [Quadratic(SIZE, worker, torch.float64) for worker in range(4)]


def gradient(worker: int, x: np.ndarray) -> np.ndarray:
    """Worker i's gradient on a quadratic of its own."""
    return PROBLEMS[worker].A.numpy() @ (x - PROBLEMS[worker].b.numpy())


def start() -> Tensor:
    return PROBLEMS[0].x.detach().clone()


def correction_of(
    form: str, rule: Rule, x: Tensor, center: Tensor, state: State, memory: State = ()
) -> tuple[Tensor, State]:
    """One exchange in one of its three forms: what leaves x, and what the worker remembers."""
    if form == "delta and settle":
        delta = rule.delta(x, center, state)
        rule.absorb_(center, delta, memory)
        correction = rule.settle(x, delta, center, state)
        return correction, rule.remembered(x - correction, center)
    out = torch.empty_like(x) if form == "exchange_ with out" else None
    moved = x.clone()
    rule.exchange_(moved, center, state, out, memory=memory)
    return (x - moved if out is None else out), state


def round_robin(
    rule: Rule, p: int, tau: int, form: str = FORMS[0], momentum: float = 0.0, steps: int = STEPS
) -> tuple[list[np.ndarray], np.ndarray]:
    """Workers one after the other, each with SGD, or Nesterov momentum where `momentum` is not 0."""
    rule, center = rule.bind(p), start()
    memory = rule.init_center(center)
    x, v = [start() for _ in range(p)], [torch.zeros(SIZE, dtype=torch.float64) for _ in range(p)]
    states = [rule.init(start()) for _ in range(p)]
    for t in range(steps):
        for i in range(p):
            pull = torch.zeros_like(center)
            if rule.order == "jacobi" and t % tau == 0:
                pull, states[i] = correction_of(form, rule, x[i], center, states[i], memory)
            v[i] = momentum * v[i] - ETA * torch.tensor(gradient(i, (x[i] + momentum * v[i]).numpy()))
            x[i] = x[i] + v[i] - pull
            if rule.order == "gauss-seidel" and (t + 1) % tau == 0:
                pull, states[i] = correction_of(form, rule, x[i], center, states[i], memory)
                x[i] = x[i] - pull
    return [xi.numpy() for xi in x], center.numpy()


def synchronous(rule: Rule, p: int, tau: int) -> tuple[list[np.ndarray], np.ndarray]:
    """All workers' deltas enter the center at once."""
    rule, center = rule.bind(p), start()
    memory = rule.init_center(center)
    x, states = [start() for _ in range(p)], [rule.init(start()) for _ in range(p)]

    def exchange() -> list[Tensor]:
        deltas = [rule.delta(x[i], center, states[i]) for i in range(p)]
        rule.absorb_(center, torch.stack(deltas).sum(0), memory)
        pulls = [rule.settle(x[i], deltas[i], center, states[i]) for i in range(p)]
        states[:] = [rule.remembered(x[i] - pulls[i], center) for i in range(p)]
        return pulls

    for t in range(STEPS):
        steps = [ETA * torch.tensor(gradient(i, x[i].numpy())) for i in range(p)]
        if rule.order == "jacobi" and t % tau == 0:
            steps = [step + pull for step, pull in zip(steps, exchange(), strict=True)]
        x = [xi - step for xi, step in zip(x, steps, strict=True)]
        if rule.order == "gauss-seidel" and (t + 1) % tau == 0:
            x = [xi - pull for xi, pull in zip(x, exchange(), strict=True)]
    return [xi.numpy() for xi in x], center.numpy()


def assert_equal(got: tuple, expected: tuple) -> None:
    for ours, theirs in zip([*got[0], got[1]], [*expected[0], expected[1]], strict=True):
        assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()
