"""The paper's analysis on quadratics: stability of the round-robin scheme, of ADMM, and of DOWNPOUR with a period."""

from __future__ import annotations

from typing import Any

import numpy as np

from hooke.stability import admm_path, admm_radius


def easgd_round(eta: float, alpha: float, workers: int) -> np.ndarray:
    """The map of one round on F(x) = x^2 / 2: workers take turns (section 4), state `x_1..x_p, center`."""
    whole = np.eye(workers + 1)
    for worker in range(workers):
        turn = np.eye(workers + 1)
        turn[worker, worker], turn[worker, -1] = 1 - eta - alpha, alpha
        turn[-1, worker], turn[-1, -1] = alpha, 1 - alpha
        whole = turn @ whole
    return whole


def easgd_map(workers: int, sides: int) -> dict[str, Any]:
    """On a grid, eta below 2.2 and alpha below 1.1: is the spectral radius at most 1, and does the paper say so?"""
    etas, alphas = (np.linspace(0, end, sides + 2)[1:-1] for end in (2.2, 1.1))
    radius = np.array([[_radius(easgd_round(eta, alpha, workers)) for eta in etas] for alpha in alphas])
    said = (etas <= 2) & (alphas[:, None] <= (4 - 2 * etas) / (4 - etas))
    stable = radius <= 1 + 1e-9
    return {"points": stable.size, "agree": int((said == stable).sum()), "stable_share": float(stable.mean())}


def admm_map(workers: int, sides: int) -> dict[str, Any]:
    """Figure 1's grid, eta in (0, 0.01) and rho in (0, 10): spectral radii of ADMM's round, and of EASGD's there."""
    etas, rhos = (np.linspace(0, end, sides + 1)[1:] for end in (0.01, 10.0))
    admm = [[admm_radius(eta, rho, workers) for eta in etas] for rho in rhos]
    easgd = [[_radius(easgd_round(eta, eta * rho, workers)) for eta in etas] for rho in rhos]
    return {
        "etas": etas,
        "rhos": rhos,
        "radius": np.round(admm, 7),
        "unstable_share": float((np.array(admm) > 1 + 1e-9).mean()),
        "easgd_largest": float(np.max(easgd)),
    }


def admm_example(workers: int, rounds: int = 20_000, every: int = 20) -> dict[str, Any]:
    """Figure 2's path, eta = 0.001 and rho = 2.5 from 1000, beside EASGD's with alpha = eta * rho."""
    eta, rho = 0.001, 2.5
    center = np.abs(admm_path(eta, rho, workers, rounds * workers)[:-1:workers, -1])
    state, easgd = np.full(workers + 1, 1000.0), []
    turn = easgd_round(eta, eta * rho, workers)
    for _ in range(rounds):
        easgd.append(abs(state[-1]))
        state = turn @ state
    return {
        "every": every,
        "admm": np.round(center[::every], 4),
        "easgd": np.round(easgd[::every], 4),
        "radius": admm_radius(eta, rho, workers),
        "easgd_radius": _radius(turn),
        "last_over_first": float(center[-rounds // 10 :].max() / 1000),
    }


def downpour_map(workers: int, period: int, decay: float, rounds: int = 12) -> dict[str, Any]:
    """Synchronous DOWNPOUR and EASGD (beta 0.9) with a period, on one noiseless quadratic, eta h = `decay`.

    Literally: every worker takes `period` steps, then all exchange. The factor by which the center is multiplied in
    the last round, beside the closed forms `1 - p (1 - (1 - e)^tau)` and the spectral radius of EASGD's map.
    """
    way = (1 - decay) ** period
    centers = [1.0]
    for _ in range(rounds):
        x = centers[-1]
        for _ in range(period):
            x -= decay * x
        centers.append(centers[-1] + workers * (x - centers[-1]))
    x, c, elastic = 1.0, 1.0, []
    alpha = 0.9 / workers
    for _ in range(50 * rounds):
        difference = x - c
        x, c = x - decay * x - alpha * difference, c + workers * alpha * difference
        for _ in range(period - 1):
            x -= decay * x
        elastic.append(max(abs(x), abs(c)))
    q = (1 - decay) ** (period - 1)
    closed = np.array([[q * (1 - decay - alpha), q * alpha], [0.9, 0.1]])
    return {
        "factor": centers[-1] / centers[-2],
        "closed": 1 - workers * (1 - way),
        "easgd_last": elastic[-1],
        "easgd_radius": _radius(closed),
    }


def _radius(matrix: np.ndarray) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())
