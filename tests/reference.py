"""The papers' algorithms, transcribed literally in numpy: slow, obviously right, with the papers' letters.

Every reference steps `p` workers in a fixed interleaving (worker 0, 1, ..., p-1, and again), each on its own clock t.
`g(i, x)` is worker i's gradient at x; a worker's clock starts at 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Gradient = Callable[[int, Array], Array]
Loss = Callable[[int, Array], float]


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


def msgd(x0: Array, g: Gradient, *, eta: float, delta: float, steps: int):
    """Sequential Nesterov momentum, arXiv 1412.6651, section 5; also the look-ahead point x + delta * v."""
    x, v = x0.copy(), np.zeros_like(x0)
    for _ in range(steps):
        v = delta * v - eta * g(0, x + delta * v)
        x = x + v
    return x, x + delta * v


def mdownpour(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, delta: float):
    """arXiv 1412.6651, Algorithms 4 and 5: the master holds y = x~ + delta * v; workers send -eta * gradients.

    The paper has tau = 1; with a longer period the worker goes on by itself and sends their sum.
    """
    y, v = x0.copy(), np.zeros_like(x0)
    x, sent = [x0.copy() for _ in range(p)], [np.zeros_like(x0) for _ in range(p)]
    for t in range(1, steps + 1):
        for i in range(p):
            step = -eta * g(i, x[i])
            x[i], sent[i] = x[i] + step, sent[i] + step
            if t % tau == 0:
                v = delta * v + sent[i]
                y = y + sent[i] + delta * v
                x[i], sent[i] = y.copy(), np.zeros_like(x0)
    return x, y


def lookahead(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, alpha: float):
    """arXiv 1907.08610, Algorithm 1, for p = 1; with more workers each brings alpha / p of its way."""
    theta, began, phi = [x0.copy() for _ in range(p)], [x0.copy() for _ in range(p)], x0.copy()
    for t in range(1, steps + 1):
        for i in range(p):
            theta[i] = theta[i] - eta * g(i, theta[i])
            if t % tau == 0:
                phi = phi + alpha / p * (theta[i] - began[i])
                theta[i], began[i] = phi.copy(), phi.copy()
    return theta, phi


def slowmo(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, alpha: float, beta: float):
    """arXiv 1910.00643, Algorithm 1, with local SGD inside: u is in units of gradients."""
    began, u = x0.copy(), np.zeros_like(x0)
    x = [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        x = [x[i] - eta * g(i, x[i]) for i in range(p)]
        if t % tau == 0:
            u = beta * u + (began - sum(x) / p) / eta
            began = began - alpha * eta * u
            x = [began.copy() for _ in range(p)]
    return x, began


def bmuf(
    x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, momentum: float, zeta: float, nesterov: bool
):
    """Chen and Huo 2016: classical block momentum, or Nesterov's, where workers begin at W + momentum * Delta."""
    w, began, delta = x0.copy(), x0.copy(), np.zeros_like(x0)
    x = [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        x = [x[i] - eta * g(i, x[i]) for i in range(p)]
        if t % tau == 0:
            delta = momentum * delta + zeta * (sum(x) / p - began)
            w = w + delta
            began = w + momentum * delta if nesterov else w
            x = [began.copy() for _ in range(p)]
    return x, began


def diloco(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, lr: float, momentum: float):
    """arXiv 2311.08105, Algorithm 1, with SGD inside; the outer step as torch's SGD(nesterov=True) writes it."""
    theta, m = x0.copy(), np.zeros_like(x0)
    x = [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        x = [x[i] - eta * g(i, x[i]) for i in range(p)]
        if t % tau == 0:
            pseudo_gradient = sum(theta - x[i] for i in range(p)) / p
            m = momentum * m + pseudo_gradient
            theta = theta - lr * (pseudo_gradient + momentum * m)
            x = [theta.copy() for _ in range(p)]
    return x, theta


def slowmo_asynchronous(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, alpha: float, beta: float):
    """A slow step at each worker's arrival, with its part in p of the mean."""
    center, u = x0.copy(), np.zeros_like(x0)
    x, began = [x0.copy() for _ in range(p)], [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        for i in range(p):
            x[i] = x[i] - eta * g(i, x[i])
            if t % tau == 0:
                u = beta * u + (began[i] - x[i]) / p / eta
                center = center - alpha * eta * u
                x[i], began[i] = center.copy(), center.copy()
    return x, center


def diloco_asynchronous(
    x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, lr: float, momentum: float
):
    """An outer Nesterov step at each worker's arrival, with its part in p: the naive form of arXiv 2401.09135."""
    center, m = x0.copy(), np.zeros_like(x0)
    x, began = [x0.copy() for _ in range(p)], [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        for i in range(p):
            x[i] = x[i] - eta * g(i, x[i])
            if t % tau == 0:
                pseudo_gradient = (began[i] - x[i]) / p
                m = momentum * m + pseudo_gradient
                center = center - lr * (pseudo_gradient + momentum * m)
                x[i], began[i] = center.copy(), center.copy()
    return x, center


def delayed_nesterov(
    x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, lr: float, beta: float, n: int | None = None
):
    """arXiv 2401.09135, the delayed Nesterov update with momentum activation c = 0: momentum after every N arrivals."""
    n = p if n is None else n
    theta, m, delta, arrivals = x0.copy(), np.zeros_like(x0), np.zeros_like(x0), 0
    x, began = [x0.copy() for _ in range(p)], [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        for i in range(p):
            x[i] = x[i] - eta * g(i, x[i])
            if t % tau == 0:
                pseudo_gradient = began[i] - x[i]
                delta, arrivals = delta + pseudo_gradient, arrivals + 1
                if arrivals % n == 0:
                    m = beta * m + delta / n
                    theta = theta - lr * (beta * m + pseudo_gradient / n)
                    delta = np.zeros_like(x0)
                else:
                    theta = theta - lr * pseudo_gradient / n
                x[i], began[i] = theta.copy(), theta.copy()
    return x, theta


def averaged_downpour(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, rate: float | None):
    """arXiv 1412.6651, section 5: ADOWNPOUR (no rate) and MVADOWNPOUR; z first sees the center, then the center moves.

    The master's clock counts its updates; the updates by nothing that Algorithm 3 has at step 0 are left out.
    """
    center, z, clock = x0.copy(), x0.copy(), 0
    x, v = [x0.copy() for _ in range(p)], [np.zeros_like(x0) for _ in range(p)]
    for t in range(1, steps + 1):
        for i in range(p):
            step = -eta * g(i, x[i])
            x[i], v[i] = x[i] + step, v[i] + step
            if t % tau == 0:
                a = 1 / (clock + 1) if rate is None else rate
                z, clock = (1 - a) * z + a * center, clock + 1
                center = center + v[i]
                x[i], v[i] = center.copy(), np.zeros_like(x0)
    return center, z


def streaming_diloco(
    x0: Array,
    g: Gradient,
    *,
    p: int,
    eta: float,
    tau: int,
    steps: int,
    lr: float,
    momentum: float,
    fragments: list[Array],
    mixing: float,
):
    """arXiv 2501.18512, Algorithm 2 without delay, SGD inside: fragment q at its own offset, all workers at once.

    `fragments` says which elements are in each.
    """
    theta, m = x0.copy(), np.zeros_like(x0)
    x = [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        x = [x[i] - eta * g(i, x[i]) for i in range(p)]
        for q, cut in enumerate(fragments):
            if (t - tau * (q + 1) // len(fragments)) % tau == 0:
                outer_gradient = sum(theta[cut] - x[i][cut] for i in range(p)) / p
                m[cut] = momentum * m[cut] + outer_gradient
                theta[cut] = theta[cut] - lr * (outer_gradient + momentum * m[cut])
                for i in range(p):
                    x[i][cut] = mixing * x[i][cut] + (1 - mixing) * theta[cut]
    return x, theta


def streaming_diloco_asynchronous(
    x0: Array,
    g: Gradient,
    *,
    p: int,
    eta: float,
    tau: int,
    steps: int,
    lr: float,
    momentum: float,
    fragments: list[Array],
    mixing: float,
):
    """The same where each worker's part in p arrives by itself; it remembers the center that it was told."""
    theta, m = x0.copy(), np.zeros_like(x0)
    x, told = [x0.copy() for _ in range(p)], [x0.copy() for _ in range(p)]
    for t in range(1, steps + 1):
        for i in range(p):
            x[i] = x[i] - eta * g(i, x[i])
            for q, cut in enumerate(fragments):
                if (t - tau * (q + 1) // len(fragments)) % tau == 0:
                    outer_gradient = (told[i][cut] - x[i][cut]) / p
                    m[cut] = momentum * m[cut] + outer_gradient
                    theta[cut] = theta[cut] - lr * (outer_gradient + momentum * m[cut])
                    x[i][cut] = mixing * x[i][cut] + (1 - mixing) * theta[cut]
                    told[i][cut] = theta[cut]
    return x, theta


def streaming_eamsgd(
    x0: Array,
    g: Gradient,
    *,
    p: int,
    eta: float,
    tau: int,
    steps: int,
    alpha: float,
    delta: float,
    fragments: list[Array],
):
    """arXiv 1412.6651, Algorithm 2 with the elastic move of one fragment at a time; delta = 0 is EASGD."""
    x, v, center = [x0.copy() for _ in range(p)], [np.zeros_like(x0) for _ in range(p)], x0.copy()
    for t in range(steps):
        for i in range(p):
            before = x[i].copy()
            for q, cut in enumerate(fragments):
                if (t - tau * (q + 1) // len(fragments)) % tau == 0:
                    difference = alpha * (before[cut] - center[cut])
                    x[i][cut], center[cut] = x[i][cut] - difference, center[cut] + difference
            v[i] = delta * v[i] - eta * g(i, before + delta * v[i])
            x[i] = x[i] + v[i]
    return x, center


def post_local_sgd(x0: Array, g: Gradient, *, p: int, eta: float, tau: int, steps: int, switch: int):
    """arXiv 1808.07217: gradients are averaged in the first `switch` steps, then parameters every tau steps."""
    x, mean = [x0.copy() for _ in range(p)], x0.copy()
    for t in range(steps):
        gradients = [g(i, x[i]) for i in range(p)]
        if t < switch:
            gradients = [sum(gradients) / p] * p
        x = [x[i] - eta * gradients[i] for i in range(p)]
        if t < switch or (t + 1 - switch) % tau == 0:
            mean = sum(x) / p
            x = [mean.copy() for _ in range(p)]
    return x, mean


def lsgd(
    x0: Array,
    g: Gradient,
    *,
    p: int,
    eta: float,
    tau: int,
    steps: int,
    pull: float,
    loss: Callable[[int, Array], float],
):
    """arXiv 1905.10395 with one group: every tau steps all are pulled toward the one of the lowest recent loss."""
    x, leader, recent = [x0.copy() for _ in range(p)], x0.copy(), [[] for _ in range(p)]
    for t in range(1, steps + 1):
        for i in range(p):
            recent[i].append(loss(i, x[i]))
            x[i] = x[i] - eta * g(i, x[i])
        if t % tau == 0:
            leader = x[int(np.argmin([np.mean(losses) for losses in recent]))].copy()
            x = [(1 - pull) * x[i] + pull * leader for i in range(p)]
            recent = [[] for _ in range(p)]
    return x, leader


def lsgd_asynchronous(
    x0: Array,
    g: Gradient,
    *,
    p: int,
    eta: float,
    tau: int,
    steps: int,
    pull: float,
    loss: Callable[[int, Array], float],
):
    """The same where each worker exchanges by itself: who leads, sets the center; the others know where that was."""
    x, center, recent = [x0.copy() for _ in range(p)], x0.copy(), [[] for _ in range(p)]
    told = [np.inf] * p
    for t in range(1, steps + 1):
        for i in range(p):
            recent[i].append(loss(i, x[i]))
            x[i] = x[i] - eta * g(i, x[i])
            if t % tau == 0:
                told[i], recent[i] = np.mean(recent[i]), []
                if int(np.argmin(told)) == i:
                    center = x[i].copy()
                x[i] = x[i] - pull * (x[i] - center)
    return x, center


def palsgd(
    x0: Array, g: Gradient, *, p: int, alpha: float, tau: int, steps: int, probability: float, eta: float, draws: Array
):
    """arXiv 2504.18454, Algorithm 1 with SGD inside and averaging outside, all workers at once.

    `draws[t, i]` is worker i's random number at step t; alpha is the learning rate, eta the mixing rate.
    """
    x, mean = [x0.copy() for _ in range(p)], x0.copy()
    for t in range(steps):
        for i in range(p):
            if draws[t, i] < probability:
                x[i] = x[i] - alpha * eta / probability * (x[i] - mean)
            else:
                x[i] = x[i] - alpha / (1 - probability) * g(i, x[i])
        if (t + 1) % tau == 0:
            mean = sum(x) / p
            x = [mean.copy() for _ in range(p)]
    return x, mean
