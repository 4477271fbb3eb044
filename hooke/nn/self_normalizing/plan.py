"""What `self_normalize_` must do to a model, planned on the graph of its `forward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from hooke.nn.self_normalizing.audit.finding import RATE
from hooke.nn.self_normalizing.audit.graph import BETWEEN, Kind, Node
from hooke.nn.self_normalizing.dropout import AlphaDropout, FeatureAlphaDropout
from hooke.nn.self_normalizing.redraw import (
    Layer,
    draw_,
    folded,
    is_off_scale,
    is_off_zero,
    is_parametrized,
    owners_of,
    set_,
    why_not_folded,
)

HIGHEST_RATE = 0.1
"""The larger of the two alpha-dropout rates that the paper recommends (section 2); higher ones are lowered to it."""

_PASSED: tuple[Kind, ...] = (*BETWEEN, "pool")

_New = tuple[nn.Module, str] | str
"""A module that takes another's place, and the sentence about it; or why there is none."""


@dataclass
class Plan:
    """What to exchange, then what to do to weights and rates, each with its sentence; `obstacles` forbid all of it."""

    exchanges: list[tuple[str, nn.Module, nn.Module]] = field(default_factory=list)
    steps: list[tuple[str, Callable[[], Any]]] = field(default_factory=list)
    obstacles: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


