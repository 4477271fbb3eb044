"""Round-robin ADMM, the comparator of the paper's stability analysis: its growth on `h x^2 / 2`, and its path."""

from __future__ import annotations

import numpy as np

from hooke.stability.setting import check_setting


def admm_radius(lr: float, rho: float, num_workers: int, curvature: float = 1.0) -> float:
    """Spectral radius of one round of the linearized, asynchronous ADMM: workers in turn; above 1 it diverges.

        l_i' = l_i - (x_i - c)      x_i' = ((1 - lr h) x_i + lr rho (l_i' + c)) / (1 + lr rho)      c' = mean(x - l)

    Args:
        lr: eta.
        rho: The penalty.
        num_workers: p; the map has 2 p + 1 rows.
        curvature: h.

    Raises:
        ValueError: A number outside its range.

    Example:
        >>> round(admm_radius(0.001, 2.5, 3), 5), round(admm_radius(0.001, 2.5, 8), 5)
        (1.00097, 1.00226)

    Reference:
        arXiv 1412.6651, section 4, figure 1: chaotic at eta = 0.001, rho = 2.5.
    """
    check_setting(lr=lr, curvature=curvature, rho=rho, num_workers=num_workers)
    round_ = np.eye(2 * num_workers + 1)
    for worker in range(num_workers):
        _turn_(round_, worker, lr, rho, curvature)
    return float(np.abs(np.linalg.eigvals(round_)).max())


def admm_path(
    lr: float, rho: float, num_workers: int, turns: int, *, curvature: float = 1.0, start: float = 1000.0
) -> np.ndarray:
    """The path of the linearized, asynchronous ADMM on `h x^2 / 2`: workers take turns, each one step a turn.

    The equations are those of `admm_radius`; every l begins at 0, every x and the center at `start`.

    Args:
        lr: eta.
        rho: The penalty.
        num_workers: p.
        turns: How many steps are taken, by all workers together; p of them are a round.
        curvature: h.
        start: Where x and center begin. Default 1000, the paper's.

    Returns:
        Float64[turns + 1, 2 p + 1]: one row before each turn and one after the last, each `x_1..x_p, l_1..l_p, c`.

    Raises:
        ValueError: A number outside its range.

    Example:
        >>> center = abs(admm_path(0.001, 2.5, num_workers=3, turns=48_000)[:, -1])
        >>> [round(float(center[turn : turn + 6000].max())) for turn in (0, 12_000, 24_000, 42_000)]
        [1000, 20, 753, 256749]

    Reference:
        arXiv 1412.6651, section 4: the path that the paper shows, of eta = 0.001, rho = 2.5, p = 3.
    """
    check_setting(lr=lr, curvature=curvature, rho=rho, num_workers=num_workers, turns=turns)
    path = np.zeros((turns + 1, 2 * num_workers + 1))
    path[0, :num_workers] = path[0, -1] = start
    for turn in range(turns):
        path[turn + 1] = path[turn]
        _turn_(path[turn + 1], turn % num_workers, lr, rho, curvature)
    return path


def _turn_(state: np.ndarray, worker: int, lr: float, rho: float, curvature: float) -> None:
    """One worker's turn, in place, on numbers or on the rows of a map: x_1..x_p, l_1..l_p, c."""
    p = len(state) // 2
    x, dual, center = state[:p], state[p:-1], state[-1:]
    dual[worker] -= x[worker] - center[0]
    pulled = (1 - lr * curvature) * x[worker] + lr * rho * (dual[worker] + center[0])
    x[worker] = pulled / (1 + lr * rho)
    center[0] = (x - dual).mean(axis=0)
