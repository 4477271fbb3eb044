"""What happens inside one forward pass: a graph of its operations, each with the moments of what came out of it.

`measure.record` makes such a graph by running a model, `outline.outline` one without numbers by `torch.fx`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor
from torch.autograd.graph import GradientEdge

Kind = Literal[
    "input", "layer", "opaque", "activation", "norm", "dropout", "alpha dropout", "pool", "add", "pad", "shape", "other"
]

_OPS: dict[Kind, str] = {
    "layer": "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "opaque": "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell multi_head_attention_forward "
    "scaled_dot_product_attention",
    "activation": "selu elu celu relu relu6 leaky_relu prelu rrelu gelu silu mish tanh sigmoid softplus softsign "
    "hardtanh hardswish hardsigmoid logsigmoid tanhshrink softshrink hardshrink",
    "norm": "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm",
    "dropout": "dropout dropout1d dropout2d dropout3d feature_dropout",
    "alpha dropout": "alpha_dropout feature_alpha_dropout",
    "pool": "sum mean max amax max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    "add": "add iadd radd",
    "pad": "pad",
    "shape": "view reshape flatten unflatten permute transpose movedim swapaxes t squeeze unsqueeze contiguous clone "
    "to float double half bfloat16 chunk split tensor_split cat concat stack get getitem getattr expand repeat view_as "
    "reshape_as type unbind pixel_shuffle pixel_unshuffle unfold select narrow flip roll requires_grad",
}
KIND_OF: dict[str, Kind] = {op: kind for kind, ops in _OPS.items() for op in ops.split()}
"""What each torch function is to a self-normalizing net, by its name without underscores; "other" if not listed."""

BETWEEN: tuple[Kind, ...] = ("shape", "dropout", "alpha dropout", "norm", "pad")
"""What may stand between a layer and its activation, or between an activation and the next layer."""


@dataclass(frozen=True)
class WeightMoments:
    """Sums over the incoming weights w of each unit: omega = sum of w, tau = sum of w^2; mean and spread over units."""

    fan_in: int
    units: int
    omega: float
    omega_std: float
    tau: float
    tau_std: float
    bias: float
    bias_std: float


@dataclass(slots=True, eq=False)
class Node:
    """One operation of a forward pass; moments are over all numbers that came out, nan where none were measured."""

    op: str
    kind: Kind
    parents: tuple[Node, ...] = ()
    module: str = ""
    module_type: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    weight: WeightMoments | None = None
    measured: bool = False
    mean: float = math.nan
    variance: float = math.nan
    gradient_variance: float = math.nan
    corner_variance: float = math.nan
    center_variance: float = math.nan
    fed_by: Node | None = None
    edge: GradientEdge | None = None
    weight_edge: GradientEdge | None = None
    unreached: bool = False

    def __post_init__(self) -> None:
        for parent in self.parents:
            parent.children.append(self)

    def upstream(self, *through: Kind) -> list[Node]:
        """The nearest nodes above whose kind is not among `through`."""
        return _nearest(self, lambda node: node.parents, through)

    def downstream(self, *through: Kind) -> list[Node]:
        """The nearest nodes below whose kind is not among `through`."""
        return _nearest(self, lambda node: node.children, through)

    def descendants(self) -> list[Node]:
        """Every node below."""
        found: dict[int, Node] = {id(self): self}
        left: list[Node] = [self]
        for node in left:  # grows while it is read
            new = {id(one): one for one in node.children if id(one) not in found}
            left += new.values()
            found |= new
        return left[1:]


def _nearest(start: Node, step: Callable[[Node], Iterable[Node]], through: tuple[Kind, ...]) -> list[Node]:
    found: dict[int, Node] = {}
    seen: set[int] = set()
    left = [*step(start)]
    for node in left:  # grows while it is read
        if id(node) not in seen:
            seen.add(id(node))
            if node.kind in through:
                left += step(node)
            else:
                found[id(node)] = node
    return [*found.values()]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a tensor, list, tuple, mapping or dataclass, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, one.name, None) for one in fields(value)])


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed; of containers, lists, tuples and dicts are looked into."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(part, change) for part in value)
    return value
