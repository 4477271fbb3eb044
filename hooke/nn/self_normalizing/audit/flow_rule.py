"""Rules of self-normalization about what stands between the layers, and what enters them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hooke.nn.self_normalizing.audit.evidence import Evidence, is_off, is_outside, name_of, places, saturation
from hooke.nn.self_normalizing.audit.finding import CORNER, MEAN, RATE, VARIANCE, Finding, said
from hooke.nn.self_normalizing.audit.graph import BETWEEN, Kind, Node


def inputs(evidence: Evidence) -> Iterator[Finding]:
    """What enters SELU layers and comes from no SELU: inputs, sums of branches, anything else."""
    seen: set[str] = set()
    for layer in evidence.selu_layers:
        for source, fed in _sources(layer):
            kind = {"input": "inputs", "add": "residual", "other": "layer-input"}.get(source.kind)
            if kind is None or kind in seen or not fed.measured:
                continue
            if is_off(evidence, fed, source.kind):
                seen.add(kind)
                place = "inputs" if kind == "inputs" else name_of(layer)
                words, repair = _ENTERING[kind]
                numbers = f"mean {said(fed.mean)} and variance {said(fed.variance)}"
                yield Finding(kind, place, words.format(numbers=numbers, op=source.op), repair)


def _sources(layer: Node) -> Iterator[tuple[Node, Node]]:
    """Where the inputs of a layer come from, and which node has their moments: before plain dropout, if that acts."""
    for node in layer.upstream("shape", "alpha dropout", "pad"):
        if node.kind == "dropout":
            yield from ((source, source) for source in node.upstream("shape", "alpha dropout", "pad", "dropout"))
        elif layer.fed_by is not None:
            yield node, layer.fed_by


_ENTERING: dict[str, tuple[str, str]] = {
    "inputs": ("Inputs have {numbers} instead of 0 and 1.", "Standardize them, feature by feature."),
    "residual": (
        "A sum of branches feeds this SELU layer with {numbers}: each sum adds up variances.",
        "Divide each sum of two branches by sqrt(2).",
    ),
    "layer-input": (
        "{op} feeds this SELU layer with {numbers} instead of 0 and 1.",
        "Standardize what enters the SELU part, e.g. by a norm before it.",
    ),
}


def plain_dropout(evidence: Evidence) -> Iterator[Finding]:
    """Dropout that sets units to 0."""
    dropouts = [node for node in evidence.nodes if node.kind == "dropout"]
    found = [n for n in dropouts if _is_near_selu(n, "shape", "pool", "norm", "dropout") or _enters_selu(evidence, n)]
    if found:
        first, last = found[0], evidence.selus[-1]
        p = first.settings["p"]
        name = "AlphaDropout" if first.op == "dropout" else "FeatureAlphaDropout"
        yield Finding(
            "plain-dropout", name_of(first),
            f"Plain dropout with p={p:g} beside SELU{places(found)} breaks self-normalization: each multiplies the "
            f"second moment by 1/(1-p) = {1 / (1 - p) if p < 1 else math.inf:.3g}, and the variance is "
            f"{said(last.variance)} by depth {evidence.depth_of[last]}.",
            f"Use {name}(p={min(p, 0.1):g}).",
        )  # fmt: skip


def _is_near_selu(node: Node, *through: Kind) -> bool:
    """Whether a SELU stands right above, or right below a layer above."""
    above = node.upstream(*through)
    below = node.downstream(*through)
    layered = any(one.kind == "layer" for one in above)
    return any(one.op == "selu" for one in above) or (layered and any(one.op == "selu" for one in below))


def _enters_selu(evidence: Evidence, node: Node) -> bool:
    """Whether a SELU layer reads what comes out."""
    return any(evidence.is_selu(one) for one in node.downstream("shape", "dropout", "alpha dropout", "pad"))


def alpha_dropout(evidence: Evidence) -> Iterator[Finding]:
    """Alpha dropout behind anything but the SELU that it is made for."""
    nodes = [node for node in evidence.nodes if node.kind == "alpha dropout"]
    pairs = [(node, above) for node in nodes for above in node.upstream("shape", "pool", "norm")]
    others = [(node, above) for node, above in pairs if above.kind == "activation" and above.op != "selu"]
    if others:
        node, above = others[0]
        yield Finding(
            "alpha-dropout", name_of(node),
            f"Alpha dropout stands behind {above.op}{places([node for node, _ in others])}: it keeps the moments of "
            "SELU only.",
            f"Use nn.Dropout beside {above.op}, or SELU in its place.",
        )  # fmt: skip
    for node, above in pairs:
        if above.op == "selu" and not math.isclose(saturation(node), saturation(above), rel_tol=1e-4):
            yield Finding(
                "alpha-mismatch", name_of(node),
                f"Alpha dropout sets units to {said(saturation(node))}, but the SELU before it saturates at "
                f"{said(saturation(above))}.",
                "Give both the same alpha and scale.",
            )  # fmt: skip
            return


def rate(evidence: Evidence) -> Iterator[Finding]:
    """Too much alpha dropout."""
    found = [n for n in evidence.nodes if n.kind == "alpha dropout" and n.settings["p"] > RATE]
    if found and evidence.selus:
        yield Finding(
            "dropout-rate", name_of(found[0]),
            f"Alpha dropout with p={found[0].settings['p']:g}{places(found)} keeps the moments but replaces too much.",
            "Use p=0.05 or 0.1, as the paper.",
        )  # fmt: skip


def norms(evidence: Evidence) -> Iterator[Finding]:
    """Norms between SELU layers; one before them, or on a residual branch, is none of these."""
    found = [
        n for n in evidence.nodes if n.kind == "norm" and _is_near_selu(n, "shape", "pool", "dropout", "alpha dropout")
    ]
    if found:
        what = found[0].module_type if "Norm" in found[0].module_type else found[0].op
        yield Finding(
            "norm", name_of(found[0]),
            f"{what} stands between SELU layers{places(found)}: they keep mean 0 and variance 1 by themselves, and "
            "its gains and batch noise fight that fixed point.",
            evidence.repaired("Remove it"),
        )  # fmt: skip


def other_activations(evidence: Evidence) -> Iterator[Finding]:
    """Activations between layers that are not SELU where most are."""
    hidden = [a for a in dict.fromkeys(evidence.activation_of.values()) if _feeds_layer(a)]
    others = [a for a in hidden if a.op != "selu"]
    if others and 2 * len(others) <= len(hidden):
        first = others[0]
        yield Finding(
            "activation", name_of(first),
            f"{first.op} stands in a net that is otherwise SELU{places(others)}: its outputs have mean "
            f"{said(first.mean)} and variance {said(first.variance)} and no fixed point at (0, 1).",
            evidence.repaired("Use SELU"),
        )  # fmt: skip


def _feeds_layer(node: Node) -> bool:
    return any(one.kind == "layer" for one in node.downstream(*BETWEEN, "pool"))


def padding(evidence: Evidence) -> Iterator[Finding]:
    """Zeros around images: units at the border sum fewer inputs, and tau is lower there."""
    found = [n for n in evidence.selus if n.corner_variance < CORNER * n.center_variance]
    if found:
        worst = min(found, key=lambda node: node.corner_variance)
        layer = next(one for one in worst.upstream("norm", "shape") if one.kind == "layer")
        yield Finding(
            "zero-padding", name_of(layer),
            f"Zero padding starves the border{places(found)}: corner variance {said(worst.corner_variance)} against "
            f"{said(worst.center_variance)} in the middle by depth {evidence.depth_of[worst]}.",
            "Use padding_mode='reflect' or 'circular', or no padding.",
        )  # fmt: skip


_POOLED: dict[str, tuple[str, str, str]] = {
    "sum": ("sum-pool", "Sum over {pooled:g} positions", "Divide the sum by sqrt({pooled:g}) and standardize it."),
    "mean": ("mean-pool", "Mean over {pooled:g} positions", "Standardize its outcome before the next SELU layer."),
    "max": ("max-pool", "Max over {pooled:g} values", "Use a convolution with stride, or pool before the SELU part."),
}


def pools(evidence: Evidence) -> Iterator[Finding]:
    """Sums, means and maxima over positions that feed SELU layers."""
    seen: set[str] = set()
    for node in evidence.nodes:
        if node.kind != "pool" or not _leads_to_selu(node):
            continue
        family = "max" if "max" in node.op else "sum" if node.op == "sum" else "mean"
        kind, words, repair = _POOLED[family]
        if kind not in seen and _changes(evidence, node):
            seen.add(kind)
            pooled = node.settings["pooled"]
            yield Finding(
                kind, name_of(node),
                f"{words.format(pooled=pooled)} feeds SELU layers with mean {said(node.mean)} and variance "
                f"{said(node.variance)} instead of 0 and 1.",
                repair.format(pooled=pooled),
            )  # fmt: skip


def _changes(evidence: Evidence, node: Node) -> bool:
    """Whether a pool moves the moments of what it reads by more than theorem 1's domain is wide; no chance in that."""
    source = next((one for one in node.upstream("shape") if one.measured and one.variance > 0), None)
    if source is None:
        return is_off(evidence, node)
    shift = (node.mean - source.mean) / math.sqrt(source.variance)
    return is_outside(shift, MEAN) or is_outside(node.variance / source.variance, VARIANCE)


def _leads_to_selu(node: Node) -> bool:
    """Whether what comes out enters a SELU layer or, between a layer and its SELU, that SELU."""
    for below in node.downstream("shape", "dropout", "alpha dropout", "pad", "pool"):
        if below.op == "selu":
            return True
        if below.kind == "layer" and any(one.op == "selu" for one in below.downstream(*BETWEEN, "pool")):
            return True
    return False


RULES = (inputs, plain_dropout, alpha_dropout, rate, norms, other_activations, padding, pools)
