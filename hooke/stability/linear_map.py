"""Exchanges as linear maps on `h x^2 / 2`, and how fast they grow or decay.

A worker's memory between two exchanges is `y`: its x, and its velocity where it has momentum. One local step is
`y' = N y`; an exchange, whose correction arrives after `k` more steps, is

    y' = N^k y - alpha (x - c)        c' = c + alpha (x - c)

with k = 0 for the order "gauss-seidel", 1 for "jacobi", and more where an exchange overlaps the steps. `e` stands for
lr * curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-9
_GRID = np.concatenate([np.geomspace(1e-6, 0.01, 60, endpoint=False), np.linspace(0.01, 2, 200)])
_MOST_ROOTS = 128
HUGE = 1e100
"""Beyond it a map counts as unstable."""


@dataclass(frozen=True)
class Spring:
    """Elastic workers and their center.

    Args:
        alpha: The moving rate.
        momentum: Of Nesterov SGD; 0 leaves the velocity out.
        period: tau.
        under_way: k.
        at_once: Number of workers where all exchange at once; `None`: they exchange one by one.
    """

    alpha: float
    momentum: float
    period: int
    under_way: int
    at_once: int | None

    def turn(self, e: np.ndarray) -> np.ndarray:
        """For each e, one worker (or the mean of all at once) and, last, the center: from exchange to exchange.

        What a long period blows up is huge, or not finite.
        """
        step = _step(e, self.momentum)
        size = step.shape[-1]
        turn = np.zeros((len(e), size + 1, size + 1))
        turn[:, size, 0] = self.alpha * (self.at_once or 1)
        turn[:, size, size] = 1 - turn[:, size, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            turn[:, :size, :size] = np.linalg.matrix_power(step, self.under_way)
            turn[:, 0, 0] -= self.alpha
            turn[:, 0, size] = self.alpha
            turn[:, :size] = np.linalg.matrix_power(step, self.period - self.under_way) @ turn[:, :size]
        return turn

    def radius(self, e: float, num_workers: int) -> float:
        """Spectral radius of one period of all workers."""
        turn = self.turn(np.array([e]))
        if not (np.abs(turn) < HUGE).all():
            return math.inf
        if self.at_once is None:
            return radius_in_turn(turn[0], num_workers)
        return float(_radius_at_once(turn, self.at_once)[0])

    def is_stable(self, e: np.ndarray) -> np.ndarray:
        """For each e, whether that direction decays: in every order, or where all workers exchange at once."""
        turn = self.turn(e)
        finite = (np.abs(turn) < HUGE).all(axis=(-2, -1))
        turn[~finite] = 0
        growth = _norm(turn, e) if self.at_once is None else _radius_at_once(turn, self.at_once)
        return finite & (growth <= 1 + _ROUNDING)

    def is_stable_up_to(self, e: float) -> bool:
        """Whether e and all flatter directions are stable."""
        return e < 2 and bool(self.is_stable(np.append(_GRID[e > _GRID], e)).all())

    def border(self) -> float:
        """Smallest e that is not stable."""
        bad = np.flatnonzero(~self.is_stable(_GRID))
        if not bad.size:
            return 2.0
        if bad[0] == 0:
            return 0.0
        low, high = _GRID[bad[0] - 1 : bad[0] + 1].tolist()
        return last(lambda e: bool(self.is_stable(np.array([e]))[0]), low, high)


def _step(e: np.ndarray, momentum: float) -> np.ndarray:
    """N, of x alone, or of x and its velocity."""
    if not momentum:
        return (1 - e)[:, None, None]
    ahead = momentum * (1 - e)
    return np.stack([np.stack([1 - e, ahead], -1), np.stack([-e, ahead], -1)], -2)


def _radius_at_once(turn: np.ndarray, num_workers: int) -> np.ndarray:
    """Of the workers' mean with the center, and, where there are several, of their differences, which it never sees."""
    radius = np.abs(np.linalg.eigvals(turn)).max(axis=-1)
    if num_workers == 1:
        return radius
    return np.maximum(radius, np.abs(np.linalg.eigvals(turn[:, :-1, :-1])).max(axis=-1))