class Planner:
    """Goes through the graph once for each kind of repair."""

    def __init__(self, model: nn.Module, nodes: Sequence[Node], dropout: float | None, fold: bool) -> None:
        self.model, self.nodes, self.dropout, self.fold = model, nodes, dropout, fold
        self.modules = dict(model.named_modules())
        self.result = Plan()
        self.uses: dict[str, list[Node]] = {}
        self.folded: dict[str, tuple[Tensor, Tensor]] = {}
        for node in nodes:
            self.uses.setdefault(node.module, []).append(node)
        self.hidden = [node for node in nodes if is_hidden(node)]

    def plan(self) -> Plan:
        """Everything that must be done, or why it can't be."""
        self._obstacles()
        activations = [node for node in self._hidden("activation") if node.op != "selu"]
        self._exchange(activations, "activation", lambda node: (nn.SELU(), f"{node.module_type} -> SELU"))
        self._exchange(self._hidden("dropout"), "dropout", self._alpha_dropout)
        self._rates()
        if self.fold:
            self._foldable()
        self._exchange(self._hidden("norm"), "norm", self._without_norm)
        self._weights()
        self._notes()
        return self.result

    def _hidden(self, kind: Kind) -> list[Node]:
        return [node for node in self.hidden if node.kind == kind]

    def _own_module(self, node: Node) -> nn.Module | None:
        """The module that is this operation and nothing else, so that it can be exchanged."""
        module = self.modules.get(node.module)
        alike = all(use.op == node.op for use in self.uses[node.module])
        return module if module is not self.model and alike and not [*module.children()] else None  # pyright: ignore

    def _exchange(self, nodes: Sequence[Node], what: str, made: Callable[[Node], _New]) -> None:
        """Plan a new module for each module of `nodes`, or say why not."""
        for name in dict.fromkeys(node.module for node in nodes):
            node = next(one for one in nodes if one.module == name)
            module = self._own_module(node)
            if module is None:
                why = f"{node.op} is a function called in forward, which can't be edited: make it a module."
            elif any(use not in nodes for use in self.uses[name]):
                why = f"this {what} is also used where it is not between layers: use two modules."
            elif module._forward_hooks or module._forward_pre_hooks:
                why = f"this {what} has forward hooks, which would be lost: remove them first."
            elif isinstance(new := made(node), str):
                why = new
            else:
                self.result.exchanges.append((f"{name}: {new[1]}", module, new[0]))
                continue
            self.result.obstacles.append((name, why))

    def _obstacles(self) -> None:
        """What has no repair."""
        for node in self.nodes:
            if node.kind == "opaque":
                what = "attention" if "atten" in node.op else "a recurrent layer"
                why = f"{what} is not feed-forward: call self_normalize_ on a part without it."
            elif node.kind == "add" and _is_surrounded(node):
                why = "a residual sum adds up variances: divide it by sqrt(2), or call self_normalize_ on a part."
            elif node.kind == "other" and _is_surrounded(node):
                why = f"{node.op} stands between layers and does unknown things to mean and variance."
            else:
                continue
            self.result.obstacles.append((node.module, why))

    def _alpha_dropout(self, node: Node) -> _New:
        dims = self._spatial_dims(node)
        if dims is None:
            return f"which values {node.op} drops together is unknown: give inputs=, one batch."
        if not 0 <= dims <= 3:
            return f"{node.op} reads {dims + 2} dimensions, and alpha dropout of channels 3, 4 or 5: reshape before it."
        old = node.settings["p"]
        p = min(old, HIGHEST_RATE) if self.dropout is None else self.dropout
        new = FeatureAlphaDropout(p, spatial_dims=dims) if dims else AlphaDropout(p)
        lowered = "; the paper recommends 0.05 or 0.1" if self.dropout is None and p < old else ""
        return new, f"{node.module_type}(p={old:g}) -> {type(new).__name__}(p={p:g}){lowered}"

    def _spatial_dims(self, node: Node) -> int | None:
        """How many dimensions torch's dropout drops as one: 0 for single units, `None` if nobody knows."""
        if node.op == "dropout":
            return 0
        named = {"dropout1d": 1, "dropout3d": 3}.get(node.op)
        seen = {len(use.shape) - 2 for use in self.uses[node.module] if use.shape}
        if seen:
            return named or (seen.pop() if len(seen) == 1 else None)
        above = node.upstream("activation", "norm", "dropout", "alpha dropout", "pool", "pad")
        layers = [self.modules.get(one.module) for one in above]
        sizes = {len(one.kernel_size) if isinstance(one, nn.modules.conv._ConvNd) else None for one in layers}
        return sizes.pop() if len(sizes) == 1 else None

    def _rates(self) -> None:
        """Alpha dropout that is there already, with too high a rate or another than was asked for."""
        for name in dict.fromkeys(node.module for node in self._hidden("alpha dropout")):
            module, rate = self.modules[name], HIGHEST_RATE if self.dropout is None else self.dropout
            p: Any = getattr(module, "p", None)
            if p is not None and p != rate and (self.dropout is not None or p > RATE):
                sentence = f"{name}: {type(module).__name__} p={p:g} -> p={rate:g}"
                self.result.steps.append((sentence, partial(setattr, module, "p", rate)))

    def _foldable(self) -> None:
        for node in self._hidden("norm"):
            why = why_not_folded(node, self.modules, self.uses)
            if why:
                self.result.obstacles.append((node.module, f"{node.op} can't be folded: {why}"))

    def _without_norm(self, node: Node) -> _New:
        gone = f"{node.module_type} -> Identity"
        if self.fold and not self.result.obstacles:
            before = node.parents[0].module
            layer, norm = self.modules[before], self.modules[node.module]
            self.folded[before] = folded(layer, norm)
            self.result.steps.append((f"{before}: took in {node.module}", partial(set_, layer, *self.folded[before])))
        return nn.Identity(), gone

    def _weights(self) -> None:
        owners = owners_of(self.model)
        for name in dict.fromkeys(node.module for node in self.nodes if node.kind == "layer"):
            layer = self.modules.get(name)
            if not isinstance(layer, Layer):
                why = "its weights are not those of a Linear or Conv module and were not drawn anew."
            elif is_parametrized(layer):
                why = "its weight is parametrized and was not drawn anew."
            elif len(owners[id(layer.weight)]) > 1:
                why = f"its weight is tied ({', '.join(owners[id(layer.weight)])}) and was not drawn anew."
            elif self.fold or not all(one.requires_grad for one in layer.parameters(recurse=False)):
                if not self._is_off(name, layer):
                    continue
                why = f"its weights were kept ({'fold' if self.fold else 'frozen'}) and are not as theorem 1 asks."
            else:
                self._draw(name, layer)
                continue
            self.result.left.append((name, why))

    def _is_off(self, name: str, layer: nn.Module) -> bool:
        weight, bias = self.folded.get(name, (layer.weight, layer.bias))
        assert isinstance(weight, Tensor)
        return is_off_scale(weight) or (isinstance(bias, Tensor) and is_off_zero(bias))

    def _draw(self, name: str, layer: nn.Module) -> None:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        if is_off_scale(weight):
            words = "weights LeCun-normal" + ", bias 0" * (bias is not None)
            self.result.steps.append((f"{name}: {words}", partial(draw_, weight, bias)))
        elif isinstance(bias, Tensor) and is_off_zero(bias):
            self.result.steps.append((f"{name}: bias 0", partial(nn.init.zeros_, bias)))

    def _notes(self) -> None:
        """What stays and hurts, and what was asked for and not needed."""
        if self.dropout is not None and not (self._hidden("dropout") or self._hidden("alpha dropout")):
            self.result.left.append(("dropout", "no dropout stands between layers that could have this rate."))
        if self.fold and not self._hidden("norm"):
            self.result.left.append(("fold", "no norm stands between layers that could be folded."))
        for node in self.nodes:
            if node.kind == "layer" and node.settings.get("zero_padding") and self._leads_to_hidden(node):
                why = "zero padding starves the border: set padding_mode='reflect' or 'circular'."
            elif node.kind == "pool" and node in self.hidden and self._leads_to_hidden(node):
                why = f"{node.op} moves mean and variance: use a convolution with stride."
            else:
                continue
            self.result.left.append((node.module, why))

    def _leads_to_hidden(self, node: Node) -> bool:
        """Whether the next activation, or the one behind the next layer, is between layers."""
        below = node.downstream(*_PASSED)
        if node.kind == "pool":
            below += [far for near in below if near.kind == "layer" for far in near.downstream(*_PASSED)]
        return any(one.kind == "activation" and one in self.hidden for one in below)


def is_hidden(node: Node) -> bool:
    """Whether a node stands between two layers."""
    way: tuple[Kind, ...] = (*_PASSED, "activation")
    return _has_layer(node.upstream(*way)) and _has_layer(node.downstream(*way))


def _is_surrounded(node: Node) -> bool:
    """Whether a layer stands anywhere above and anywhere below."""
    way: tuple[Kind, ...] = (*_PASSED, "activation", "add", "other", "opaque", "input")
    return _has_layer(node.upstream(*way)) and _has_layer(node.downstream(*way))


def _has_layer(nodes: Sequence[Node]) -> bool:
    return any(node.kind == "layer" for node in nodes)
