"""Runs a model once, forward and backward, and writes down what flows through it: a graph of `Node`s with moments.

Every torch function is seen (`TorchFunctionMode`), whether a module or the text of `forward` calls it; hooks of the
modules say which one was at work. Each activation is read once, where it is made, and none is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from hooke.nn.self_normalizing.audit.acceptance import accepted
from hooke.nn.self_normalizing.audit.backward import backpropagate, edge_of, is_reentrant
from hooke.nn.self_normalizing.audit.graph import KIND_OF, Kind, Node, WeightMoments, mapped, tensors_in
from hooke.nn.self_normalizing.audit.ledger import Ledger, sample_moments, weight_moments
from hooke.nn.self_normalizing.audit.operation import argument, convolution, kind_of, product, rate, settings_of
from hooke.nn.self_normalizing.audit.untouched import untouched
from hooke.nn.self_normalizing.layers import SELU, AlphaDropout, FeatureAlphaDropout

_WHOLE: dict[type, str] = {
    SELU: "selu",
    AlphaDropout: "alpha_dropout",
    FeatureAlphaDropout: "feature_alpha_dropout",
}
"""Modules that count as one operation, whatever functions they call."""

_SET_REQUIRES_GRAD: Any = Tensor.requires_grad.__set__  # pyright: ignore

_AT_ONCE = ("layer", "opaque", "activation", "pool")
"""Kinds whose outcome is always measured; others only where a layer reads it."""


class _Recorder(TorchFunctionMode):
    """Turns every torch function that touches the data into a `Node`."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.ledger = Ledger()
        self.inside: list[nn.Module] = []
        self._made_by = WeakTensorKeyDictionary()
        self._names, self.reentrant = names, False
        self._weights: dict[tuple[int, int], list[Tensor]] = {}
        self._hidden, self._padded = 0, False

    # modules

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module begins; one that is an operation of its own hides what happens in it."""
        self.inside.append(module)
        self._hidden += type(module) in _WHOLE

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module ends; if nobody saw how its output came from its inputs, it is one node."""
        made = list(tensors_in(output))
        op = _WHOLE.get(type(module))
        self._hidden -= op is not None
        if made and not self._hidden and (op or any(tensor not in self._made_by for tensor in made)):
            parents = self._parents(args, kwargs)
            if parents:
                self._hidden += 1  # what measuring calls is not the model's
                self._add(op or type(module).__name__, parents, _settings_of_module(module) if op else {}, made)
                self._hidden -= 1
        self.inside.pop()

    # functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` and write down what it did."""
        kwargs = kwargs or {}
        if func == _SET_REQUIRES_GRAD and args[1] and args[0].requires_grad:
            return None  # the inputs are no leaves here, but they do require it
        parents = () if self._hidden else self._parents(args, kwargs)
        result = func(*args, **kwargs)
        if parents:
            op = getattr(func, "__name__", "other").strip("_")
            made = [args[0]] if op == "setitem" else list(tensors_in(result))
            if made:
                self._record(op, parents, args, kwargs, made)
        return result

    def input(self, tensor: Tensor) -> Tensor:
        """Mark a tensor as one that came from outside."""
        self._made_by[tensor] = node = Node("input", "input", shape=tuple(tensor.shape))
        self.nodes.append(node)
        if tensor.is_floating_point():
            self._measure(node, tensor)
        return tensor

    def _parents(self, *given: Any) -> tuple[Node, ...]:
        tensors = [*tensors_in(given)]
        self.reentrant |= any(map(is_reentrant, tensors))
        found = (self._made_by.get(tensor) for tensor in tensors)
        return tuple(dict.fromkeys(node for node in found if node is not None))

    def _record(self, op: str, parents: tuple[Node, ...], args: Any, kwargs: Any, made: list[Tensor]) -> None:
        multiplied = product(op, args, self._made_by.__contains__)
        if multiplied is not None:
            self._add_layer(op, parents, *multiplied, None, made)
        elif KIND_OF.get(op) == "layer":
            x, weight, bias = (argument(args, kwargs, i, name) for i, name in enumerate(("input", "weight", "bias")))
            node = self._add_layer(op, parents, x, weight, bias, made)
            if op.startswith("conv"):
                padded, kernel = argument(args, kwargs, 4, "padding", 0), weight.shape[2:]
                node.settings = convolution(len(kernel), kernel, padded, parents)
                self._padded = self._padded or bool(node.settings["zero_padding"])
        else:
            settings = settings_of(op, args, kwargs, parents, made)
            apart = kind_of(op, settings) == "shape"  # pieces of one tensor have moments of their own
            for pieces in [[piece] for piece in made] if apart else [made]:
                self._add(op, parents, settings, pieces)

    def _add(
        self,
        op: str,
        parents: tuple[Node, ...],
        settings: dict[str, Any],
        made: list[Tensor],
        kind: Kind | None = None,
    ) -> Node:
        kind = kind or kind_of(op, settings)
        module = self.inside[-1] if self.inside else None
        name, type_name = self._names.get(id(module), ""), type(module).__name__ if module is not None else ""
        node = Node(op, kind, parents, name, type_name, settings, shape=tuple(made[0].shape))
        self.nodes.append(node)
        for tensor in made:
            self._made_by[tensor] = node
        if kind in _AT_ONCE and made[0].is_floating_point():
            self._measure(node, made[0])
            self._measure_border(node, made[0])
        if kind in ("layer", "opaque"):
            node.edge = edge_of(made[0])
        return node

    def _add_layer(
        self, op: str, parents: tuple[Node, ...], x: Tensor, weight: Tensor, bias: Tensor | None, made: list[Tensor]
    ) -> Node:
        fed_by = self._made_by.get(x)
        if fed_by is not None:
            fed_by = self._measured(fed_by, x)
        node = self._add(op, parents, {}, made, "layer")
        node.fed_by = fed_by
        node.weight_edge = edge_of(weight)
        if weight.is_floating_point():
            self._weigh(node, op, weight, bias)
        return node

    # numbers

    def _measured(self, node: Node, x: Tensor) -> Node:
        """The node that holds the moments of `x`: its maker, or what was there before it was only reshaped."""
        size, maker = x.numel(), node
        while not node.measured and node.kind == "shape" and len(node.parents) == 1 and not node.settings.get("shifts"):
            node = node.parents[0]
        if node.measured and math.prod(node.shape) == size:
            return node
        self._measure(maker, x)
        return maker

    def _measure(self, node: Node, x: Tensor) -> None:
        def receive(mean: float, variance: float) -> None:
            node.mean, node.variance = mean, variance

        node.measured = True
        self.ledger.put(sample_moments(x), receive)

    def _measure_border(self, node: Node, x: Tensor) -> None:
        """Variance at the corners of an image and in its middle, after convolutions that pad with zeros."""
        if not self._padded or node.kind != "activation":
            return
        layer = next((one for one in node.upstream("norm", "shape") if one.settings.get("zero_padding")), None)
        if layer is None or len(layer.shape) != x.dim():
            return
        sizes = x.shape[-layer.settings["dimensions"] :]
        corner = x.detach()[(..., *(slice(None, None, max(size - 1, 1)) for size in sizes))]
        center = x.detach()[(..., *(slice(size // 3, max(size - size // 3, size // 3 + 1)) for size in sizes))]

        def receive(corner: float, center: float) -> None:
            node.corner_variance, node.center_variance = corner, center

        self.ledger.put((sample_moments(corner)[1], sample_moments(center)[1]), receive)

    def _weigh(self, node: Node, op: str, weight: Tensor, bias: Tensor | None) -> None:
        key = id(weight), weight._version
        if key not in self._weights:
            self._weights[key] = weight_moments(op, weight.detach().float(), bias)
        units = weight.shape[1 if op.startswith("conv_transpose") else 0]

        def receive(*numbers: float) -> None:
            node.weight = WeightMoments(weight.numel() // max(units, 1), units, *numbers)

        self.ledger.put(self._weights[key], receive)


def _settings_of_module(module: nn.Module) -> dict[str, Any]:
    names = ("p", "alpha", "scale")
    found = {name: getattr(module, name) for name in names if isinstance(getattr(module, name, None), (int, float))}
    return found | rate(found["p"]) if "p" in found else found


# One run ---------------------------------------------------------------------------------------------------------


@contextmanager
def _hooked(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(recorder.enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.leave, with_kwargs=True, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(
    model: nn.Module, inputs: Any, *, loss: Callable[[Any], Tensor] | None = None, seed: int = 0, backward: bool = True
) -> list[Node]:
    """Every operation of one forward pass in training mode, in order, with the gradient variance at each layer.

    Args:
        model: Any module; left as it was, to the bit.
        inputs: A tensor, a tuple of positional arguments, or a dict of named ones; copied first.
        loss: From the model's output to a scalar. `None`: the output's gradient is random, of unit variance.
        seed: Of dropout and of that random gradient.
        backward: Whether to run backward at all.

    Raises:
        ValueError: What `acceptance` refuses, inputs without examples, a loss that gives no gradient, or a backward
            pass through a reentrant checkpoint.
    """
    model = accepted("audit", model)
    recorder = _Recorder({id(module): name for name, module in model.named_modules()})
    _check_inputs(inputs)

    def fresh(x: Tensor) -> Tensor:  # the copy, not a leaf: in-place operations may come first
        x = x.detach()
        return recorder.input((x.requires_grad_() if x.is_floating_point() else x).clone())

    with untouched(model, seed=seed, also=tensors_in(inputs)), torch.inference_mode(False), torch.enable_grad():
        if isinstance(inputs, Mapping):
            args, kwargs = (), {key: mapped(value, fresh) for key, value in inputs.items()}
        else:
            args, kwargs = mapped(inputs if isinstance(inputs, tuple) else (inputs,), fresh), {}
        with _hooked(model, recorder), recorder:
            output = model(*args, **kwargs)
        if backward:
            backpropagate(recorder.nodes, recorder.ledger, output, loss, reentrant=recorder.reentrant)
        recorder.ledger.settle()
    for node in recorder.nodes:
        node.edge = node.weight_edge = None
    return recorder.nodes


def _check_inputs(inputs: Any) -> None:
    tensors = [*tensors_in(inputs)]
    if tensors and all(tensor.numel() == 0 for tensor in tensors):
        raise ValueError(
            f"audit: inputs must hold examples. Got shape {tuple(tensors[0].shape)}. Give 2 or more, better 256."
        )
    if any(tensor.is_complex() for tensor in tensors):
        raise ValueError("audit: inputs must be real numbers. Got complex ones. Give torch.view_as_real(inputs).")