def _norm(turn: np.ndarray, e: np.ndarray) -> np.ndarray:
    """How much each map lengthens a vector at most; a velocity is weighed so that a step alone lengthens none."""
    if turn.shape[-1] == 2:
        return np.linalg.norm(turn, 2, axis=(-2, -1))
    norm = np.empty(len(e))
    mild = e < 1
    norm[mild] = _weighed(turn[mild], ((1 - e[mild]) / e[mild])[None])[0]
    steep = np.flatnonzero(~mild)  # no weight is known: any that serves will do
    if steep.size:
        norm[steep] = _weighed(turn[steep], np.geomspace(1e-4, 1e2, 49)[:, None]).min(axis=0)
    return norm


def _weighed(turn: np.ndarray, weight: np.ndarray) -> np.ndarray:
    scale = np.ones((*np.broadcast_shapes(weight.shape, (1, len(turn))), 3))
    scale[..., 1] = np.sqrt(weight)
    return np.linalg.norm(turn * scale[..., :, None] / scale[..., None, :], 2, axis=(-2, -1))


def radius_in_turn(turn: np.ndarray, num_workers: int) -> float:
    """Spectral radius of a round in which p workers take one turn each, from the map of one worker and the center.

    A turn followed by renaming the workers in a circle has eigenvalues m with, for `[[A, b], [d, c]] = turn`,
    `(m - c) det(m^p - A) = d adj(m^p - A) b`; a round is p of them.
    """
    if not (np.abs(turn) < HUGE).all():
        return math.inf
    A, b, d, c = turn[:-1, :-1], turn[:-1, -1], turn[-1, :-1], turn[-1, -1]
    if len(A) == 1:
        det, adj = np.array([1, -A[0, 0]]), np.array([d[0] * b[0]])
    else:
        adjugate = np.trace(A) * np.eye(2) - A
        det, adj = np.array([1, -np.trace(A), np.linalg.det(A)]), np.array([d @ b, -d @ adjugate @ b])
    if num_workers * len(A) > _MOST_ROOTS:
        return _radius_of_many(det, adj, float(c), num_workers)
    polynomial = np.polysub(np.polymul([1, -c], _spread(det, num_workers)), _spread(adj, num_workers))
    return float(np.abs(np.roots(polynomial)).max() ** num_workers)


def _spread(coefficients: np.ndarray, times: int) -> np.ndarray:
    """Of a polynomial in m^times."""
    spread = np.zeros((len(coefficients) - 1) * times + 1)
    spread[::times] = coefficients
    return spread


def _radius_of_many(det: np.ndarray, adj: np.ndarray, c: float, num_workers: int) -> float:
    """The same by Newton's method on z = p log m, from many starts: a polynomial's roots would take cubic time."""
    real, imaginary = np.meshgrid(np.linspace(-6, 1, 15), np.linspace(0, 4 * np.pi, 33))
    z = (real + 1j * imaginary).ravel()
    with np.errstate(all="ignore"):
        change = np.full_like(z, np.inf)
        for _ in range(60):
            m, power = np.exp(z / num_workers), np.exp(z)
            value = (m - c) * np.polyval(det, power) - np.polyval(adj, power)
            slope = (m - c) * np.polyval(np.polyder(det), power) - np.polyval(np.polyder(adj), power)
            change = value / (m / num_workers * np.polyval(det, power) + slope * power)
            z = z - change
        found = z[np.isfinite(z) & (np.abs(change) < 1e-9)]
    return float(np.exp(found.real.max())) if found.size else 0.0


def last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where `holds`, true at `low`, becomes false on the way to `high`."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return float(low)
