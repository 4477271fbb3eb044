"""The papers' algorithms, transcribed literally in numpy: slow, obviously right, with the papers' letters.

Every reference steps `p` workers in a fixed interleaving (worker 0, 1, ..., p-1, and again), each on its own clock t.
`g(i, x)` is worker i's gradient at x; a worker's clock starts at 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Gradient = Callable[[int, Array], Array]


def easgd_jacobi(x0: Array, g: Gradient, *, p: int, eta: float, alpha: float, tau: int, steps: int):
    """arXiv 1412.6651, Algorithm 1: the gradient is taken at the value before the elastic step."""
    x, center = [x0.copy() for _ in range(p)], x0.copy()
    for t in range(steps):
        for i in range(p):
            before = x[i].copy()
            if t % tau == 0:
                x[i] = x[i] - alpha * (before - center)
                center = center + alpha * (before - center)
            x[i] = x[i] - eta * g(i, before)
    return x, center


def easgd_gauss_seidel(x0: Array, g: Gradient, *, p: int, eta: float, alpha: float, tau: int, steps: int):
    """The center sees the worker that has just stepped, and the next gradient sees the pulled worker."""
    x, center = [x0.copy() for _ in range(p)], x0.copy()
    for t in range(steps):
        for i in range(p):
            x[i] = x[i] - eta * g(i, x[i])
            if (t + 1) % tau == 0:
                difference = alpha * (x[i] - center)
                x[i], center = x[i] - difference, center + difference
    return x, center


def eamsgd(x0: Array, g: Gradient, *, p: int, eta: float, alpha: float, tau: int, steps: int, delta: float):
    """arXiv 1412.6651, Algorithm 2: Nesterov momentum in the worker; the spring pulls on the plain point."""
    x, v, center = [x0.copy() for _ in range(p)], [np.zeros_like(x0) for _ in range(p)], x0.copy()
    for t in range(steps):
        for i in range(p):
            before = x[i].copy()
            if t % tau == 0:
                x[i] = x[i] - alpha * (before - center)
                center = center + alpha * (before - center)
            v[i] = delta * v[i] - eta * g(i, before + delta * v[i])
            x[i] = x[i] + v[i]
    return x, center


def eamsgd_gauss_seidel(
    x0: Array, g: Gradient, *, p: int, eta: float, alpha: float, tau: int, steps: int, delta: float
):
    """The same with the elastic step between two momentum steps."""
    x, v, center = [x0.copy() for _ in range(p)], [np.zeros_like(x0) for _ in range(p)], x0.copy()
    for t in range(steps):
        for i in range(p):
            v[i] = delta * v[i] - eta * g(i, x[i] + delta * v[i])
            x[i] = x[i] + v[i]
            if (t + 1) % tau == 0:
                difference = alpha * (x[i] - center)
                x[i], center = x[i] - difference, center + difference
    return x, center


def downpour(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int):
    """arXiv 1412.6651, Algorithm 3; the exchange that ends the last step is the one that would begin the next."""
    x, v, center = [x0.copy() for _ in range(p)], [np.zeros_like(x0) for _ in range(p)], x0.copy()
    for t in range(steps + 1):
        for i in range(p):
            if t % tau == 0:
                center = center + v[i]
                x[i] = center.copy()
                v[i] = np.zeros_like(x0)
            if t < steps:
                gradient = g(i, x[i])
                x[i], v[i] = x[i] - eta * gradient, v[i] - eta * gradient
    return x, center


def local_sgd_asynchronous(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int):
    """Local SGD where each worker merges when it is ready: the center moves by its way / p, and it goes on there."""
    x, start, center = [x0.copy() for _ in range(p)], [x0.copy() for _ in range(p)], x0.copy()
    for t in range(1, steps + 1):
        for i in range(p):
            x[i] = x[i] - eta * g(i, x[i])
            if t % tau == 0:
                center = center + (x[i] - start[i]) / p
                x[i], start[i] = center.copy(), center.copy()
    return x, center


def local_sgd(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int):
    """arXiv 1805.09767, Algorithm 1: every tau steps all workers go on from their mean."""
    x = [x0.copy() for _ in range(p)]
    mean = x0.copy()
    for t in range(1, steps + 1):
        x = [x[i] - eta * g(i, x[i]) for i in range(p)]
        if t % tau == 0:
            mean = sum(x) / p
            x = [mean.copy() for _ in range(p)]
    return x, mean


def easgd_synchronous(x0: Array, g: Gradient, *, p: int, eta: float, alpha: float, tau: int, steps: int):
    """arXiv 1412.6651, eqs. 5 and 6, with period tau: all workers exchange at once."""
    x, center = [x0.copy() for _ in range(p)], x0.copy()
    for t in range(steps):
        before = [xi.copy() for xi in x]
        gradients = [g(i, before[i]) for i in range(p)]
        x = [before[i] - eta * gradients[i] for i in range(p)]
        if t % tau == 0:
            x = [x[i] - alpha * (before[i] - center) for i in range(p)]
            center = center + alpha * sum(before[i] - center for i in range(p))
    return x, center


def easgd_by_halves(
    x0: Array,
    g: Gradient,
    *,
    p: int,
    eta: float,
    alpha: float,
    collect: int,
    deliver: int,
    every_step: bool,
    steps: int,
):
    """The first description: the master collects and delivers now and then; workers are pulled to what they know."""
    x, told, center = [x0.copy() for _ in range(p)], [x0.copy() for _ in range(p)], x0.copy()
    for t in range(steps):
        for i in range(p):
            before = x[i].copy()
            if t % deliver == 0:
                told[i] = center.copy()
            if t % collect == 0:
                center = center + alpha * (before - center)
            pull = alpha * (before - told[i]) if every_step or t % deliver == 0 else 0.0
            x[i] = before - eta * g(i, before) - pull
    return x, center
