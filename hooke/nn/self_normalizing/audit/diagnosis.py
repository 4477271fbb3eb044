"""From a recorded run to its findings: causes first, and effects where no cause was found.

The rules of self-normalization speak of SELU layers only; a net without SELU is asked whether its inputs are numbers,
whether its signal and its gradients survive its depth, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from hooke.nn.self_normalizing.audit import flow_rule, weight_rule
from hooke.nn.self_normalizing.audit.evidence import Evidence, is_off, name_of, places, width_of
from hooke.nn.self_normalizing.audit.finding import DEEP, FADING, NARROW, Finding, said
from hooke.nn.self_normalizing.audit.graph import BETWEEN, Kind, Node


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """Every finding, causes first; effects without a named cause are told only if no cause was found."""
    broken = [*_not_finite(evidence)] or [*_constant_inputs(evidence)]
    if broken:
        return tuple(broken)
    causes = [finding for rule in _CAUSES for finding in rule(evidence)]
    return tuple(causes or [finding for rule in _EFFECTS for finding in rule(evidence)])


def _not_finite(evidence: Evidence) -> Iterator[Finding]:
    broken = [node for node in evidence.nodes if node.measured and not math.isfinite(node.mean + node.variance)]
    computed = [node for node in broken if node.kind in ("layer", "opaque", "activation")]
    if computed and any(node.kind == "input" for node in broken):  # alone, -inf may be a mask
        yield Finding("not-finite", "inputs", "Inputs hold values that are not finite.", "Remove or fill them.")
    elif computed:
        yield Finding(
            "not-finite", name_of(computed[0]), f"{computed[0].op} gives values that are not finite, the first here.",
            "Look at its weights and inputs; lower the learning rate if this happened in training.",
        )  # fmt: skip


def _constant_inputs(evidence: Evidence) -> Iterator[Finding]:
    inputs = [node for node in evidence.nodes if node.kind == "input"]
    if inputs and all(node.variance == 0 and math.prod(node.shape) > 1 for node in inputs):
        words = f"Inputs are all {said(inputs[0].mean)} and carry nothing."
        yield Finding("constant", "inputs", words, "Give real examples.")


def _dead(evidence: Evidence) -> Iterator[Finding]:
    """A layer that says the same of all examples and learns nothing; one that starts at 0 or 1/2 may well learn."""
    for layer in evidence.layers:
        after = evidence.activation_of.get(layer)
        if after is not None and after.variance == 0 == layer.gradient_variance and math.prod(after.shape) > 1:
            yield Finding(
                "constant", name_of(layer),
                f"All outputs are {said(after.mean)} after {after.op} and no gradient passes: the layer is dead.",
                "Initialize its weights anew and look at its bias.",
            )  # fmt: skip
            return


def _unreached(evidence: Evidence) -> Iterator[Finding]:
    """Layers that get no gradient though a layer behind them does."""
    found = [layer for layer in evidence.layers if layer.unreached]
    found = [layer for layer in found if any(not math.isnan(one.gradient_variance) for one in layer.descendants())]
    if found:
        yield Finding(
            "no-gradient", name_of(found[-1]),
            f"No gradient reaches this layer{places(found)}, though layers behind it have one.",
            "Look for detach() or no_grad() behind it; if it is meant to be frozen, use requires_grad_(False).",
        )  # fmt: skip


def _drift(evidence: Evidence) -> Iterator[Finding]:
    for node in evidence.selus:
        if width_of(node) >= NARROW and not math.isnan(node.variance) and is_off(evidence, node):
            yield Finding(
                "drift", name_of(node),
                f"Activations have mean {said(node.mean)} and variance {said(node.variance)} after SELU at depth "
                f"{evidence.depth_of[node]}, outside theorem 1's domain.",
                "At initialization compare this layer with the table: omega 0, tau 1, inputs at (0, 1).",
            )  # fmt: skip
            return


def _fading(evidence: Evidence) -> Iterator[Finding]:
    hidden = _hidden(evidence)
    if len(hidden) < DEEP:
        return
    ways = (
        ("activations", "variance", "forward", "activation variance"),
        ("gradients", "gradient_variance", "backward", "gradient variance"),
    )
    for what, attribute, way, words in ways:
        layers = [layer for layer in hidden if not math.isnan(getattr(layer, attribute))]
        if not layers:
            continue
        first, last = _thirds([getattr(layer, attribute) for layer in layers])
        ratio = _ratio(last, first) if way == "forward" else _ratio(first, last)
        if ratio > FADING or ratio < 1 / FADING:
            verb, kind = ("grows", "exploding") if ratio > 1 else ("shrinks", "vanishing")
            factor = f"{said(max(ratio, 1 / ratio))} times" if ratio else "to 0"
            yield Finding(
                f"{kind}-{what}", name_of(layers[-1] if way == "forward" else layers[0]),
                f"Through {len(layers)} layers {words} {verb} {factor} {way}.",
                _fading_repair(evidence),
            )  # fmt: skip


def _hidden(evidence: Evidence) -> list[Node]:
    """Layers with an activation; all but the last of a plain chain whose activations are functions unknown here."""
    known = [layer for layer in evidence.layers if layer in evidence.activation_of]
    if known or any(sum(one.kind == "layer" for one in node.upstream(*_ANYTHING)) > 1 for node in evidence.layers):
        return known
    return [*evidence.layers[:-1]]


_ANYTHING: tuple[Kind, ...] = (*BETWEEN, "activation", "pool", "add", "other", "opaque")


def _ratio(end: float, start: float) -> float:
    return end / start if start else math.inf if end else math.nan


def _thirds(values: list[float]) -> tuple[float, float]:
    """Median of the first and of the last third."""
    third = max(len(values) // 3, 1)

    def middle(part: list[float]) -> float:
        return sorted(part)[len(part) // 2]

    return middle(values[:third]), middle(values[-third:])


def _fading_repair(evidence: Evidence) -> str:
    if evidence.selus:
        return "Use LeCun-normal init (hooke.nn.lecun_normal_) and inputs at mean 0, variance 1."
    return "Initialize by the activation (He for ReLU: nn.init.kaiming_normal_), or see hooke.nn.self_normalize_."


_CAUSES = (_dead, _unreached, *flow_rule.RULES, *weight_rule.RULES)
_EFFECTS = (_drift, _fading)
