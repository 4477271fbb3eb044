"""Rules of self-normalization about the weights: their init, their biases, how many they are, how often they act."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hooke.nn.self_normalizing.audit.evidence import Evidence, is_off, is_outside, name_of, places
from hooke.nn.self_normalizing.audit.finding import (
    BACKWARD_FACTOR,
    BIAS_MEAN,
    BIAS_SQUARE,
    GRADIENT_GROWTH,
    NARROW,
    NARROW_LAYERS,
    OMEGA,
    RECIPE_WIDTH,
    RECIPES,
    SPREAD,
    TAPER,
    TAU,
    Finding,
    said,
)
from hooke.nn.self_normalizing.audit.graph import Node


def init(evidence: Evidence) -> Iterator[Finding]:
    """Weights whose tau is not 1; what is no known init counts only where it shows."""
    groups: dict[tuple[str, str], list[Node]] = {}
    for layer in evidence.selu_layers:
        if layer.weight is not None and not _normalized_after(evidence, layer):
            recipe = _recipe(layer)
            if recipe and (recipe != _UNKNOWN or _shows(evidence, layer)):
                groups.setdefault(recipe, []).append(layer)
    for (kind, words), found in groups.items():
        tau, last = found[0].weight.tau if found[0].weight else math.nan, evidence.activation_of[found[-1]]
        yield Finding(
            kind, name_of(found[0]),
            f"{words} (tau = {tau:.3g} instead of 1){places(found)} drives the variance to "
            f"{said(last.variance)} by depth {evidence.depth_of[last]}.",
            evidence.repaired("At initialization use hooke.nn.lecun_normal_"),
        )  # fmt: skip


def _shows(evidence: Evidence, layer: Node) -> bool:
    """Whether activations have left theorem 1's domain: trained weights may take any values that keep them in it."""
    return is_off(evidence, evidence.activation_of[layer])


def _normalized_after(evidence: Evidence, layer: Node) -> bool:
    """Whether a norm between the layer and its SELU undoes any scale."""
    return any(node.kind == "norm" for node in layer.downstream("shape", "dropout", "alpha dropout"))


def _recipe(layer: Node) -> tuple[str, str] | None:
    """Kind and name of an init that is not LeCun's."""
    w = layer.weight
    assert w is not None
    error = math.sqrt(2 / (w.fan_in * w.units))  # of tau, relative, for normal weights
    if not is_outside(w.tau, TAU, error):
        return None
    glorot = ("glorot-init", 2 * w.fan_in / (w.fan_in + w.units), "Glorot init")
    for kind, tau, words in (*RECIPES, glorot):
        if abs(w.tau / tau - 1) < RECIPE_WIDTH + SPREAD * error:
            return kind, words
    return _UNKNOWN


_UNKNOWN = ("weight-scale", "The scale of the weights")


def weight_mean(evidence: Evidence) -> Iterator[Finding]:
    """Weights whose omega is not 0; it shows in the mean of each example, not in the mean over all."""
    found = [
        layer
        for layer in evidence.selu_layers
        if layer.weight is not None
        and is_outside(layer.weight.omega, OMEGA, math.sqrt(layer.weight.tau / layer.weight.units))
    ]
    if found and found[0].weight:
        yield Finding(
            "weight-mean", name_of(found[0]),
            f"The weights of a unit sum to omega = {said(found[0].weight.omega)} on average{places(found)} instead of "
            "0.",
            evidence.repaired("At initialization use hooke.nn.lecun_normal_"),
        )  # fmt: skip


def bias(evidence: Evidence) -> Iterator[Finding]:
    """Biases that move the mean or add to the variance, where activations show it."""

    def matters(layer: Node) -> bool:
        w = layer.weight
        if w is None or _normalized_after(evidence, layer):
            return False
        mean = abs(w.bias) - SPREAD * w.bias_std / math.sqrt(w.units)
        shift = evidence.activation_of[layer].mean - (evidence.target or (0.0,))[0]
        shows = abs(shift) > BIAS_MEAN or _shows(evidence, layer)
        return shows and (mean > BIAS_MEAN or w.bias**2 + w.bias_std**2 > BIAS_SQUARE)

    found = [layer for layer in evidence.selu_layers if matters(layer)]
    if found and found[0].weight:
        w = found[0].weight
        yield Finding(
            "bias", name_of(found[0]),
            f"Biases have mean {said(w.bias)} and spread {said(w.bias_std)}{places(found)}: they move the mean "
            "from 0.",
            evidence.repaired("At initialization set biases to 0"),
        )  # fmt: skip


def narrow(evidence: Evidence) -> Iterator[Finding]:
    """Too few inputs a unit."""
    found = [
        layer
        for layer in _before_taper(evidence.selu_layers)
        if layer.weight is not None
        and layer.weight.fan_in < NARROW
        and any(one.op == "selu" for one in layer.upstream("shape", "alpha dropout", "pad"))
    ]
    if len(found) >= NARROW_LAYERS:
        width = min(layer.weight.fan_in for layer in found if layer.weight)
        yield Finding(
            "narrow", name_of(found[0]),
            f"Units sum only {width} inputs{places(found)}: too few for the central limit theorem, and tau spreads by "
            f"{math.sqrt(2 / width):.2g} over units.",
            f"Use hidden layers of {4 * NARROW} units or more.",
        )  # fmt: skip


def _before_taper(layers: list[Node]) -> list[Node]:
    """The layers without those at the end that grow ever narrower, as in a conic net."""
    widths = [layer.weight.fan_in if layer.weight else 0 for layer in layers]
    start = max((i for i in range(1, len(widths)) if widths[i] > widths[i - 1]), default=0)
    narrow = [width for width in widths[start:] if width < NARROW]
    return layers[: len(layers) - len(narrow)] if TAPER * len(set(narrow)) >= len(narrow) else layers


def deep(evidence: Evidence) -> Iterator[Finding]:
    """Gradients that grow by chi a layer, in plain chains of SELU with the fixed point (0, 1)."""
    growth = BACKWARD_FACTOR**evidence.depth
    plain = evidence.target == (0.0, 1.0) and not any(node.kind in ("add", "norm") for node in evidence.nodes)
    if growth > GRADIENT_GROWTH and plain:
        first, last = evidence.selu_layers[0], evidence.selu_layers[-1]
        measured = first.gradient_variance / last.gradient_variance if last.gradient_variance else math.nan
        yield Finding(
            "depth", name_of(first),
            f"Depth {evidence.depth}: gradient variance grows about {said(float(f'{growth:.1g}'))} times toward the "
            f"inputs, chi^{evidence.depth} with chi = {BACKWARD_FACTOR:.4f} (measured: {said(measured)}).",
            "Use 64 layers or fewer, clip gradients, or lower the learning rate of early layers.",
        )  # fmt: skip


RULES = (init, weight_mean, bias, narrow, deep)
