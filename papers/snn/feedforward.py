"""The seven kinds of feed-forward networks that Klambauer et al. (2017) compare, many trained at once.

A `Stack` holds S networks of one kind and size, which differ in seed, learning rate, dropout rate and data: their
matrices lie behind one another, so that one call multiplies them all. From the same batches, and without dropout, each
network does what it would do alone; `tests/papers/test_feedforward.py` compares them with plain torch modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from papers.snn.rank import METHODS as METHODS

SATURATION = -1.7580993408473766
"""-lambda alpha: what SELU tends to for large negative inputs."""

GATE_BIAS = -2.0
"""Highway gates start almost closed, as Srivastava et al. (2015, section 3.2) propose for about ten layers."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (S, n, outputs) and targets (S, n, ...) to one loss a network, (S,)."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of class indices, one number a network."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


class Stack:
    """S networks of one kind: `depth` hidden layers of `width` units, linear outputs.

    Args:
        method: One of `METHODS`. ResNet has (depth - 1) // 2 residual blocks of two layers behind its first
            layer, with batch normalization as in He et al. (2015); Highway's first layer is plain, to come to `width`.
        inputs: Features.
        outputs: Classes or tasks.
        width: Units of every hidden layer.
        depth: Hidden layers.
        seeds: One a network; it decides the initial weights.
        dropout: One rate a network, of the units of every hidden layer; alpha dropout for SNN.
    """

    def __init__(
        self,
        method: str,
        inputs: int,
        outputs: int,
        width: int,
        depth: int,
        seeds: Sequence[int],
        dropout: Sequence[float],
    ) -> None:
        self.method, self.size = method, len(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._noise = torch.Generator().manual_seed(sum(seeds) + 1)
        self.keep = 1 - torch.tensor(dropout)[:, None, None]
        self.parameters: list[Tensor] = []
        self.statistics: list[tuple[Tensor, Tensor]] = []
        self._first = self._unit(inputs, width, plain=True)
        blocks = {"ResNet": (depth - 1) // 2}.get(method, depth - 1)
        self._hidden = [self._block(width) for _ in range(blocks)]
        self._last = self._linear(width, outputs, gain=1.0)
        for parameter in self.parameters:
            parameter.requires_grad_()

    # what the networks consist of ---------------------------------------------------------------------------------

    def _draw(self, rows: int, columns: int, gain: float) -> Tensor:
        draws = [torch.randn(rows, columns, generator=one) for one in self._generators]
        return torch.stack(draws) * math.sqrt(gain / rows)

    def _own(self, tensor: Tensor) -> Tensor:
        self.parameters.append(tensor)
        return tensor

    def _linear(self, rows: int, columns: int, gain: float | None = None) -> list[Tensor]:
        """Weights (S, in, out) and biases (S, 1, out): variance 1/in under SELU, 2/in under ReLU (He et al. 2015)."""
        gain = gain or (1.0 if self.method == "SNN" else 2.0)
        return [self._own(self._draw(rows, columns, gain)), self._own(torch.zeros(self.size, 1, columns))]

    def _unit(self, rows: int, columns: int, *, plain: bool = False) -> list[Tensor]:
        """A linear map and what its kind has beside it: gains and shifts, or a length for every weight vector."""
        parts = self._linear(rows, columns)
        if self.method in ("LayerNorm", "BatchNorm", "ResNet"):
            parts += [self._own(torch.ones(self.size, 1, columns)), self._own(torch.zeros(self.size, 1, columns))]
        if self.method in ("BatchNorm", "ResNet"):
            self.statistics.append((torch.zeros(self.size, 1, columns), torch.ones(self.size, 1, columns)))
            parts.append(torch.tensor(len(self.statistics) - 1))
        if self.method == "WeightNorm":
            parts.append(self._own(parts[0].norm(dim=1, keepdim=True)))
        if self.method == "Highway" and not plain:
            gate = self._linear(rows, columns, gain=1.0)
            gate[1].fill_(GATE_BIAS)
            parts += gate
        return parts

    def _block(self, width: int) -> list[list[Tensor]]:
        return [self._unit(width, width) for _ in range(2 if self.method == "ResNet" else 1)]

    # forward ------------------------------------------------------------------------------------------------------

    def __call__(self, x: Tensor, *, training: bool = False) -> Tensor:
        """Logits (S, n, outputs) of inputs (S, n, features)."""
        x = self._drop(self._activate(self._before(x, self._first, training)), training)
        for block in self._hidden:
            x = self._drop(self._through(x, block, training), training)
        return torch.baddbmm(self._last[1], x, self._last[0])

    def _through(self, x: Tensor, block: list[list[Tensor]], training: bool) -> Tensor:
        y = self._before(x, block[0], training)
        if self.method == "ResNet":
            return F.relu(x + self._before(F.relu(y), block[1], training))
        if self.method == "Highway":
            gate = torch.baddbmm(block[0][3], x, block[0][2]).sigmoid()
            return torch.lerp(x, F.relu(y), gate)
        return self._activate(y)

    def _activate(self, x: Tensor) -> Tensor:
        return F.selu(x) if self.method == "SNN" else F.relu(x)

    def _before(self, x: Tensor, parts: list[Tensor], training: bool) -> Tensor:
        """What goes into the activation: a linear map, normalized as the kind says."""
        weight, bias = parts[:2]
        if self.method == "WeightNorm":
            weight = weight * (parts[2] / weight.norm(dim=1, keepdim=True))
        y = torch.baddbmm(bias, x, weight)
        if self.method == "LayerNorm":
            return F.layer_norm(y, y.shape[-1:]) * parts[2] + parts[3]
        if self.method in ("BatchNorm", "ResNet"):
            return self._batch_normalized(y, parts, training)
        return y

    def _batch_normalized(self, y: Tensor, parts: list[Tensor], training: bool) -> Tensor:
        size, rows, columns = y.shape
        mean, variance = self.statistics[int(parts[4])]
        flat = y.transpose(0, 1).reshape(rows, size * columns)
        gain, shift = parts[2].flatten(), parts[3].flatten()
        normalized = F.batch_norm(flat, mean.view(-1), variance.view(-1), gain, shift, training, 0.1, 1e-5)
        return normalized.view(rows, size, columns).transpose(0, 1)

    def _drop(self, x: Tensor, training: bool) -> Tensor:
        if not training or bool((self.keep == 1).all()):
            return x
        kept = torch.rand(x.shape, generator=self._noise) < self.keep
        if self.method != "SNN":
            return x * kept / self.keep
        a = (self.keep + SATURATION**2 * self.keep * (1 - self.keep)) ** -0.5
        return torch.where(kept, x, SATURATION) * a - a * (1 - self.keep) * SATURATION


@dataclass(frozen=True)
class Data:
    """Rows that all networks of a stack draw from: features (n, d), targets (n, ...), and each network's own rows."""

    features: Tensor
    targets: Tensor
    rows: Sequence[Tensor]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One batch a network, with replacement: features (S, batch, d) and targets (S, batch, ...)."""
        picks = [own[torch.randint(len(own), (batch,), generator=generator)] for own in self.rows]
        index = torch.stack(picks)
        return self.features[index], self.targets[index]


@dataclass
class Curve:
    """What one network did: at each evaluation the step, and whatever the evaluation returned."""

    steps: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    """(evaluations, S)"""


def train(
    stack: Stack,
    data: Data,
    lr: Sequence[float],
    *,
    steps: int,
    batch: int,
    seed: int,
    loss: Loss = cross_entropy,
    every: int = 0,
    evaluate: Callable[[Stack], Tensor] | None = None,
) -> Curve:
    """Plain SGD, as the paper uses; each network with its own rate.

    Args:
        stack: Trained in place.
        data: What to draw batches from.
        lr: One learning rate a network.
        steps: Updates.
        batch: Examples a batch.
        seed: Decides the batches.
        loss: One number a network.
        every: Steps between evaluations; 0 for none.
        evaluate: (S,) numbers of the stack as it stands.

    Returns:
        Curve: The evaluations.
    """
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor(lr)
    curve = Curve()
    for step in range(1, steps + 1):
        x, y = data.draw(batch, generator)
        gradients = torch.autograd.grad(loss(stack(x, training=True), y).sum(), stack.parameters)
        _descend(stack.parameters, gradients, rates)
        if evaluate is not None and every and step % every == 0:
            curve.steps.append(step)
            with torch.no_grad():
                curve.values.append(evaluate(stack).tolist())
    return curve


@torch.no_grad()
def _descend(parameters: list[Tensor], gradients: Sequence[Tensor], rates: Tensor) -> None:
    rates = rates[:, None, None]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.addcmul_(gradient, rates, value=-1)


@torch.no_grad()
def predict(stack: Stack, features: Tensor, rows: Sequence[Tensor], chunk: int = 2048) -> list[Tensor]:
    """Logits of each network on its own rows: a list of (rows, outputs)."""
    out = []
    for network, own in enumerate(rows):
        parts = [_alone(stack, network, features[part]) for part in own.split(chunk)]
        out.append(torch.cat(parts))
    return out


def _alone(stack: Stack, network: int, x: Tensor) -> Tensor:
    """One network's logits; the others are not computed."""
    one = object.__new__(Stack)
    one.__dict__ = dict(stack.__dict__)
    one.size = 1
    pick = {id(p): p[network : network + 1] for p in stack.parameters}

    def own(parts: list[Tensor]) -> list[Tensor]:
        return [pick.get(id(part), part) for part in parts]

    one._first, one._last = own(stack._first), own(stack._last)
    one._hidden = [[own(unit) for unit in block] for block in stack._hidden]
    one.statistics = [(m[network : network + 1], v[network : network + 1]) for m, v in stack.statistics]
    return one(x[None])[0]
