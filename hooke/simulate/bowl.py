"""A noisy quadratic and an optimizer on it: many steps are one linear map and one normal draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_DRAWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Bowl:
    """A quadratic with gradient noise, and the optimizer that goes down it.

        f(x) = sum of h_i x_i^2 / 2      g_i(x) = h_i x_i + noise_i      noise_i ~ N(0, sigma_i^2)

        v' = m v - lr g(x + m v)         x' = x + v'

    with m the Nesterov momentum; m = 0 is SGD. Near a minimum a smooth loss is such a bowl along each direction of its
    Hessian, so what holds here is the local theory of a method, not a forecast for a deep net.

    Args:
        curvatures: h, one for each direction, positive.
        sigma: Standard deviation of the gradient noise; one number, or one for each direction.
        lr: Learning rate.
        momentum: m, in [0, 1).

    Raises:
        ValueError: A number outside its range.

    Example:
        >>> bowl = Bowl(curvatures=(1.0, 0.1), lr=0.1)
        >>> float(bowl.excess(np.array([1.0, 1.0])))
        0.55
    """

    curvatures: Sequence[float]
    sigma: float | Sequence[float] = 0.0
    lr: float = 0.1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.curvatures, Sequence | np.ndarray):
            raise ValueError(f"Bowl: curvatures must be a sequence. Got {self.curvatures!r}. Use e.g. (1.0, 0.1).")
        object.__setattr__(self, "curvatures", tuple(float(h) for h in self.curvatures))
        if not self.curvatures or not all(0 < h < np.inf for h in self.curvatures):
            raise ValueError(f"Bowl: curvatures must be positive. Got {self.curvatures}. Use e.g. (1.0, 0.1).")
        sigma = np.asarray(self.sigma, dtype=float)
        if sigma.shape not in ((), (len(self.curvatures),)) or not np.all((sigma >= 0) & np.isfinite(sigma)):
            raise ValueError(
                f"Bowl: sigma must be at least 0, one number or one for each of {len(self.curvatures)} directions. Got "
                f"{self.sigma}. Use e.g. 0.1."
            )
        if not 0 < self.lr < np.inf or not 0 <= self.momentum < 1:
            raise ValueError(
                f"Bowl: lr must be positive and momentum in [0, 1). Got lr={self.lr}, momentum={self.momentum}. "
                "Use e.g. lr=0.1, momentum=0.9."
            )

    def excess(self, x: np.ndarray) -> np.ndarray:
        """f(x) - f(0): how much more than the least loss. Shape (..., directions) to (...)."""
        return (np.asarray(self.curvatures) * x**2).sum(-1) / 2

    def leg(self, steps: int) -> Leg:
        """What `steps` steps do, in closed form."""
        h, m = np.asarray(self.curvatures), self.momentum
        e = self.lr * h
        scale = self.lr * np.broadcast_to(np.asarray(self.sigma, dtype=float), h.shape)
        if m == 0:
            power = (1 - e) ** steps
            spread = np.sqrt(np.where(e == 2, steps, (1 - power**2) / np.where(e == 2, 1, e * (2 - e))))
            return Leg(power[None, None], (scale * spread)[None, None])
        step = np.stack([np.stack([1 - e, m * (1 - e)], -1), np.stack([-e, m * (1 - e)], -1)], -2)
        power, covariance = np.broadcast_to(np.eye(2), step.shape), np.zeros(step.shape)
        for _ in range(steps):
            power = step @ power
            covariance = step @ covariance @ step.swapaxes(-1, -2) + (scale**2)[:, None, None]
        return Leg(np.moveaxis(power, 0, -1), np.moveaxis(_root(covariance), 0, -1))


class Leg(NamedTuple):
    """`y' = power y + spread z` for standard normal z, in each direction; y is x, or x and v with momentum.

    Attributes:
        power: Shape (size of y, size of y, directions).
        spread: As `power`; a lower triangle.
    """

    power: np.ndarray
    spread: np.ndarray


def _root(covariance: np.ndarray) -> np.ndarray:
    """Cholesky factors of 2 x 2 covariances, of which those of one step (or of no noise) are singular."""
    root = np.zeros_like(covariance)
    root[:, 0, 0] = np.sqrt(covariance[:, 0, 0])
    there = root[:, 0, 0] > 0
    root[there, 1, 0] = covariance[there, 1, 0] / root[there, 0, 0]
    root[:, 1, 1] = np.sqrt(np.maximum(covariance[:, 1, 1] - root[:, 1, 0] ** 2, 0))
    return root


class Motion:
    """Moves states on a bowl by legs, with random numbers of its own.

    Args:
        bowl: The loss and the optimizer.
        num_workers: How many states.
        start: Where they begin; one number, or one for each direction.
        seed: Of the gradient noise.

    Attributes:
        state: Shape (workers, size of y, directions).
    """

    def __init__(self, bowl: Bowl, num_workers: int, start: float | Sequence[float], seed: int) -> None:
        self.size = 2 if bowl.momentum else 1
        self.state = np.zeros((num_workers, self.size, len(bowl.curvatures)))
        self.state[:, 0] = start
        self._bowl, self._legs = bowl, dict[int, Leg]()
        self._noisy = bool(np.any(np.asarray(bowl.sigma) != 0))
        self._random = np.random.default_rng(seed)
        self._draws, self._drawn = np.empty((0, 1, *self.state.shape[1:])), 0

    def go_(self, worker: int, steps: int) -> None:
        """Let a worker take `steps` steps."""
        if steps:
            power, spread = self.leg(steps)
            y, single = self.state[worker], self.size == 1  # a sum over one takes as long as all the rest
            moved = power[0] * y if single else (power * y).sum(1)
            if self._noisy:
                z = self._normal()
                moved += spread[0] * z[0] if single else (spread * z).sum(1)
            self.state[worker] = moved

    def leg(self, steps: int) -> Leg:
        """As `Bowl.leg`, remembered."""
        if steps not in self._legs:
            self._legs[steps] = self._bowl.leg(steps)
        return self._legs[steps]

    def _normal(self) -> np.ndarray:
        if self._drawn == len(self._draws):
            self._draws = self._random.standard_normal((_DRAWS_AT_ONCE, *self._draws.shape[1:]))
            self._drawn = 0
        self._drawn += 1
        return self._draws[self._drawn - 1]


def stationary_variance(
    bowl: Bowl, num_workers: int, *, communication_period: int = 1, beta: float = 0.9
) -> np.ndarray:
    """Variance of the center, in each direction, after a long synchronous run of EASGD (EAMSGD with momentum).

    All workers exchange at once, so the mean y of the workers and the center c are a linear map with noise: with the
    maps N of a step and S, S' = the covariance of a period's noise,

        y' = N^tau y - N^(tau - 1) (alpha (x - c), 0) + S z / sqrt(p)      c' = c + beta (x - c)

    and the covariance P of (y, c) solves the Lyapunov equation P = M P M' + Q, Q = diag(S S' / p, 0).

    Args:
        bowl: The loss and the optimizer.
        num_workers: p, at least 1.
        communication_period: tau, at least 1.
        beta: p alpha.

    Returns:
        Shape (directions,), in squares of x.

    Raises:
        ValueError: The map is not stable, so that there is no such variance; or a number below 1.

    Example:
        >>> bowl = Bowl(curvatures=(1.0,), sigma=1.0, lr=0.1)
        >>> [round(float(stationary_variance(bowl, p)[0]), 5) for p in (1, 4, 16)]
        [0.03258, 0.01046, 0.00304]
    """
    if num_workers < 1 or communication_period < 1:
        raise ValueError(
            "stationary_variance: num_workers and communication_period must be at least 1. Got "
            f"{num_workers} and {communication_period}. Use e.g. 4 and 10."
        )
    power, spread = bowl.leg(communication_period)
    last = bowl.leg(communication_period - 1).power[:, 0]
    alpha, size = beta / num_workers, len(power)
    variances = []
    for i in range(power.shape[-1]):
        M = np.zeros((size + 1, size + 1))
        M[:size, :size] = power[..., i]
        M[:size, 0] -= alpha * last[:, i]
        M[:size, size] = alpha * last[:, i]
        M[size, [0, size]] = beta, 1 - beta
        radius = float(np.abs(np.linalg.eigvals(M)).max())
        if not radius < 1:
            raise ValueError(
                f"stationary_variance: the map must be stable. Got a spectral radius of {radius:.4g} at curvature "
                f"{bowl.curvatures[i]:g}. Use a smaller lr or beta."
            )
        Q = np.zeros_like(M)
        Q[:size, :size] = spread[..., i] @ spread[..., i].T / num_workers
        P = np.linalg.solve(np.eye((size + 1) ** 2) - np.kron(M, M), Q.ravel()).reshape(M.shape)
        variances.append(P[size, size])
    return np.array(variances)
