"""Makes a feed-forward net self-normalizing, in place: activations, dropout, norms, initialization.

What must change is first planned on the graph of `forward`. The plan is carried out whole or, where something in the
way can't be changed, not at all: half a self-normalizing net is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from hooke.nn.self_normalizing.audit.finding import RATE
from hooke.nn.self_normalizing.audit.graph import BETWEEN, Kind, Node
from hooke.nn.self_normalizing.audit.measure import record
from hooke.nn.self_normalizing.audit.report import audit
from hooke.nn.self_normalizing.dropout import AlphaDropout, FeatureAlphaDropout
from hooke.nn.self_normalizing.outline import outline
from hooke.nn.self_normalizing.redraw import Layer, can_fold, draw_, fold_, is_off_scale, is_off_zero, owners_of

HIGHEST_RATE = 0.1
"""The larger of the two alpha-dropout rates that the paper recommends (section 2); higher ones are lowered to it."""

_PASSED: tuple[Kind, ...] = (*BETWEEN, "pool")


@dataclass(frozen=True)
class Repairs:
    """What `self_normalize_` did.

    Attributes:
        changes: One sentence a change, each with the module's name. Empty if nothing had to change, or if something in
            the way could not.
        refused: What it left alone, and why.
    """

    changes: tuple[str, ...]
    refused: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            [
                "Changed:" if self.changes else "Changed nothing.",
                *(f"  {one}" for one in self.changes),
                *(["Left alone:"] if self.refused else []),
                *(f"  {one}" for one in self.refused),
            ]
        )


@dataclass
class _Plan:
    """What to exchange, then what to do to weights and rates, each with its sentence; `obstacles` forbid all of it."""

    exchanges: list[tuple[str, nn.Module, nn.Module]] = field(default_factory=list)
    steps: list[tuple[str, Callable[[], Any]]] = field(default_factory=list)
    obstacles: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def self_normalize_(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    dropout: float | None = None,
    fold: bool = False,
) -> Repairs:
    """Turn a feed-forward model into a self-normalizing one, in place, and say what was done.

    Between its layers: ReLU, ELU, GELU and their like become SELU; dropout becomes alpha dropout; norms go. Layers
    whose weights have another tau than theorem 1 allows, or biases that matter, are drawn anew (LeCun-normal, bias 0),
    the output layer too. What stands before the first layer or behind the last one stays: a norm of the inputs, an
    output's softmax. A healthy net stays as it is, so that a second call changes nothing.

    If something stands between the layers that can't be exchanged (a function called in `forward`, a residual addition,
    attention, a recurrent layer), nothing is changed and `refused` says why; call it on a part, e.g. `model.head`.

    Make the optimizer afterwards. Trained weights are lost, unless `fold`; in any case the net must be trained (again).

    Args:
        model: The model; no lazy modules.
        inputs: One batch, as for `audit`: the model is run once, and left as it was by that, to see what follows what.
            `None`: `torch.fx` follows `forward` instead, which fails where it branches on values.
        dropout: Rate of alpha dropout wherever there is dropout, in [0, 1). `None`: the old rate, at most 0.1.
        fold: Keep trained weights: batch norms are folded into the layer before them, as in eval mode, and no weights
            are drawn.

    Returns:
        The changes, and what was left alone and why.

    Raises:
        TypeError: `model` is no module.
        ValueError: No linear or convolutional layer, a lazy module, a rate outside [0, 1), or a `forward` that
            `torch.fx` can't follow.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2))
        >>> print(self_normalize_(net))
        Changed:
          2: ReLU -> SELU
          3: Dropout(p=0.5) -> AlphaDropout(p=0.1); the paper recommends 0.05 or 0.1
          1: BatchNorm1d -> Identity
          0: weights LeCun-normal, bias 0
          4: weights LeCun-normal, bias 0

    Reference:
        Klambauer et al., "Self-normalizing neural networks", arXiv 1706.02515, section 2.
    """
    _check(model, dropout)
    plan = _Planner(model, _graph(model, inputs), dropout, fold).plan()
    if not plan.obstacles:
        _exchange_(model, inputs, plan)
    if plan.obstacles:
        return Repairs((), (*_grouped(plan.obstacles), *_grouped(plan.left)))
    for _, act in plan.steps:
        act()
    left = _grouped(plan.left)
    if inputs is not None:
        left += [f"audit still says: {finding}" for finding in audit(model, inputs).findings]
    return Repairs(tuple(sentence for sentence, *_ in (*plan.exchanges, *plan.steps)), tuple(left))


def _graph(model: nn.Module, inputs: Any) -> list[Node]:
    return outline(model) if inputs is None else record(model, inputs, backward=False)


def _exchange_(model: nn.Module, inputs: Any, plan: _Plan) -> None:
    """Exchange the modules and look whether `forward` calls the new ones; put the old ones back if not."""
    for _, old, new in plan.exchanges:
        new.training = old.training
        _put_(model, old, new)
    if not plan.exchanges:
        return
    try:
        nodes = [node for node in _graph(model, inputs) if _is_hidden(node) and _must_go(node)]
        why = "is called from a place that no module's attribute leads to: make it an attribute."
        still = [(node.module, f"{node.op} {why}") for node in nodes]
    except Exception as error:  # whatever forward does with a module of another kind
        why = f"forward fails with another module in its place ({str(error).strip().splitlines()[0]})."
        still = [(sentence.partition(":")[0], why) for sentence, *_ in plan.exchanges]
    if still:
        for _, old, new in plan.exchanges:
            _put_(model, new, old)
        plan.obstacles += still


def _must_go(node: Node) -> bool:
    return node.kind in ("dropout", "norm") or (node.kind == "activation" and node.op != "selu")


def _grouped(refusals: Sequence[tuple[str, str]]) -> list[str]:
    """One sentence a reason, with the first place and how many more there are."""
    places: dict[str, list[str]] = {}
    for place, reason in dict.fromkeys(refusals):
        places.setdefault(reason, []).append(place or "forward")
    return [f"{here[0]}{f' and {len(here) - 1} more' * (len(here) > 1)}: {why}" for why, here in places.items()]


def _check(model: nn.Module, dropout: float | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"self_normalize_: model must be an nn.Module. Got {type(model).__name__}. Give the module.")
    lazy = [name for name, one in model.named_parameters() if isinstance(one, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"self_normalize_: every parameter must have its shape. Got lazy {lazy[0]}. "
            "Run one batch through the model first."
        )
    if not any(isinstance(module, Layer) for module in model.modules()):
        raise ValueError(
            "self_normalize_: the model must have a linear or convolutional layer. "
            f"Got {type(model).__name__} without one. Give a feed-forward net."
        )
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"self_normalize_: dropout must be in [0, 1). Got {dropout}. Use 0.05 or 0.1.")


class _Planner:
    """Goes through the graph once for each kind of repair."""

    def __init__(self, model: nn.Module, nodes: Sequence[Node], dropout: float | None, fold: bool) -> None:
        self.model, self.nodes, self.dropout, self.fold = model, nodes, dropout, fold
        self.modules = dict(model.named_modules())
        self.result = _Plan()
        self.uses: dict[str, list[Node]] = {}
        for node in nodes:
            self.uses.setdefault(node.module, []).append(node)
        self.hidden = [node for node in nodes if _is_hidden(node)]

    def plan(self) -> _Plan:
        """Everything that must be done, or why it can't be."""
        self._obstacles()
        activations = [node for node in self._hidden("activation") if node.op != "selu"]
        self._exchange(activations, "activation", lambda node: (nn.SELU(), f"{node.module_type} -> SELU"))
        self._exchange(self._hidden("dropout"), "dropout", self._alpha_dropout)
        self._rates()
        if self.fold:
            self._foldable()
        self._exchange(self._hidden("norm"), "norm", self._without_norm)
        if not self.fold:
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

    def _exchange(self, nodes: Sequence[Node], what: str, made: Callable[[Node], tuple[nn.Module, str]]) -> None:
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
            else:
                new, sentence = made(node)
                self.result.exchanges.append((f"{name}: {sentence}", module, new))
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

    def _alpha_dropout(self, node: Node) -> tuple[nn.Module, str]:
        old = node.settings["p"]
        p = min(old, HIGHEST_RATE) if self.dropout is None else self.dropout
        dims = {"dropout1d": 1, "dropout2d": 2, "dropout3d": 3}.get(node.op)
        new = AlphaDropout(p) if dims is None else FeatureAlphaDropout(p, spatial_dims=dims)
        lowered = "; the paper recommends 0.05 or 0.1" if self.dropout is None and p < old else ""
        return new, f"{node.module_type}(p={old:g}) -> {type(new).__name__}(p={p:g}){lowered}"

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
            if not can_fold(node, self.modules, self.uses):
                why = f"{node.op} can't be folded: only a batch norm with running statistics right behind a layer can."
                self.result.obstacles.append((node.module, why))

    def _without_norm(self, node: Node) -> tuple[nn.Module, str]:
        gone = f"{node.module_type} -> Identity"
        if self.fold and not self.result.obstacles:
            before = node.parents[0].module
            layer, norm = self.modules[before], self.modules[node.module]
            self.result.steps.append((f"{before}: took in {node.module}", partial(fold_, layer, norm)))
        return nn.Identity(), gone

    def _weights(self) -> None:
        owners = owners_of(self.model)
        for name in dict.fromkeys(node.module for node in self.nodes if node.kind == "layer"):
            layer = self.modules.get(name)
            if not isinstance(layer, Layer):
                why = "its weights are not those of a Linear or Conv module and were not drawn anew."
            elif parametrize.is_parametrized(layer) or hasattr(layer, "weight_g") or hasattr(layer, "weight_orig"):
                why = "its weight is parametrized and was not drawn anew."
            elif len(owners[id(layer.weight)]) > 1:
                why = f"its weight is tied ({', '.join(owners[id(layer.weight)])}) and was not drawn anew."
            else:
                self._draw(name, layer)
                continue
            self.result.left.append((name, why))

    def _draw(self, name: str, layer: nn.Module) -> None:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        if is_off_scale(weight):
            words = "weights LeCun-normal" + ", bias 0" * (bias is not None)
            self.result.steps.append((f"{name}: {words}", partial(draw_, weight, bias)))
        elif isinstance(bias, Tensor) and is_off_zero(bias):
            self.result.steps.append((f"{name}: bias 0", partial(nn.init.zeros_, bias)))

    def _notes(self) -> None:
        """What stays and hurts."""
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


