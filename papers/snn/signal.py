"""How mean and variance travel through deep random nets, forward and backward. One trial is one width and seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hooke.nn


def moments(width: int, depth: int, batch: int, seed: int) -> dict[str, Any]:
    """A net at initialization: moments of the activations of every layer, and of the gradient at its first layer.

    Returns:
        dict: `means` and `variances` of all activations of a layer, and `gradient_growth`: the variance of the gradient
        at the first layer's output over that at the last layer's.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, width, generator=generator)
    seen = []
    for _ in range(depth):
        weight = hooke.nn.lecun_normal_(torch.empty(width, width), generator=generator)
        x = F.selu(F.linear(x, weight) if seen else F.linear(x, weight).requires_grad_())
        x.retain_grad()
        seen.append(x)
    x.backward(torch.randn(x.shape, generator=generator))
    gradients = [_variance(one.grad) for one in (seen[0], seen[-1])]
    return {
        "means": [float(one.detach().mean()) for one in seen],
        "variances": [float(one.detach().var()) for one in seen],
        "gradient_growth": gradients[0] / gradients[1],
    }


def _variance(gradient: torch.Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.var())


def dropout(kind: str, p: float, width: int, depth: int, batch: int, seed: int) -> dict[str, Any]:
    """The same with dropout behind every activation: `kind` is "alpha" or "plain".

    Returns:
        dict: `means` and `variances` of what leaves the dropout of every layer.
    """
    torch.manual_seed(seed)
    x = torch.randn(batch, width)
    drop = hooke.nn.AlphaDropout(p) if kind == "alpha" else nn.Dropout(p)
    means, variances = [], []
    with torch.no_grad():
        for _ in range(depth):
            x = drop(F.selu(F.linear(x, hooke.nn.lecun_normal_(torch.empty(width, width)))))
            means.append(float(x.mean()))
            variances.append(float(x.var()))
    return {"means": means, "variances": variances}
