"""Gradients of several workers' models: one model after the other, or all at once by `torch.func`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils import _pytree as pytree

Loss = Callable[[nn.Module, Any], Tensor]
"""The user's mean loss: `loss(model, batch)`, a scalar."""


class Gradients:
    """Sets gradients of models that differ in their values only.

    One after the other, each model's chances (dropout) are seeded by themselves, so that nothing depends on which
    models come together. Stacked, parameters, buffers and batches are laid side by side, one row a worker, and one
    vectorized computation gives all gradients: faster on an accelerator, which one small model leaves mostly idle.

    Args:
        loss: The mean loss.
        stacked: Whether to stack. `None`: on an accelerator, if the model allows.

    Attributes:
        stacked: Whether they are, as far as it is known.
    """

    def __init__(self, loss: Loss, stacked: bool | None, device: torch.device) -> None:
        self._loss, self._must = loss, bool(stacked)
        self.stacked = device.type != "cpu" if stacked is None else stacked
        self._unused: frozenset[str] | None = None

    def compute_(self, models: Sequence[nn.Module], batches: Sequence[Any], seeds: Sequence[int]) -> list[float]:
        """Set each model's `.grad` to its gradient on its batch; the losses.

        Raises:
            ValueError: `stacked=True`, and the model changes its buffers in training, does what can't be vectorized, or
                has batches that are not tensors.
        """
        if self.stacked and self._unused is None:
            self._try_out(models[0], batches[0], seeds[0])
        if not self.stacked:
            return [self._one_(*each) for each in zip(models, batches, seeds, strict=True)]
        losses = [0.0] * len(models)
        for rows in _alike(batches):
            chosen = [models[row] for row in rows]
            found = self._stacked_(chosen, _stack([batches[row] for row in rows]), seeds[rows[0]])
            for row, value in zip(rows, found, strict=True):
                losses[row] = value
        return losses

    def _one_(self, model: nn.Module, batch: Any, seed: int) -> float:
        seed_(model, seed)
        model.zero_grad()
        with torch.enable_grad():
            value = self._loss(model, batch)
            value.backward()
        return float(value.detach())

    def _stacked_(self, models: Sequence[nn.Module], batches: Any, seed: int) -> list[float]:
        named = [{name: p for name, p in model.named_parameters() if p.requires_grad} for model in models]
        buffers = [dict(model.named_buffers()) for model in models]
        seed_(models[0], seed)
        whole = _WithLoss(models[0], self._loss)

        def value(row: dict[str, Tensor], beside: dict[str, Tensor], batch: Any) -> Tensor:
            tensors = {f"model.{name}": tensor for name, tensor in (row | beside).items()}
            return functional_call(whole, tensors, (batch,))

        rows = {name: torch.stack([one[name].detach() for one in named]) for name in named[0]}
        beside = {name: torch.stack([one[name] for one in buffers]) for name in buffers[0]}
        gradients, losses = vmap(grad_and_value(value), randomness="different")(rows, beside, batches)
        for row, one in enumerate(named):
            for name, parameter in one.items():
                used = name not in (self._unused or ())
                parameter.grad = gradients[name][row].clone(memory_format=torch.preserve_format) if used else None
        return losses.tolist()

    def _try_out(self, model: nn.Module, batch: Any, seed: int) -> None:
        """Whether stacking gives what one after the other gives, on a copy of the first model."""
        model = copy.deepcopy(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            self._one_(model, batch, seed)
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, before[name]):
                    raise ValueError(
                        f"needs a model whose buffers stay as they are in training. Got {name} that changes"
                    )
            self._unused = frozenset(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
            self._stacked_([model], _stack([batch]), seed)
        except (ValueError, TypeError, RuntimeError) as error:
            if self._must:
                words = (
                    str(error) if isinstance(error, ValueError) else f"needs what torch.func.vmap can do. Got: {error}"
                )
                raise ValueError(f"Simulation: stacked=True {words}. Use stacked=False.") from error
            self.stacked = False


def seed_(model: nn.Module, seed: int) -> None:
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


def _alike(batches: Sequence[Any]) -> list[list[int]]:
    """Rows of batches of the same shapes."""
    groups: dict[Any, list[int]] = {}
    for row, batch in enumerate(batches):
        leaves, form = pytree.tree_flatten(batch)
        key = (str(form), tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _stack(batches: Sequence[Any]) -> Any:
    columns = zip(*(pytree.tree_leaves(batch) for batch in batches), strict=True)
    stacked = []
    for column in columns:
        if not isinstance(column[0], Tensor):
            raise ValueError(f"needs batches of tensors. Got a {type(column[0]).__name__} in one")
        stacked.append(torch.stack(column))
    return pytree.tree_unflatten(stacked, pytree.tree_structure(batches[0]))
