"""The graph of a model without running it: `torch.fx` follows `forward`, and modules of torch are its operations."""

from __future__ import annotations

import re
from typing import Any

from torch import fx, nn

from hooke.nn.self_normalizing.audit.finding import words_of
from hooke.nn.self_normalizing.audit.graph import KIND_OF, Node
from hooke.nn.self_normalizing.audit.operation import convolution, kind_of, padding, rate, settings_of
from hooke.nn.self_normalizing.layers import SELU, AlphaDropout

_OP_OF = {op.replace("_", ""): op for op in KIND_OF} | {
    "identity": "view",
    "syncbatchnorm": "batch_norm",
    **{f"{kind}pad": "pad" for kind in ("zero", "constant", "reflection", "replication", "circular")},
    "multiheadattention": "multi_head_attention_forward",
    "rnn": "rnn_tanh",
    "rnncell": "rnn_tanh_cell",
}
"""Torch function by a module's class name in small letters."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """hooke's own modules are operations too."""
        return isinstance(m, (SELU, AlphaDropout)) or super().is_leaf_module(m, module_qualified_name)


def outline(model: nn.Module) -> list[Node]:
    """Every operation of `forward`, in order, without numbers.

    Raises:
        ValueError: `torch.fx` can't follow `forward`, e.g. because it branches on values.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever forward does with a stand-in for a tensor
        raise ValueError(
            f"self_normalize_: torch.fx must be able to follow forward. Got {words_of(error)}. "
            "Give inputs=, one batch: then the model is run once instead."
        ) from error
    modules = dict(model.named_modules())
    made: dict[fx.Node, Node] = {}
    for step in graph.nodes:
        parents = tuple(made[one] for one in step.all_input_nodes if one in made)
        if step.op == "placeholder":
            made[step] = Node("input", "input")
        elif step.op == "call_module":
            made[step] = _of_module(str(step.target), modules[str(step.target)], parents)
        elif step.op in ("call_function", "call_method") and parents:
            path = next(reversed(step.meta.get("nn_module_stack") or {}), "")
            made[step] = _of_function(step, parents, path, modules)
    return list(made.values())


def op_of(module: nn.Module) -> str:
    """The torch function that a module stands for; its class's name if it stands for none."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith(("torch.nn", "hooke.nn")):
            name = kind.__name__.lower()
            for one in (name, re.sub(r"\dd$", "", name)):
                if one in _OP_OF:
                    return _OP_OF[one]
    return type(module).__name__


def _of_module(name: str, module: nn.Module, parents: tuple[Node, ...]) -> Node:
    op = op_of(module)
    settings: dict[str, Any] = {}
    if KIND_OF.get(op) in ("dropout", "alpha dropout"):
        settings = rate(module.p)
    elif op == "pad":
        constant = isinstance(module, _CONSTANT)
        settings = padding("constant" if constant else "other", module.value if constant else None)
    elif isinstance(module, nn.modules.conv._ConvNd):
        settings = convolution(
            len(module.kernel_size), module.kernel_size, module.padding, parents, module.padding_mode
        )
    return Node(op, kind_of(op, settings), parents, name, type(module).__name__, settings)


_CONSTANT = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


def _of_function(step: fx.Node, parents: tuple[Node, ...], path: str, modules: dict[str, nn.Module]) -> Node:
    op = (step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "other")).strip("_")
    settings = settings_of(op, step.args, step.kwargs, parents, ())
    return Node(op, kind_of(op, settings), parents, path, type(modules[path]).__name__, settings)
