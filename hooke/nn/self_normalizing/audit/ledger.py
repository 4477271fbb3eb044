"""Moments of tensors, taken cheaply where the tensors are, and turned into numbers later, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_CANCELLED = 1e-3
"""Below this share of the second moment, mean of squares less square of mean has lost half of float32's digits."""

_FAINT = 1e-30
"""Below this variance float32 loses squares of small values, and below 1e-45 all of them."""


def sample_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of all numbers of `x`, as 0-dimensional tensors; float64 wherever float32 has no room.

    On a CPU `torch.var_mean` takes 60 times as long as a sum and a norm, so that it is left to the hard cases.
    """
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.is_cpu and x.numel():
        mean, square = x.sum() / x.numel(), torch.linalg.vector_norm(x).square() / x.numel()
        variance = square - mean.square()
        if variance > _CANCELLED * square and variance > _FAINT:  # false for what is not finite
            return mean, variance
    variance, mean = torch.var_mean(x.to(_wide(x)), correction=0)
    return mean, variance


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # Apple's has no other


class Ledger:
    """0-dimensional tensors now, numbers at the end: one transfer a device instead of one wait a number."""

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[Tensor, ...], Callable[..., None]]] = []

    def put(self, values: Iterable[Tensor], receive: Callable[..., None]) -> None:
        """`receive` will be called with the values as floats."""
        self._entries.append((tuple(values), receive))

    def settle(self) -> None:
        """Call every receiver."""
        for device in {values[0].device for values, _ in self._entries}:
            here = [entry for entry in self._entries if entry[0][0].device == device]
            flat = iter(torch.stack([value.to(_wide(value)) for values, _ in here for value in values]).tolist())
            for values, receive in here:
                receive(*(next(flat) for _ in values))
        self._entries.clear()


def weight_moments(op: str, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Mean and spread over units of omega, of tau and of the bias, as `WeightMoments` wants them."""
    dims = [dim for dim in range(weight.dim()) if dim != (1 if op.startswith("conv_transpose") else 0)]
    omega, tau = weight.sum(dims), torch.linalg.vector_norm(weight, dim=dims).square()
    bias = weight.new_zeros(1) if bias is None else bias.detach().float()
    return [value for each in (omega, tau, bias) for value in reversed(torch.std_mean(each, correction=0))]
