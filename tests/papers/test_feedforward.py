"""Each stacked network equals the plain torch modules of its kind, one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from papers.snn.feedforward import METHODS, SATURATION, Data, Stack, cross_entropy, predict, train

INPUTS, OUTPUTS, WIDTH, DEPTH, SIZE, ROWS = 5, 3, 8, 5, 3, 16


class Plain(nn.Module):
    """One network, as a textbook writes it, with the weights of network `i` of a stack."""

    def __init__(self, stack: Stack, i: int) -> None:
        super().__init__()
        self.method = stack.method
        units = [stack._first, *(unit for block in stack._hidden for unit in block)]
        self.linears = nn.ModuleList([self._linear(unit[0][i], unit[1][i]) for unit in units])
        self.norms = nn.ModuleList([self._norm(unit, i) for unit in units])
        self.gates = nn.ModuleList([self._linear(u[2][i], u[3][i]) if stack.method == "Highway" else nn.Identity()
                                    for u in units[1:]])  # fmt: skip
        if stack.method == "WeightNorm":
            self.linears = nn.ModuleList([weight_norm(linear, dim=0) for linear in self.linears])
        self.last = self._linear(stack._last[0][i], stack._last[1][i])

    @staticmethod
    def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
        linear = nn.Linear(*weight.shape)
        linear.weight.data = weight.detach().T.clone()
        linear.bias.data = bias.detach()[0].clone()
        return linear

    def _norm(self, unit: list[Tensor], i: int) -> nn.Module:
        width = unit[0].shape[-1]
        if self.method == "LayerNorm":
            return nn.LayerNorm(width)
        return nn.BatchNorm1d(width) if self.method in ("BatchNorm", "ResNet") else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        layers = list(zip(self.linears, self.norms, strict=True))
        activation = nn.SELU() if self.method == "SNN" else nn.ReLU()

        def before(x: Tensor, number: int) -> Tensor:
            linear, norm = layers[number]
            return norm(linear(x))

        x = activation(before(x, 0))
        if self.method == "ResNet":
            for number in range(1, len(layers), 2):
                x = F.relu(x + before(F.relu(before(x, number)), number + 1))
        elif self.method == "Highway":
            for number in range(1, len(layers)):
                gate = torch.sigmoid(self.gates[number - 1](x))
                x = gate * F.relu(before(x, number)) + (1 - gate) * x
        else:
            for number in range(1, len(layers)):
                x = activation(before(x, number))
        return self.last(x)


def stack_of(method: str, depth: int = DEPTH, dropout: float = 0.0) -> Stack:
    return Stack(method, INPUTS, OUTPUTS, WIDTH, depth, [3, 4, 5], [dropout] * SIZE)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, ROWS, INPUTS, generator=generator)
    return x, torch.randint(0, OUTPUTS, (SIZE, ROWS), generator=generator)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_logits_are_those_of_plain_modules(method: str, training: bool) -> None:
    stack, (x, _) = stack_of(method), rows()
    plain = [Plain(stack, i).train(training) for i in range(SIZE)]
    expected = torch.stack([one(x[i]) for i, one in enumerate(plain)])
    torch.testing.assert_close(stack(x, training=training), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_training_is_plain_sgd_on_plain_modules(method: str) -> None:
    """Ten steps with a rate of its own for each network, then its evaluation."""
    stack, (x, y) = stack_of(method), rows()
    plain = [Plain(stack, i) for i in range(SIZE)]
    lr, steps, batch = [0.01, 0.03, 0.1], 10, 8
    own = [torch.arange(4 * i, 4 * i + 8) for i in range(SIZE)]
    data = Data(x[0], y[0], [part % ROWS for part in own])
    train(stack, data, lr, steps=steps, batch=batch, seed=1)
    generator = torch.Generator().manual_seed(1)
    optimizers = [torch.optim.SGD(one.parameters(), rate) for one, rate in zip(plain, lr, strict=True)]
    for _ in range(steps):
        features, targets = data.draw(batch, generator)
        for i, (one, optimizer) in enumerate(zip(plain, optimizers, strict=True)):
            loss = F.cross_entropy(one(features[i]), targets[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    check = torch.arange(ROWS)
    logits = predict(stack, x[0], [check] * SIZE, chunk=5)
    for i, one in enumerate(plain):
        torch.testing.assert_close(logits[i], one.eval()(x[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_does_not_depend_on_its_neighbors(method: str) -> None:
    x, _ = rows()
    together = stack_of(method)(x)
    alone = Stack(method, INPUTS, OUTPUTS, WIDTH, DEPTH, [4], [0.0])(x[1:2])
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize(("method", "hidden"), [("SNN", 1.0), ("MSRAinit", 2.0)])
def test_weights_start_as_the_papers_say(method: str, hidden: float) -> None:
    stack = Stack(method, 500, 10, 400, 2, [0, 1], [0.0, 0.0])
    assert stack._first[0].var().item() == pytest.approx(hidden / 500, rel=0.02)
    assert stack._hidden[0][0][0].var().item() == pytest.approx(hidden / 400, rel=0.02)
    assert stack._last[0].var().item() == pytest.approx(1 / 400, rel=0.1)
    assert not stack._first[1].any()


def test_dropout_of_each_network_at_its_own_rate() -> None:
    x = torch.zeros(3, 4000, 2)
    stack = Stack("SNN", 2, 2, 2, 1, [0, 1, 2], [0.0, 0.05, 0.5])
    out = stack._drop(x, training=True)
    assert (out[0] == 0).all()
    for i, p in ((1, 0.05), (2, 0.5)):
        values = out[i].unique()
        assert len(values) == 2
        a = (1 - p + SATURATION**2 * p * (1 - p)) ** -0.5  # the paper's a; b = -a p alpha'
        torch.testing.assert_close(
            values, torch.tensor([a * SATURATION, 0.0]) - a * p * SATURATION, rtol=1e-5, atol=1e-5
        )
        assert (out[i] == values[0]).float().mean().item() == pytest.approx(p, abs=0.02)
    relu = Stack("MSRAinit", 2, 2, 2, 1, [0, 1, 2], [0.0, 0.05, 0.5])
    assert relu._drop(torch.ones(3, 4000, 2), training=True)[2].unique().tolist() == [0.0, 2.0]
    assert stack._drop(x, training=False) is x


def test_cross_entropy_is_one_number_a_network() -> None:
    x, y = rows()
    logits = x[..., :OUTPUTS]
    expected = torch.stack([F.cross_entropy(logits[i], y[i]) for i in range(SIZE)])
    torch.testing.assert_close(cross_entropy(logits, y), expected)


def test_evaluations_come_at_their_steps() -> None:
    stack, (x, y) = stack_of("SNN"), rows()
    data = Data(x[0], y[0], [torch.arange(ROWS)] * SIZE)
    curve = train(
        stack, data, [0.1] * 3, steps=10, batch=4, seed=0, every=4, evaluate=lambda s: s(x).square().mean((1, 2))
    )
    assert curve.steps == [4, 8]
    assert [len(values) for values in curve.values] == [SIZE, SIZE]
