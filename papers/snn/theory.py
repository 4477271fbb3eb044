"""What the paper derives, computed again: constants, Jacobian, other fixed points, other activations, theorems."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import hooke.nn
from papers.snn.proof import prove

ACTIVATIONS: dict[str, Any] = {
    "SELU": nn.SELU(),
    "ReLU": nn.ReLU(),
    "leaky ReLU": nn.LeakyReLU(0.01),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "ELU": nn.ELU(),
    "GELU": nn.GELU(),
}


def constants(mean: float, variance: float) -> dict[str, Any]:
    """alpha and lambda of the fixed point (mean, variance), with the certificate."""
    found = hooke.nn.selu_parameters(mean, variance)
    return {"alpha": found.alpha, "scale": found.scale, "residual": found.residual}


def jacobian() -> dict[str, Any]:
    """The Jacobian of the moment map at (0, 1), its spectral norm, and the backward factor there."""
    point = hooke.nn.fixed_point(nn.SELU())
    matrix = hooke.nn.moment_jacobian(0.0, 1.0)
    return {
        "entries": matrix.tolist(),
        "norm": float(torch.linalg.matrix_norm(matrix, 2)),
        "backward_factor": point.backward_factor,
    }


def activation(name: str, scaled: bool) -> dict[str, Any]:
    """Where mean and variance end under an activation with weights of omega 0 and tau 1, from (0, 1).

    Args:
        name: One of `ACTIVATIONS`.
        scaled: Whether the activation is multiplied so that a standard normal input comes out with variance 1.

    Returns:
        dict: The fixed point, whether it attracts and has variance; or `reached` False where none was reached.
    """
    plain = ACTIVATIONS[name]
    gain = _gain(plain) if scaled else 1.0
    try:
        point = hooke.nn.fixed_point(lambda x: gain * plain(x))
    except ValueError:
        return {"reached": False, "gain": gain}
    return {
        "reached": True,
        "gain": gain,
        "mean_there": point.mean,
        "variance_there": point.variance,
        "spectral_radius": point.spectral_radius,
        "normalizes": point.normalizes,
        "backward_factor": point.backward_factor,
    }


def _gain(activation: Any) -> float:
    """One over the standard deviation of activation(z), z standard normal, by the trapezoidal rule."""
    z = torch.linspace(-12, 12, 480_001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    weight /= weight.sum()
    y = activation(z)
    mean = (weight * y).sum()
    return float((weight * (y - mean) ** 2).sum() ** -0.5)


def theorem(name: str) -> dict[str, Any]:
    """One of `hooke.nn.THEOREMS` over its whole domain, by interval arithmetic."""
    proof = prove(name)
    return {"proved": proof.proved, "says": proof.says, "boxes": proof.boxes, "took": proof.seconds}


def flow(means: list[float], variances: list[float]) -> dict[str, Any]:
    """Where the map takes a grid of means and variances, for weights of omega 0.1 and tau 1.

    Returns:
        dict: `to_mean` and `to_variance`, (variances, means); and `paths`: five starts through 12 layers.
    """
    grid_variance, grid_mean = torch.meshgrid(torch.tensor(variances), torch.tensor(means), indexing="ij")
    omega, tau = 0.1, 1.0  # with omega 0 the mean plays no part
    to_mean, to_variance = hooke.nn.moment_map(grid_mean, grid_variance, omega, tau)
    paths = []
    for mean, variance in ((-0.9, 0.3), (-0.9, 2.2), (0.9, 0.3), (0.9, 2.2), (0.0, 2.4)):
        path = [(mean, variance)]
        for _ in range(12):
            to = hooke.nn.moment_map(*path[-1], omega, tau)
            path.append((float(to[0]), float(to[1])))
        paths.append(path)
    return {
        "omega": omega,
        "tau": tau,
        "to_mean": to_mean.tolist(),
        "to_variance": to_variance.tolist(),
        "paths": paths,
    }
