"""Gradients of several workers' models: one model after the other, or all at once by `torch.func`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils import _pytree as pytree

Loss = Callable[[nn.Module, Any], Tensor]
"""The user's mean loss: `loss(model, batch)`, a scalar."""


def gradients_(models: Sequence[nn.Module], loss: Loss, batches: Sequence[Any], seeds: Sequence[int]) -> list[float]:
    """Set each model's `.grad` to its gradient on its batch, one after the other; the losses.

    `seeds` seed what is random in a model (dropout), so that nothing depends on which models come together.
    """
    losses = []
    for model, batch, seed in zip(models, batches, seeds, strict=True):
        _seed_(model, seed)
        model.zero_grad()
        with torch.enable_grad():
            value = loss(model, batch)
            value.backward()
        losses.append(float(value.detach()))
    return losses


def stacked_gradients_(
    models: Sequence[nn.Module], loss: Loss, batches: Sequence[Any], seeds: Sequence[int]
) -> list[float]:
    """As `gradients_`, in one vectorized computation: parameters, buffers and batches are stacked, one row a worker.

    Faster on an accelerator, where one small model leaves most of the device idle.

    Raises:
        ValueError: A model that changes its buffers in training, or batches of different shapes.
    """
    _check_stackable(models[0])
    _seed_(models[0], seeds[0])
    named = [{name: p for name, p in model.named_parameters() if p.requires_grad} for model in models]
    parameters = {name: torch.stack([one[name].detach() for one in named]) for name in named[0]}
    buffers = {
        name: torch.stack([dict(model.named_buffers())[name] for model in models])
        for name, _ in models[0].named_buffers()
    }
    whole = _WithLoss(models[0], loss)

    def value(row: dict[str, Tensor], beside: dict[str, Tensor], batch: Any) -> Tensor:
        tensors = {f"model.{name}": tensor for name, tensor in (row | beside).items()}
        return functional_call(whole, tensors, (batch,))

    gradients, losses = vmap(grad_and_value(value), randomness="different")(parameters, buffers, _stack(batches))
    for row, one in enumerate(named):
        for name, parameter in one.items():
            parameter.grad = gradients[name][row].clone(memory_format=torch.preserve_format)
    return losses.tolist()


def _seed_(model: nn.Module, seed: int) -> None:
    """Seed what `model` draws from; `torch.manual_seed` is slow where no accelerator has been used."""
    if next(model.parameters()).device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class _WithLoss(nn.Module):
    """The model and its loss as one module, so that `functional_call` reaches both."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


def _stack(batches: Sequence[Any]) -> Any:
    leaves = [pytree.tree_flatten(batch) for batch in batches]
    try:
        stacked = [torch.stack(column) for column in zip(*(flat for flat, _ in leaves), strict=True)]
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"Simulation: stacked=True needs batches of tensors of one shape. Got others ({error}). Use stacked=False."
        ) from error
    return pytree.tree_unflatten(stacked, leaves[0][1])


def _check_stackable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        changes = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        if changes and module.training:
            raise ValueError(
                f"Simulation: stacked=True needs a model whose buffers stay as they are. Got {name}, a "
                f"{type(module).__name__} with running statistics. Use stacked=False."
            )
