"""The weights of a repaired net: which must be drawn anew, and how a trained batch norm enters the layer before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from hooke.nn.self_normalizing.audit.finding import BIAS_MEAN, BIAS_SQUARE, SPREAD, TAU
from hooke.nn.self_normalizing.audit.graph import Node
from hooke.nn.self_normalizing.layers import lecun_normal_

Layer = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights can be drawn anew; their first dimension counts units."""


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """Names under which each parameter stands, by its identity."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(f"{path}.{name}".lstrip("."))
    return found


def is_off_scale(weight: Tensor) -> bool:
    """Whether tau, mean over units, is outside theorem 1's domain by more than chance, or the weights are torch's own.

    Those lie within 1 / sqrt(fan_in), as 32 normal ones do once in 200,000 times.
    """
    rows = weight.detach().double().flatten(1)
    tau, error = rows.square().sum(1).mean().item(), SPREAD * math.sqrt(2 / rows.numel())
    default = rows.numel() >= 32 and rows.abs().max().item() <= rows.shape[1] ** -0.5 * (1 + 1e-6)
    return default or not TAU[0] - error <= tau <= TAU[1] + error


def is_off_zero(bias: Tensor) -> bool:
    """Whether biases matter beside mean 0 and variance 1."""
    bias = bias.detach().double()
    return bias.mean().abs().item() > BIAS_MEAN or bias.square().mean().item() > BIAS_SQUARE


def draw_(weight: Tensor, bias: Any) -> None:
    """LeCun-normal weights, bias 0."""
    lecun_normal_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def is_parametrized(layer: nn.Module) -> bool:
    """Whether the weight is computed from other parameters."""
    return parametrize.is_parametrized(layer) or hasattr(layer, "weight_g") or hasattr(layer, "weight_orig")


def why_not_folded(node: Node, modules: Mapping[str, nn.Module], uses: Mapping[str, list[Node]]) -> str | None:
    """Why `node` is no batch norm with running statistics that alone reads one layer, unit by unit."""
    above = node.parents[0]
    layer, norm = modules.get(above.module), modules.get(node.module)
    if (
        not isinstance(layer, Layer)
        or not isinstance(norm, nn.modules.batchnorm._BatchNorm)
        or norm.running_mean is None
        or len(above.children) != 1
        or len(uses[above.module]) != 1
        or len(uses[node.module]) != 1
        or is_parametrized(layer)
    ):
        return "only a batch norm with running statistics right behind a layer can."
    if not above.shape and not isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
        return "which dimension holds its channels is unknown: give inputs=, one batch."
    if norm.num_features != len(layer.weight) or len(above.shape or layer.weight.shape) != layer.weight.dim():
        return "its channels are not the layer's units."
    return None


def folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that does what the layer and the norm's running statistics and gains do."""
    assert isinstance(layer, Layer) and isinstance(norm, nn.modules.batchnorm._BatchNorm)
    fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    mean: Any = norm.running_mean
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias
    weight, bias = fuse(layer.weight, layer.bias, mean, norm.running_var, norm.eps, gain, shift)
    return weight.detach(), bias.detach()


def set_(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give a layer this weight and bias."""
    assert isinstance(layer, Layer)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is None:
            layer.bias = nn.Parameter(bias.clone())
        else:
            layer.bias.copy_(bias)