def _is_hidden(node: Node) -> bool:
    """Whether a node stands between two layers."""
    way: tuple[Kind, ...] = (*_PASSED, "activation")
    return _has_layer(node.upstream(*way)) and _has_layer(node.downstream(*way))


def _is_surrounded(node: Node) -> bool:
    """Whether a layer stands anywhere above and anywhere below."""
    way: tuple[Kind, ...] = (*_PASSED, "activation", "add", "other", "opaque", "input")
    return _has_layer(node.upstream(*way)) and _has_layer(node.downstream(*way))


def _has_layer(nodes: Sequence[Node]) -> bool:
    return any(node.kind == "layer" for node in nodes)


def _put_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Set `new` wherever `old` is: as a child, and in plain lists and dicts that modules keep beside."""
    for parent in [*model.modules()]:
        for places in (parent._modules, vars(parent)):
            for name, value in places.items():
                places[name] = _with(value, old, new)


def _with(value: Any, old: nn.Module, new: nn.Module) -> Any:
    if value is old:
        return new
    if isinstance(value, list):
        value[:] = [_with(part, old, new) for part in value]
    elif type(value) is dict:
        value.update({key: _with(part, old, new) for key, part in value.items()})
    elif type(value) is tuple:
        return tuple(_with(part, old, new) for part in value)
    return value
