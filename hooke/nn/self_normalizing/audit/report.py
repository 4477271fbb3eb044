"""Does a net normalize itself? One forward and one backward pass, measured layer by layer, against the theory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hooke.nn.self_normalizing.audit.diagnosis import find
from hooke.nn.self_normalizing.audit.evidence import Evidence, constants_of, name_of, read
from hooke.nn.self_normalizing.audit.finding import Finding
from hooke.nn.self_normalizing.audit.graph import Node
from hooke.nn.self_normalizing.audit.measure import record
from hooke.nn.self_normalizing.moments import moment_map
from hooke.nn.self_normalizing.theorem import THEOREMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AuditReport", "Finding", "LayerStatistics", "audit"]


@dataclass(frozen=True)
class LayerStatistics:
    """One call of one layer with a weight matrix, and of the activation after it; plain numbers, nan where none exist.

    Moments are over examples, units and positions together.

    Attributes:
        name: The module's name in the model; a second call of the same module is `"name (call 2)"`.
        type: The module's class.
        fan_in: Inputs of one unit.
        units: Outputs: features or channels.
        mean: Of the layer's output, before the activation.
        variance: Likewise.
        activation: Name of the activation's function, "" where none follows.
        activation_mean: After the activation.
        activation_variance: Likewise.
        corner_variance: After the activation, at the corners of the image; nan without zero padding.
        gradient_variance: Of the gradient by the layer's output, where the gradient by the model's output has
            variance 1 (or is that of `loss`).
        omega: Sum of a unit's weights, mean over units.
        omega_std: Its standard deviation over units.
        tau: Sum of squares of a unit's weights, mean over units.
        tau_std: Its standard deviation over units.
        predicted_mean: After the activation, by `moment_map` from the layer's measured inputs; SELU only.
        predicted_variance: Likewise.
        distance: How far input mean, input variance, omega or tau lies outside theorem 1's domain, the farthest of the
            four; 0 inside. SELU only.
    """

    name: str
    type: str
    fan_in: int
    units: int
    mean: float
    variance: float
    activation: str
    activation_mean: float
    activation_variance: float
    corner_variance: float
    gradient_variance: float
    omega: float
    omega_std: float
    tau: float
    tau_std: float
    predicted_mean: float
    predicted_variance: float
    distance: float


@dataclass(frozen=True)
class AuditReport:
    """What `audit` measured.

    Attributes:
        layers: One entry a call of a layer, in the order of execution.
        findings: What to repair; empty for a healthy net.
        input_mean: Mean of the first floating-point input.
        input_variance: Its variance.
        seconds: What the audit took.
    """

    layers: tuple[LayerStatistics, ...]
    findings: tuple[Finding, ...]
    input_mean: float
    input_variance: float
    seconds: float

    def __str__(self) -> str:
        return self.table()

    def table(self, rows: int = 48) -> str:
        """The layers as a text table of at most 100 columns and `rows` rows, and the findings below it."""
        from hooke.nn.self_normalizing.audit.table import table

        return table(self, rows)

    def picture(self) -> Figure:
        """Moments of activations and gradient variance over depth, beside theorem 1's domain; needs matplotlib.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from hooke.nn.self_normalizing.audit.table import picture

        return picture(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers for `json.dumps`; what is not a finite number is `None`."""
        return _strict(asdict(self))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def audit(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> AuditReport:
    """Measure every layer of a model and say what keeps it from normalizing itself.

    One forward pass in training mode: dropout acts as it will in training, and norms use the batch's statistics. One
    backward pass to the activations only. Weights are not differentiated, so that it costs less than a training step.
    Afterwards the model is as it was, to the bit: mode of every submodule, gradients, parameters, buffers, hooks, and
    the random state of CPU and accelerators; also if `forward` raises. (What `forward` itself writes elsewhere, in
    plain attributes or into the data of parameters, can not be taken back.)

    Functions called in `forward` are seen as modules are. Rules of self-normalization are asked of SELU layers only;
    a net without SELU is only asked whether activations and gradients survive its depth.

    Audit a net before it is trained: its repairs are for initialization, and training may rightly leave the theory's
    domain. Moments are over all numbers together, so that examples which are nearly equal to each other can pass.

    Args:
        model: Any module: nested, shared, residual, recurrent, convolutional...
        inputs: A batch as the model is trained on: a tensor, a tuple of positional arguments or a dict of named ones.
            256 examples or more give sharp numbers; with fewer the rules grant more room to chance.
        loss: From the model's output to a scalar, e.g. `lambda output: cross_entropy(output, y)`. `None`: the gradient
            by each output is random with variance 1.
        seed: Of dropout and of that random gradient: the same call gives the same report.

    Returns:
        Statistics of each layer, and findings, empty for a healthy net.

    Raises:
        TypeError: `model` is no module.
        ValueError: No layer with a weight matrix was called; a module that is scripted, lazy, complex or on the meta
            device; no examples; a loss without a gradient; a reentrant checkpoint.
        Exception: Whatever `forward` raises.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.SELU(), nn.Dropout(0.5), nn.Linear(64, 4))
        >>> [finding.kind for finding in audit(net, torch.randn(256, 64)).findings]
        ['plain-dropout', 'default-init']

    Reference:
        Klambauer et al., "Self-normalizing neural networks", arXiv 1706.02515, eqs. 4, 5 and theorem 1.
    """
    started = time.perf_counter()
    nodes = record(model, inputs, loss=loss, seed=seed)
    evidence = read(nodes)
    if not any(node.kind in ("layer", "opaque") for node in nodes):
        raise ValueError(
            "audit: forward must call a layer with a weight matrix (Linear, Conv, LSTM, x @ weight...). Got none "
            f"from {type(model).__name__}. Audit the model that holds the layers."
        )
    first = next((node for node in nodes if node.kind == "input" and node.measured), None)
    mean, variance = (first.mean, first.variance) if first else (math.nan, math.nan)
    return AuditReport(_statistics(evidence), find(evidence), mean, variance, time.perf_counter() - started)


def _statistics(evidence: Evidence) -> tuple[LayerStatistics, ...]:
    layers = [node for node in evidence.nodes if node.kind in ("layer", "opaque")]
    predictions = _predictions(evidence, [layer for layer in layers if evidence.is_selu(layer)])
    calls: dict[str, int] = {}
    return tuple(_row(evidence, layer, calls, predictions.get(layer, _NOTHING)) for layer in layers)


_NOTHING = (math.nan, math.nan, math.nan)


def _row(evidence: Evidence, layer: Node, calls: dict[str, int], predicted: Sequence[float]) -> LayerStatistics:
    name, after, w = name_of(layer), evidence.activation_of.get(layer), layer.weight
    calls[name] = calls.get(name, 0) + 1
    omega = (w.omega, w.omega_std, w.tau, w.tau_std) if w else (math.nan,) * 4
    return LayerStatistics(
        name if calls[name] == 1 else f"{name} (call {calls[name]})",
        layer.module_type or layer.op,
        w.fan_in if w else 0,
        w.units if w else layer.shape[-1],
        layer.mean,
        layer.variance,
        after.op if after else "",
        after.mean if after else math.nan,
        after.variance if after else math.nan,
        after.corner_variance if after else math.nan,
        layer.gradient_variance,
        *omega,
        *predicted,
    )


def _predictions(evidence: Evidence, layers: Sequence[Node]) -> dict[Node, tuple[float, float, float]]:
    """Mean and variance after SELU, and the distance from theorem 1's domain; layers of one SELU at once.

    Units differ in omega, and the pre-activations of all of them together have mean `omega * mean` and variance
    `tau * variance + spread(omega)^2 * mean^2`, beside the biases'.
    """
    groups: dict[tuple[float, float], list[Node]] = {}
    for layer in layers:
        if layer.fed_by is not None and layer.weight is not None and math.isfinite(layer.fed_by.variance):
            groups.setdefault(constants_of(evidence.activation_of[layer]), []).append(layer)
    found: dict[Node, tuple[float, float, float]] = {}
    for (alpha, scale), group in groups.items():
        means, variances = torch.tensor([_sums(layer) for layer in group], dtype=torch.float64).T
        mean, variance = moment_map(means, variances, 1.0, 1.0, alpha=alpha, scale=scale)
        distances = [_distance(layer) for layer in group]
        found |= dict(zip(group, zip(mean.tolist(), variance.tolist(), distances, strict=True), strict=True))
    return found


def _sums(layer: Node) -> tuple[float, float]:
    """Mean and variance of a layer's sums, from those of its inputs and from its weights."""
    w, fed = layer.weight, layer.fed_by
    assert w is not None and fed is not None
    spread = (w.omega_std * fed.mean) ** 2 + w.bias_std**2
    return w.omega * fed.mean + w.bias, w.tau * max(fed.variance, 0.0) + spread


def _distance(layer: Node) -> float:
    """The farthest of the four coordinates from theorem 1's domain."""
    w, fed = layer.weight, layer.fed_by
    assert w is not None and fed is not None
    return max(map(abs, THEOREMS["theorem 1"].distance(fed.mean, fed.variance, w.omega, w.tau).values()))
