"""A recorded run, read once: which activation belongs to which layer, how deep each operation lies, what is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hooke.nn.self_normalizing.audit.finding import (
    MEAN,
    SELF_NORMALIZE,
    SPREAD,
    VARIANCE,
    WANDER_MEAN,
    WANDER_VARIANCE,
)
from hooke.nn.self_normalizing.audit.graph import BETWEEN, Kind, Node
from hooke.nn.self_normalizing.fixed_point import fixed_point
from hooke.nn.self_normalizing.layers import SELU
from hooke.nn.self_normalizing.moments import ALPHA, SCALE


@dataclass(frozen=True)
class Evidence:
    """A recorded run and what its rules ask of it.

    Attributes:
        nodes: Every operation, in order.
        layers: Those with a weight matrix.
        selus: Calls of SELU.
        activation_of: The activation behind a layer, where there is one.
        depth_of: SELU layers on the longest way down to a node.
        examples: Size of the batch: of the longest input.
        target: Mean and variance of the fixed point of the net's SELUs; `None` if they share none.
    """

    nodes: Sequence[Node]
    layers: tuple[Node, ...]
    selus: tuple[Node, ...]
    activation_of: dict[Node, Node]
    depth_of: dict[Node, int]
    examples: int
    target: tuple[float, float] | None

    @property
    def selu_layers(self) -> list[Node]:
        """Layers whose activation is SELU."""
        return [layer for layer in self.layers if self.is_selu(layer)]

    def is_selu(self, layer: Node) -> bool:
        """Whether the layer's activation is SELU."""
        return layer in self.activation_of and self.activation_of[layer].op == "selu"

    @property
    def depth(self) -> int:
        """SELU layers on the longest way through the net."""
        return max((self.depth_of[node] for node in self.selus), default=0)

    def repaired(self, repair: str) -> str:
        """The repair, and who does it where `self_normalize_` can: in chains of modules without functions between."""
        return f"{repair}; {SELF_NORMALIZE}" if all(map(_is_exchangeable, self.nodes)) else f"{repair}."


def _is_exchangeable(node: Node) -> bool:
    if node.kind in ("add", "other", "opaque", "pool") or node.op.startswith("conv_transpose"):
        return False
    own = node.op.replace("_", "") in node.module_type.lower()  # Linear calls linear, a block calls many
    return own or node.kind in ("input", "shape", "pad")


def read(nodes: Sequence[Node]) -> Evidence:
    """Connect layers with their activations and count the depth."""
    layers = tuple(node for node in nodes if node.kind == "layer")
    activation_of: dict[Node, Node] = {}
    depth_of: dict[Node, int] = {}
    for node in nodes:
        depth_of[node] = max((depth_of[one] for one in node.parents), default=0) + (node.op == "selu")
        if node.kind == "activation":
            for layer in node.upstream(*BETWEEN, "pool"):
                if layer.kind == "layer":
                    activation_of.setdefault(layer, node)
    examples = max((node.shape[0] for node in nodes if node.kind == "input" and node.shape), default=1)
    selus = tuple(node for node in nodes if node.op == "selu")
    return Evidence(nodes, layers, selus, activation_of, depth_of, examples, _target(selus))


def _target(selus: Sequence[Node]) -> tuple[float, float] | None:
    """The fixed point of the net's SELUs, if they share one."""
    constants = {constants_of(node) for node in selus}
    if constants <= {(ALPHA, SCALE)}:
        return 0.0, 1.0
    if len(constants) > 1:
        return None
    try:
        point = fixed_point(SELU(*constants.pop()))
    except ValueError:  # its variance grows without end
        return None
    return (point.mean, point.variance) if point.normalizes else None


def constants_of(node: Node) -> tuple[float, float]:
    """alpha and scale of a SELU or of alpha dropout; the functions of torch have the default ones."""
    return node.settings.get("alpha", ALPHA), node.settings.get("scale", SCALE)


def saturation(node: Node) -> float:
    """The value that a SELU approaches, or that alpha dropout sets."""
    alpha, scale = constants_of(node)
    return -alpha * scale


def is_off(evidence: Evidence, node: Node, kind: Kind | None = None) -> bool:
    """Whether measured moments lie outside theorem 1's box, moved to the fixed point, with sampling granted."""
    if evidence.target is None:
        return False
    mean, variance = node.mean - evidence.target[0], node.variance / evidence.target[1]
    if (kind or node.kind) == "input":
        errors = math.sqrt(variance / evidence.examples), math.sqrt(2 / evidence.examples)
    else:
        width = math.sqrt(width_of(node))
        errors = WANDER_MEAN / width, WANDER_VARIANCE / width
    low, high = VARIANCE[0] / (1 + SPREAD * errors[1]), VARIANCE[1] + SPREAD * errors[1]
    return is_outside(mean, MEAN, errors[0]) or not low <= variance <= high


def width_of(node: Node) -> int:
    """How many units a value of the net is spread over: features or channels."""
    shape = node.shape
    return max(shape[1] if len(shape) > 2 else shape[-1] if shape else 1, 1)


def is_outside(value: float, box: tuple[float, float], error: float = 0.0) -> bool:
    """Whether a value lies outside a box by more than chance."""
    return not box[0] - SPREAD * error <= value <= box[1] + SPREAD * error


def name_of(node: Node) -> str:
    """How a node is called: its module, else its function."""
    return node.module or f"{node.op}()"


def places(nodes: Sequence[Node]) -> str:
    """In how many places, if in more than one."""
    return f" in {len(nodes)} places" if len(nodes) > 1 else ""
