"""Worker and LocalCenter, through the public calls, against the literal references: 100 steps, 1e-5 in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import ALPHA, DELTA, ETA, RULES, Quadratic, RuleCase, flat, fragments_of, network, network_loss
from torch import nn

import hooke

pytestmark = pytest.mark.filterwarnings("ignore:Worker. the run must stay in its stable region")  # MDOWNPOUR leaves it

STEPS = 100
Loss = Callable[[nn.Module, int], torch.Tensor]


def problem(name: str, p: int) -> tuple[list[nn.Module], Loss]:
    if name == "quadratic":
        return [Quadratic(11, worker) for worker in range(p)], lambda model, worker: model()
    return [network() for _ in range(p)], network_loss


def gradient_of(models: list[nn.Module], loss: Loss) -> reference.Gradient:
    """Worker i's gradient at x in float64, as the references ask for it."""
    doubles = [model.double() for model in models]

    def gradient(worker: int, x: np.ndarray) -> np.ndarray:
        model = doubles[worker]
        nn.utils.vector_to_parameters(torch.tensor(x), model.parameters())
        gradients = torch.autograd.grad(loss(model, worker), list(model.parameters()))
        return torch.cat([g.reshape(-1) for g in gradients]).numpy()

    return gradient


def train(
    models: list[nn.Module],
    loss: Loss,
    rule: hooke.Rule,
    momentum: float,
    steps: int = STEPS,
    decay: float = 0.0,
    **options: Any,
) -> tuple:
    first = hooke.LocalCenter()
    with ExitStack() as stack:
        stack.callback(first.close)
        optimizers = []
        for index, model in enumerate(models):
            optimizer = torch.optim.SGD(
                model.parameters(), lr=ETA, momentum=momentum, nesterov=momentum > 0, weight_decay=decay
            )
            center = first if index == 0 else hooke.LocalCenter(first.path)
            stack.callback(center.close)
            stack.enter_context(hooke.Worker(model, optimizer, rule, center=center, **options))
            optimizers.append(optimizer)
        for _ in range(steps):
            for index, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
                optimizer.zero_grad()
                loss(model, index).backward()
                optimizer.step()
        spec = first.spec
        named = {entry.name: entry.view(first.pull()).double().reshape(-1) for entry in spec.entries}
        return [plain_point(m, o, momentum) for m, o in zip(models, optimizers, strict=True)], torch.cat(
            list(named.values())
        ).numpy()


def plain_point(model: nn.Module, optimizer: torch.optim.Optimizer, momentum: float) -> np.ndarray:
    """x where torch's Nesterov SGD holds x + delta * v."""
    if not momentum:
        return flat(model)
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    return flat(model) + ETA * momentum * torch.cat([b.double().reshape(-1) for b in buffers]).numpy()


def assert_equal(got: tuple, expected: tuple) -> None:
    for ours, theirs in zip([*got[0], got[1]], [*expected[0], expected[1]], strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("tau", [1, 4, 16])
@pytest.mark.parametrize("name", ["quadratic", "network"])
@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_equals_the_reference(case: RuleCase, name: str, tau: int, p: int) -> None:
    models, loss = problem(name, p)
    x0 = flat(models[0])
    got = train(models, loss, case.rule, case.momentum, communication_period=tau)
    models, loss = problem(name, p)
    assert_equal(got, case.expected(x0, gradient_of(models, loss), p=p, tau=tau, steps=STEPS))


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize(
    ("collect", "deliver", "every_step"), [(4, 4, True), (2, 6, True), (4, 10, False), (5, 1, False)]
)
def test_separate_periods_equal_the_reference(collect: int, deliver: int, every_step: bool, p: int) -> None:
    models, loss = problem("network", p)
    x0 = flat(models[0])
    pull = "every_step" if every_step else "exchange"
    got = train(
        models, loss, hooke.EASGD(moving_rate=ALPHA), 0.0, collect_period=collect, delivery_period=deliver, pull=pull
    )
    models, loss = problem("network", p)
    expected = reference.easgd_by_halves(
        x0, gradient_of(models, loss), p=p, eta=ETA, alpha=ALPHA, collect=collect, deliver=deliver,
        every_step=every_step, steps=STEPS,
    )  # fmt: skip
    assert_equal(got, expected)


FRAGMENTS = pytest.mark.parametrize(("tau", "fragments"), [(4, 1), (4, 4), (6, 4), (16, 5), (100, 33)])


@pytest.mark.parametrize("p", [1, 3])
@FRAGMENTS
@pytest.mark.parametrize("mixing", [0.0, 0.4])
def test_streaming_equals_the_reference(mixing: float, tau: int, fragments: int, p: int) -> None:
    """Also where the fragments are not of the same length, and where some hold nothing but gaps."""
    models, loss = problem("network", p)
    x0 = flat(models[0])
    rule = hooke.DiLoCo(0.6, 0.8, mixing=mixing)
    got = train(models, loss, rule, 0.0, communication_period=tau, fragments=fragments)
    models, loss = problem("network", p)
    expected = reference.streaming_diloco_asynchronous(
        x0, gradient_of(models, loss), p=p, eta=ETA, tau=tau, steps=STEPS, lr=0.6, momentum=0.8, mixing=mixing,
        fragments=fragments_of(network(), fragments),
    )  # fmt: skip
    assert_equal(got, expected)


@pytest.mark.parametrize("p", [1, 3])
@FRAGMENTS
@pytest.mark.parametrize("momentum", [0.0, DELTA])
def test_elastic_fragments_equal_the_reference(momentum: float, tau: int, fragments: int, p: int) -> None:
    models, loss = problem("network", p)
    x0 = flat(models[0])
    rule = hooke.EAMSGD(moving_rate=ALPHA) if momentum else hooke.EASGD(moving_rate=ALPHA)
    got = train(models, loss, rule, momentum, communication_period=tau, fragments=fragments)
    models, loss = problem("network", p)
    expected = reference.streaming_eamsgd(
        x0, gradient_of(models, loss), p=p, eta=ETA, tau=tau, steps=STEPS, alpha=ALPHA, delta=momentum,
        fragments=fragments_of(network(), fragments),
    )  # fmt: skip
    assert_equal(got, expected)


@pytest.mark.parametrize("momentum", [0.0, DELTA])
def test_weight_decay_sees_the_point_before_the_pull(momentum: float) -> None:
    """With decay the step reads the parameters, so the correction may not be subtracted before it."""
    decay = 0.1
    models, loss = problem("network", 2)
    x0 = flat(models[0])

    def decayed(model: nn.Module, worker: int) -> torch.Tensor:
        return loss(model, worker) + decay / 2 * sum(p.square().sum() for p in model.parameters())

    rule = hooke.EAMSGD(moving_rate=ALPHA) if momentum else hooke.EASGD(moving_rate=ALPHA)
    expected_models, _ = problem("network", 2)
    settings = {"delta": momentum} if momentum else {}
    algorithm = reference.eamsgd if momentum else reference.easgd_jacobi
    expected = algorithm(
        x0, gradient_of(expected_models, decayed), p=2, eta=ETA, alpha=ALPHA, tau=4, steps=STEPS, **settings
    )
    got = train(models, loss, rule, momentum, communication_period=4, decay=decay)
    assert_equal(got, expected)
