"""The backward pass of an audit: to the outputs of layers only, without a gradient of any weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hooke.nn.self_normalizing.audit.graph import Node, tensors_in
from hooke.nn.self_normalizing.audit.ledger import Ledger, sample_moments


def edge_of(x: Tensor) -> GradientEdge | None:
    """Where the gradient by `x` will pass; of a view the whole tensor, as in-place functions may follow."""
    base = x._base if x._base is not None and x._base.numel() == x.numel() and x._base.requires_grad else x
    with torch.enable_grad():
        return get_gradient_edge(base) if base.requires_grad else None


def is_reentrant(x: Tensor) -> bool:
    """Whether `x` came out of a checkpoint that has a backward pass of its own."""
    return type(x.grad_fn).__name__ == "CheckpointFunctionBackward"


def backpropagate(
    nodes: Sequence[Node], ledger: Ledger, output: Any, loss: Callable[[Any], Tensor] | None, *, reentrant: bool
) -> None:
    """Put the gradient variance at each layer into its node, and which layers no gradient reaches."""
    ends = [x for x in tensors_in(output) if x.requires_grad and x.is_floating_point()]
    edges = {node: node.edge for node in nodes if node.edge is not None}
    if not edges or not ends:
        return
    if loss is not None:
        ends = [_scalar(loss(output))]
    if reentrant or any(map(is_reentrant, ends)):
        raise ValueError(
            "audit: checkpoints must let gradients of activations through. Got a reentrant one. "
            "Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
        )
    cotangents = [torch.randn_like(end) for end in ends] if loss is None else None
    gradients = torch.autograd.grad(ends, [*edges.values()], cotangents, allow_unused=True)
    for node, gradient in zip(edges, gradients, strict=True):
        if gradient is not None:
            ledger.put((sample_moments(gradient)[1],), partial(setattr, node, "gradient_variance"))
    _mark_unreached(nodes, {node for node, one in zip(edges, gradients, strict=True) if one is not None}, ends)


def _mark_unreached(nodes: Sequence[Node], measured: set[Node], ends: Sequence[Tensor]) -> None:
    left = [(node, node.weight_edge.node) for node in nodes if node.weight_edge is not None and node not in measured]
    seen: set[Any] = set()
    way: list[Any] = [end.grad_fn for end in ends if left]
    for step in way:  # grows while it is read
        if step is not None and step not in seen:
            seen.add(step)
            way += (before for before, _ in step.next_functions)
    for node, weight in left:
        node.unreached = weight not in seen


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = type(value).__name__ if not isinstance(value, Tensor) else f"shape {tuple(value.shape)}"
        got += ", detached" if isinstance(value, Tensor) and not value.requires_grad else ""
        raise ValueError(
            f"audit: loss must return one number as a tensor with a gradient. Got {got}. "
            "Use e.g. lambda output: cross_entropy(output, y), without .item() or .detach()."
        )
    return value
