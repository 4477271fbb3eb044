"""What a torch function is to a net: its kind, and what the rules ask of it. Read by `measure` and by the outline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hooke.nn.self_normalizing.audit.graph import KIND_OF, Kind, Node

_MATMUL = {"matmul": 1, "rmatmul": 1, "mm": 1, "addmm": 2}
"""Products that are a layer where one side is a matrix that no data entered, and the position of that side."""

_DROPOUT = {"dropout": True, "dropout1d": True, "dropout2d": True, "dropout3d": True}
"""Whether a dropout acts if `training` is not given; the others do not."""


def argument(args: Any, kwargs: Any, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def kind_of(op: str, settings: Mapping[str, Any]) -> Kind:
    """What an operation is; one that does not act with these settings only passes values on."""
    return KIND_OF.get(op, "other") if settings.get("acts", True) else "shape"


def settings_of(op: str, args: Any, kwargs: Any, parents: Sequence[Node], made: Sequence[Tensor]) -> dict[str, Any]:
    """What the rules ask of an operation: its rate, how many values it pools, whether its padding is zeros."""
    kind = KIND_OF.get(op, "other")
    if kind in ("dropout", "alpha dropout"):
        p = argument(args, kwargs, 1, "p", 0.5)
        return rate(p, kwargs.get("train", argument(args, kwargs, 2, "training", _DROPOUT.get(op, False))))
    if kind == "pool" and made:
        pooled = math.prod(parents[0].shape) / max(made[0].numel(), 1)
        return {"pooled": pooled, "acts": pooled > 1}
    if kind == "add":  # of a constant, or of a value to itself
        return {"acts": len(parents) > 1, "shifts": len(parents) < 2}
    if kind == "pad":
        return padding(argument(args, kwargs, 2, "mode", "constant"), argument(args, kwargs, 3, "value"))
    return {}


def rate(p: Any, training: Any = True) -> dict[str, Any]:
    """Settings of a dropout."""
    return {"p": p, "acts": bool(training and p > 0)}


def padding(mode: str, value: Any) -> dict[str, Any]:
    """Settings of a padding: it acts where it adds zeros."""
    return {"acts": mode == "constant" and not value}


def convolution(
    dimensions: int, kernel: Sequence[int], padded: Any, parents: Sequence[Node], mode: str = "zeros"
) -> dict[str, Any]:
    """Settings of a convolution: its dimensions, and whether zeros stand around what it reads."""
    sizes = [padded] if isinstance(padded, (int, str)) else list(padded)
    own = any(size == "same" or (isinstance(size, int) and size > 0) for size in sizes)
    own = own and mode == "zeros" and math.prod(kernel) > 1
    return {"dimensions": dimensions, "zero_padding": own or any(parent.kind == "pad" for parent in parents)}


def product(op: str, args: Sequence[Any], is_data: Callable[[Tensor], bool]) -> tuple[Tensor, Tensor] | None:
    """What enters a matrix product, and the (out, in) matrix if no data entered it: a layer without a module."""
    if op == "einsum":
        return _einsum(args, is_data)
    side = _MATMUL.get(op)
    if side is None or len(args) <= side or not _is_weight(args[side], is_data):
        return None
    return args[side - 1], args[side] if op == "rmatmul" else args[side].t()


def _einsum(args: Sequence[Any], is_data: Callable[[Tensor], bool]) -> tuple[Tensor, Tensor] | None:
    """As a product, where one letter of a matrix is summed over."""
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if not isinstance(args[0], str) or "->" not in args[0] or len(operands) != 2:
        return None
    given, left = args[0].replace(" ", "").split("->")
    for letters, weight, x in zip(given.split(","), operands, reversed(operands), strict=False):
        summed = [letter not in left for letter in letters]
        if _is_weight(weight, is_data) and sum(summed) == 1 and len(letters) == 2:
            return x, weight if summed[1] else weight.t()
    return None


def _is_weight(side: Any, is_data: Callable[[Tensor], bool]) -> bool:
    return isinstance(side, Tensor) and side.dim() == 2 and side.is_floating_point() and not is_data(side)
