"""Gradients of several workers' models: one model after the other, or all at once by `torch.func`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    At the first batch it must give the loss and the gradients of one model alone. It can't tell a gradient of zeros
    from none: where a parameter's use seems to differ from the first batch, that model is computed alone.

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
            ValueError: The loss is no scalar or does not reach the model; or `stacked=True`, and the model changes its
                buffers in training, does what can't be vectorized or comes to something else so, or has batches that
                are not tensors.
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
                other = self._is_used_otherwise(models[row])
                losses[row] = self._one_(models[row], batches[row], seeds[row]) if other else value
        return losses

    def _one_(self, model: nn.Module, batch: Any, seed: int) -> float:
        seed_(model, seed)
        model.zero_grad()
        with torch.enable_grad():
            value = self._loss(model, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(
                    f"Simulation: loss must give one scalar tensor. Got {got}. Use the mean over the batch."
                )
            own = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if value.requires_grad:  # no gradient of anything else: the loss may also know the user's own model
                value.backward(inputs=own)
        if all(parameter.grad is None for parameter in own):
            raise ValueError(
                "Simulation: loss must depend on the model that it is given. Got a loss that reaches none of its "
                "parameters. Compute it with the first argument of loss(model, batch), not with a model from outside."
            )
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
                parameter.grad = gradients[name][row].detach().clone(memory_format=torch.preserve_format)
        return losses.tolist()

    def _is_used_otherwise(self, model: nn.Module) -> bool:
        """Drop gradients of zeros where the first batch had none; whether others are zeros, or these are not."""
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        some = torch.stack([gradient.any() for gradient in gradients.values()]).tolist()
        zeros = {name for name, any_ in zip(gradients, some, strict=True) if not any_}
        if zeros != self._unused:
            return True
        for name, parameter in model.named_parameters():
            if name in zeros:
                parameter.grad = None
        return False

    def _try_out(self, model: nn.Module, batch: Any, seed: int) -> None:
        """Whether stacking gives what one after the other gives, on a copy of the first model."""
        model = copy.deepcopy(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._one_(model, batch, seed)
        self._unused = frozenset(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
        try:
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, before[name]):
                    raise ValueError(
                        f"needs a model whose buffers stay as they are in training. Got {name} that changes"
                    )
            self._compare(model, batch, seed)
        except (ValueError, TypeError, RuntimeError) as error:
            if self._must:
                words = (
                    str(error) if isinstance(error, ValueError) else f"needs what torch.func.vmap can do. Got: {error}"
                )
                raise ValueError(f"Simulation: stacked=True {words}. Use stacked=False.") from error
            self.stacked = False

    def _compare(self, model: nn.Module, batch: Any, seed: int) -> None:
        """Loss and gradients stacked against those alone; of a model that draws by chance, as in evaluation."""

        def stacked() -> _Found:
            return _Found(self._stacked_([model], _stack([batch]), seed)[0], _gradients(model))

        def alone(seed: int) -> _Found:
            return _Found(self._one_(model, batch, seed), _gradients(model))

        found = stacked()
        if not alone(seed).is_near(alone(seed + 1)):
            model.eval()
            found = stacked()
        want = alone(seed)
        if want.is_near(alone(seed + 1)) and not found.is_near(want):
            raise ValueError("needs gradients that equal those of one model alone. Got others at the first batch")


class _Found(NamedTuple):
    loss: float
    gradients: list[Tensor]

    def is_near(self, other: _Found) -> bool:
        """Whether they are equal but for rounding; never where something is not finite."""
        near = max(0.01, torch.finfo(self.gradients[0].dtype).eps ** 0.5)
        lengths = [float(gradient.norm()) for gradient in other.gradients]
        pairs = zip(self.gradients, other.gradients, lengths, strict=True)
        slack = 0.01 * math.hypot(*lengths)
        same = all(float((one - two).norm()) <= near * (length + slack) for one, two, length in pairs)
        return same and abs(self.loss - other.loss) <= near * (abs(other.loss) + 1e-4)


def _gradients(model: nn.Module) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in trained]


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
