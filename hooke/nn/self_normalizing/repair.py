"""Makes a feed-forward net self-normalizing, in place: activations, dropout, norms, initialization.

What must change is first planned on the graph of `forward`. The plan is carried out whole or, where something in the
way can't be changed, not at all: half a self-normalizing net is worse than none.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hooke.nn.self_normalizing.audit.acceptance import accepted
from hooke.nn.self_normalizing.audit.finding import SELF_NORMALIZE, words_of
from hooke.nn.self_normalizing.audit.graph import Node
from hooke.nn.self_normalizing.audit.measure import record
from hooke.nn.self_normalizing.audit.report import audit
from hooke.nn.self_normalizing.outline import outline
from hooke.nn.self_normalizing.plan import Plan, Planner, is_hidden
from hooke.nn.self_normalizing.redraw import Layer


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
        model: The model; not scripted, no lazy modules. Frozen and tied weights keep their values.
        inputs: One batch, as for `audit`: the model is run once, and left as it was by that, to see what follows what.
            `None`: `torch.fx` follows `forward` instead, which fails where it branches on values.
        dropout: Rate of alpha dropout wherever there is dropout, in [0, 1). `None`: the old rate, at most 0.1.
        fold: Keep trained weights: batch norms are folded into the layer before them, as in eval mode, and no weights
            are drawn. Needs `inputs` where `BatchNorm1d` is folded, whose channels may be another dimension.

    Returns:
        The changes, and what was left alone and why.

    Raises:
        TypeError: `model` is no module.
        ValueError: No linear or convolutional layer, a lazy or scripted module, a rate outside [0, 1), or a `forward`
            that `torch.fx` can't follow.

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
    model = _checked(model, dropout)
    plan = Planner(model, _graph(model, inputs), dropout, fold).plan()
    if not plan.obstacles:
        _exchange_(model, inputs, plan)
    if plan.obstacles:
        return Repairs((), (*_grouped(plan.obstacles), *_grouped(plan.left)))
    for _, act in plan.steps:
        act()
    left = _grouped(plan.left)
    if inputs is not None:
        still = audit(model, inputs).findings
        left += [f"audit still says: {finding}".replace(f"; {SELF_NORMALIZE}", ".") for finding in still]
    return Repairs(tuple(sentence for sentence, *_ in (*plan.exchanges, *plan.steps)), tuple(left))


def _graph(model: nn.Module, inputs: Any) -> list[Node]:
    return outline(model) if inputs is None else record(model, inputs, backward=False)


def _exchange_(model: nn.Module, inputs: Any, plan: Plan) -> None:
    """Exchange the modules and look whether `forward` calls the new ones; put the old ones back if not."""
    new_of = {old: new for _, old, new in plan.exchanges}
    old_of = {new: old for old, new in new_of.items()}
    for old, new in new_of.items():
        new.training = old.training
    try:
        _put_(model, new_of)
        plan.obstacles += _still_called(model, inputs, plan) if new_of else []
    except BaseException:
        _put_(model, old_of)
        raise
    if plan.obstacles:
        _put_(model, old_of)


def _still_called(model: nn.Module, inputs: Any, plan: Plan) -> list[tuple[str, str]]:
    """Old modules that `forward` calls all the same, or why it calls none."""
    try:
        nodes = [node for node in _graph(model, inputs) if is_hidden(node) and _must_go(node)]
    except Exception as error:  # whatever forward does with a module of another kind
        why = f"forward fails with another module in its place ({words_of(error)})."
        return [(sentence.partition(":")[0], why) for sentence, *_ in plan.exchanges]
    why = "is called from a place that no module's attribute leads to: make it an attribute."
    return [(node.module, f"{node.op} {why}") for node in nodes]


def _must_go(node: Node) -> bool:
    return node.kind in ("dropout", "norm") or (node.kind == "activation" and node.op != "selu")


def _grouped(refusals: Sequence[tuple[str, str]]) -> list[str]:
    """One sentence a reason, with the first place and how many more there are."""
    places: dict[str, list[str]] = {}
    for place, reason in dict.fromkeys(refusals):
        places.setdefault(reason, []).append(place or "forward")
    return [f"{here[0]}{f' and {len(here) - 1} more' * (len(here) > 1)}: {why}" for why, here in places.items()]


def _checked(model: nn.Module, dropout: float | None) -> nn.Module:
    inner = accepted("self_normalize_", model)
    if not any(isinstance(module, Layer) for module in inner.modules()):
        raise ValueError(
            "self_normalize_: the model must have a linear or convolutional layer. "
            f"Got {type(inner).__name__} without one. Give a feed-forward net."
        )
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"self_normalize_: dropout must be in [0, 1). Got {dropout}. Use 0.05 or 0.1.")
    return inner


_TORCHS = frozenset(vars(nn.Module()))
"""Where modules keep parameters, buffers and hooks."""


def _put_(model: nn.Module, new_of: Mapping[nn.Module, nn.Module]) -> None:
    """Set new modules wherever the old ones are: as children, and in plain lists and dicts that modules keep beside."""
    seen: set[int] = set()
    for parent in [*model.modules()]:
        for name, value in parent._modules.items():
            parent._modules[name] = _with(value, new_of, seen)
        for name, value in vars(parent).items():
            if name not in _TORCHS:
                vars(parent)[name] = _with(value, new_of, seen)


def _with(value: Any, new_of: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    if isinstance(value, nn.Module):
        return new_of.get(value, value)
    if type(value) is tuple:
        parts = tuple(_with(part, new_of, seen) for part in value)
        return value if all(map(operator.is_, parts, value)) else parts
    if isinstance(value, (list, dict)) and id(value) not in seen:
        seen.add(id(value))  # it may hold itself
        for key, part in [*(value.items() if isinstance(value, dict) else enumerate(value))]:
            value[key] = _with(part, new_of, seen)
    return value
