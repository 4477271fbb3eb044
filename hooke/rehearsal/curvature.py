"""The top curvature of the user's own loss: what `backward()` is called on is differentiated twice."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from hooke.sentence import first_line

Product = Callable[[Tensor], Tensor]
"""H v for a flat vector v."""


class Losses:
    """Sees every `backward()` while it is open, and keeps what it takes to differentiate the loss twice.

    Several calls between two steps (gradient accumulation, several losses) add up, as their gradients do. Kernels
    without a second derivative (fused attention, cuDNN's and oneDNN's recurrent nets, compiled graphs) are replaced
    meanwhile by plain ones.

    Args:
        parameters: What the loss is differentiated by.

    Attributes:
        failure: Why what was seen can't be differentiated twice, as far as is known.

    Example:
        >>> x = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> with Losses([x]) as losses:
        ...     (torch.tensor([2.0, 3.0]) * x * x / 2).sum().backward()
        >>> losses.product(torch.ones(2))
        tensor([2., 3.])
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._stack = ExitStack()
        self._inside = False
        self._total: list[Tensor] | None = None
        self.failure: str | None = None

    def __enter__(self) -> Losses:
        enter = self._stack.enter_context
        self._stack.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
        torch.backends.mkldnn.enabled = False  # `flags` would change its precision as well
        enter(torch.backends.cudnn.flags(enabled=False))
        enter(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import takes seconds
            enter(torch.compiler.set_stance("force_eager"))
        self._original = torch.autograd.backward
        torch.autograd.backward = self._backward  # `Tensor.backward` calls it by this name
        return self

    def __exit__(self, *_: object) -> None:
        torch.autograd.backward = self._original
        self._stack.close()

    def clear(self) -> None:
        """Forget what was seen: a step begins."""
        self._total = None

    @property
    def seen(self) -> bool:
        """Whether there was a `backward()` since the last `clear`."""
        return self._total is not None

    def _backward(self, tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        if self._inside:
            self.failure = "a part of the model is checkpointed with use_reentrant=True, which hides it"
            return self._original(tensors, grad_tensors, *args, **kwargs)
        try:
            self._keep(tensors, grad_tensors)
        except RuntimeError as error:
            self.failure = first_line(error, 200)
        self._inside = True
        try:
            names = ("retain_graph", "create_graph", "grad_variables", "inputs")
            options = {**dict(zip(names, args, strict=False)), **kwargs, "retain_graph": True}
            return self._original(tensors, grad_tensors, **options)
        finally:
            self._inside = False

    def _keep(self, tensors: Any, grad_tensors: Any) -> None:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        weights = [grad_tensors] if isinstance(grad_tensors, Tensor) else grad_tensors
        found = torch.autograd.grad(roots, self._parameters, weights, create_graph=True, materialize_grads=True)
        if _has_dead_end(found):  # torch would take it for a constant, without a word
            self.failure = "a part of the loss is marked with @once_differentiable"
        before = self._total or [torch.zeros_like(part) for part in found]
        self._total = [total + part for total, part in zip(before, found, strict=True)]

    def gradient(self) -> Tensor:
        """The gradient as backward() found it, flat."""
        assert self._total is not None
        return torch.cat([part.detach().reshape(-1).float() for part in self._total])

    def product(self, vector: Tensor) -> Tensor:
        """H v.

        Raises:
            RuntimeError: Some operation has no second derivative.
        """
        assert self._total is not None
        sizes = [part.numel() for part in self._total]
        pieces = vector.split(sizes)
        roots, weights = [], []
        for part, piece in zip(self._total, pieces, strict=True):
            if part.requires_grad:  # else it depends on no parameter: its part of H is 0
                roots.append(part)
                weights.append(piece.view_as(part).to(part.dtype))
        if not roots:
            return torch.zeros_like(vector)
        with torch.enable_grad():
            made = torch.autograd.grad(roots, self._parameters, weights, retain_graph=True, materialize_grads=True)
        return torch.cat([part.detach().reshape(-1).float() for part in made])


def top_eigenvalue(
    product: Product, start: Tensor, *, tolerance: float = 1e-3, most: int = 60, seconds: float = 60.0
) -> tuple[float, float, Tensor]:
    """Largest eigenvalue of a symmetric map, most negative ones notwithstanding.

    A conjugate direction beside the residual makes it as fast as Lanczos' method in the memory of six vectors.

    Args:
        product: v -> H v.
        start: Where to begin; not 0.
        tolerance: Stops once |H x - value x| is below this part of |value|.
        most: Products at most.
        seconds: No new product after so long.

    Returns:
        The value (never above the true one), |H x - value x|, and x.

    Example:
        >>> diagonal = torch.tensor([-9.0, 1.0, 5.0])
        >>> value, _, _ = top_eigenvalue(lambda v: diagonal * v, torch.ones(3))
        >>> round(value, 3)
        5.0

    Reference:
        Knyazev, "Toward the optimal preconditioned eigensolver: locally optimal block preconditioned conjugate gradient
        method", SIAM J. Sci. Comput. 23 (2001), one vector, no preconditioner.
    """
    began = time.monotonic()
    x = start / start.norm()
    hx = product(x)
    basis, images = [x], [hx]
    for _ in range(most - 1):
        value = float(x @ hx)
        residual = hx - value * x
        error = float(residual.norm())
        if not error > tolerance * abs(value) or time.monotonic() - began > seconds:
            break
        new = _orthonormal(residual, basis)
        if new is None:
            break
        basis, images = [*basis, new], [*images, product(new)]
        small = torch.tensor([[float(one @ image) for image in images] for one in basis], dtype=torch.float64)
        weights = torch.linalg.eigh((small + small.T) / 2).eigenvectors[:, -1].tolist()
        x, hx = _mixed(basis, weights), _mixed(images, weights)
        scale = float(x.norm())
        x, hx = x / scale, hx / scale
        # the direction of this move, orthogonal to x: the same plane as (new, last direction), without its x
        away, h_away = _mixed(basis[1:], weights[1:]), _mixed(images[1:], weights[1:])
        part = float(away @ x)
        away, h_away = away - part * x, h_away - part * hx
        length = float(away.norm())
        basis, images = [x], [hx]
        if length > 1e-6:
            basis, images = [x, away / length], [hx, h_away / length]
    value = float(x @ hx)
    return value, float((hx - value * x).norm()), x


def _has_dead_end(gradients: Sequence[Tensor]) -> bool:
    """Whether some function that the gradients came through refuses a second derivative."""
    ahead: list[Any] = [part.grad_fn for part in gradients if part.grad_fn is not None]
    seen = set(ahead)
    while ahead:
        node = ahead.pop()
        if node.name() == "torch::autograd::Error":
            return True
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        ahead.extend(new)
    return False


def _mixed(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    made = vectors[0] * weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        made.add_(vector, alpha=weight)
    return made


def _orthonormal(vector: Tensor, basis: Sequence[Tensor]) -> Tensor | None:
    """What `vector` has beyond `basis`, of length 1; `None` if that is only rounding."""
    before = float(vector.norm())
    for _ in range(2):  # once more against rounding
        for one in basis:
            vector = vector - (one @ vector) * one
    length = float(vector.norm())
    return vector / length if length > 1e-5 * before and length > 0 else None
