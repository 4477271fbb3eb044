"""Averaged: the average is the papers', training is that of the rule inside, to the bit."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from cases import ALPHA, ETA, network
from pure import STEPS, gradient, start
from torch import nn

import hooke
from hooke.averaged import Averaged
from hooke.outer import DiLoCo
from hooke.rule import EAMSGD, EASGD, Average, Downpour, LocalSGD, Rule

RULES = [EASGD(moving_rate=ALPHA), EAMSGD(moving_rate=0.7), Downpour(), LocalSGD(num_workers=2), DiLoCo(num_workers=2)]


@pytest.mark.parametrize("rate", [None, 0.1, 1.0])
@pytest.mark.parametrize("tau", [1, 4])
@pytest.mark.parametrize("p", [1, 3])
def test_it_is_the_papers_average(p: int, tau: int, rate: float | None) -> None:
    """Also where the center's part in the exchange is `absorb_` alone, as where all exchange at once."""
    rule = Averaged(Downpour(), "uniform" if rate is None else rate)
    center = start()
    memory = rule.init_center(center)
    x, states = [start() for _ in range(p)], [rule.init(start()) for _ in range(p)]
    for t in range(1, STEPS + 1):
        for i in range(p):
            x[i] -= ETA * torch.tensor(gradient(i, x[i].numpy()))
            if t % tau == 0 and i % 2:
                rule.exchange_(x[i], center, states[i], None, None, memory)
            elif t % tau == 0:
                rule.absorb_(center, rule.delta(x[i], center, states[i]), memory)
                x[i] -= rule.settle(x[i], center, center, states[i])
                states[i] = rule.init(x[i])
    settings = {"p": p, "eta": ETA, "tau": tau, "steps": STEPS, "rate": rate}
    expected = reference.averaged_downpour(start().numpy(), gradient, **settings)
    for ours, theirs in zip((center, memory[0]), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("where", ["in place", "out"])
@pytest.mark.parametrize("rate", ["uniform", 0.3])
@pytest.mark.parametrize("inner", RULES, ids=repr)
def test_training_is_that_of_the_rule_inside_to_the_bit(inner: Rule, rate: float, where: str) -> None:
    ends = []
    for rule in (inner, Averaged(inner, rate)):
        x, center, began = (torch.randn(9, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
        state, memory = rule.init(began), rule.init_center(center)
        out = torch.zeros(9) if where == "out" else None
        for _ in range(5):
            rule.exchange_(x, center, state, out, None, memory)
            x += 1
        ends.append([x, center, *state, *memory, *([out] if out is not None else [])])
    plain, averaged = ends
    kept = len(inner.init_center(torch.zeros(9)))
    own = 2 if rate == "uniform" else 1
    at = 2 + len(inner.init(torch.zeros(9))) + kept
    assert all(torch.equal(a, b) for a, b in zip(plain, averaged[:at] + averaged[at + own :], strict=True))


def test_a_uniform_average_is_the_mean_of_all_that_the_center_has_been() -> None:
    rule, center = Averaged(Downpour()), torch.tensor([1.0])
    memory, seen = rule.init_center(center), []
    for delta in (1.0, -4.0, 2.0, 8.0):
        seen.append(center.item())
        rule.absorb_(center, torch.tensor([delta]), memory)
        assert memory[0].item() == pytest.approx(np.mean(seen))


@pytest.mark.parametrize("inner", RULES, ids=repr)
def test_it_stands_for_the_rule_inside(inner: Rule) -> None:
    rule = Averaged(inner)
    assert (rule.order, rule.plain_point) == (inner.order, inner.plain_point)
    assert rule.center_memory == (*inner.center_memory, "average", "averaged")
    assert rule.bind(3) == Averaged(inner.bind(3))
    assert rule.buffer_rule() == Averaged(inner.buffer_rule())
    assert Averaged(inner, 0.2).buffer_rule() == Averaged(inner.buffer_rule(), 0.2)


def test_bound_rules_know_the_number_of_workers() -> None:
    assert Averaged(EASGD()).bind(3) == Averaged(EASGD(moving_rate=0.3))
    assert Averaged(LocalSGD(), 0.2).bind(3) == Averaged(LocalSGD(3), 0.2)
    assert Averaged(Average()).bind(2).rule == Average(2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Averaged(EASGD(), 0.0),
            "Averaged: rate must be in (0, 1] or 'uniform'. Got 0.0. Use the paper's rate=0.001.",
        ),
        (
            lambda: Averaged(EASGD(), "mean"),  # type: ignore[arg-type]
            "Averaged: rate must be in (0, 1] or 'uniform'. Got 'mean'. Use the paper's rate=0.001.",
        ),
        (
            lambda: Averaged(Averaged(Downpour())),
            "Averaged: rule must be a hooke rule without an average. Got Averaged(rule=Downpour(), rate='uniform'). "
            "Use e.g. hooke.Averaged(hooke.EASGD()).",
        ),
        (
            lambda: Averaged("easgd"),  # type: ignore[arg-type]
            "Averaged: rule must be a hooke rule without an average. Got 'easgd'. Use e.g. "
            "hooke.Averaged(hooke.EASGD()).",
        ),
    ],
)
def test_a_wrong_setting_gets_a_sentence_with_the_repair(make: Callable[[], Rule], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


# Through the Worker ----------------------------------------------------------------------------------------------


def test_the_model_holds_the_average_with_the_buffers_that_belong_to_it(center: hooke.LocalCenter) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    with hooke.Worker(
        model, optimizer, Averaged(EASGD(order="gauss-seidel")), center=center, communication_period=1
    ) as worker:
        for _ in range(4):
            with worker.center_weights():
                seen.append({name: value.clone() for name, value in model.state_dict().items()})
            optimizer.zero_grad()
            (model(torch.randn(8, 2)) - 3).square().mean().backward()
            optimizer.step()
        own = {name: value.clone() for name, value in model.state_dict().items()}
        with worker.center_weights(average=True):
            averaged = {name: value.clone() for name, value in model.state_dict().items()}
        for name, value in model.state_dict().items():
            assert torch.equal(value, own[name])
    for name in ("0.weight", "1.bias", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(averaged[name], torch.stack([held[name] for held in seen]).mean(0))
        assert not torch.allclose(averaged[name], seen[-1][name])


def test_without_an_average_there_is_a_sentence(center: hooke.LocalCenter) -> None:
    model = network()
    sentence = (
        "Worker: center_weights(average=True) needs a rule that keeps one. Got Downpour(). Use hooke.Averaged(rule)."
    )
    with (
        hooke.Worker(model, torch.optim.SGD(model.parameters()), Downpour(), center=center) as worker,
        pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"),
        worker.center_weights(average=True),
    ):
        pass
