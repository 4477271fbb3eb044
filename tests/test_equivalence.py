"""The family's ties: settings at which one method is another, as far as the algebra goes and no further.

In float64 on a quadratic of each worker's own, 100 steps, to 1e-12; once each way a rule is applied: workers one after
the other, or all at once. Two rules are compared that have different code, or a rule with another paper's literal
reference.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import reference
import torch
from cases import ALPHA, ETA
from pure import STEPS, assert_equal, gradient, round_robin, start, synchronous
from torch import Tensor, nn

import hooke
from hooke.averaged import Averaged
from hooke.outer import AsyncDiLoCo, DiLoCo, Lookahead, MDownpour, SlowMo
from hooke.rule import EAMSGD, EASGD, Average, Downpour, LocalSGD, Rule

PERIODS = pytest.mark.parametrize("tau", [1, 4, 16])
WORKERS = pytest.mark.parametrize("p", [1, 2, 4])


def settings(p: int, tau: int) -> dict:
    return {"p": p, "eta": ETA, "tau": tau, "steps": STEPS}


# One rule is another, whoever exchanges when ---------------------------------------------------------------------

SAME_FOR_ALL: dict[str, tuple[Rule, Rule]] = {
    "EAMSGD without momentum is EASGD": (EAMSGD(moving_rate=ALPHA), EASGD(moving_rate=ALPHA)),
    "DiLoCo with outer SGD at rate 1 is Local SGD": (DiLoCo(1.0, 0.0), LocalSGD()),
    "SlowMo without momentum at rate 1 is Local SGD": (SlowMo(0.0), LocalSGD()),
    "SlowMo without momentum is Lookahead around the mean": (SlowMo(0.0, slow_lr=0.3), Lookahead(0.3)),
    "DiLoCo without momentum is Lookahead around the mean": (DiLoCo(0.3, 0.0), Lookahead(0.3)),
    "Lookahead that goes all the way is Local SGD": (Lookahead(1.0), LocalSGD()),
    "delayed momentum of 0 is none": (AsyncDiLoCo(0.3, 0.0), Lookahead(0.3)),
    "MDOWNPOUR without momentum is DOWNPOUR": (MDownpour(0.0), Downpour()),
    "a mean over one worker is a sum": (LocalSGD(num_workers=1), Downpour()),
    "delayed by nothing is not delayed": (AsyncDiLoCo(0.6, 0.8, delay=1), DiLoCo(0.6, 0.8, num_workers=1)),
    "MDOWNPOUR is DiLoCo with a sum for the mean": (MDownpour(0.6), DiLoCo(1.0, 0.6, num_workers=1)),
}


@PERIODS
@WORKERS
@pytest.mark.parametrize("name", SAME_FOR_ALL)
def test_one_rule_is_another(name: str, p: int, tau: int) -> None:
    ours, theirs = SAME_FOR_ALL[name]
    assert_equal(round_robin(ours, p, tau), round_robin(theirs, p, tau))
    assert_equal(synchronous(ours, p, tau), synchronous(theirs, p, tau))


@PERIODS
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AsyncDiLoCo(0.6, 0.8), DiLoCo(0.6, 0.8)),
        (Downpour(), LocalSGD()),
        (MDownpour(0.6), DiLoCo(1.0, 0.6)),
        (Average(), LocalSGD()),
    ],
    ids=repr,
)
def test_with_one_worker_alone_they_are_the_same(ours: Rule, theirs: Rule, tau: int) -> None:
    assert_equal(round_robin(ours, 1, tau), round_robin(theirs, 1, tau))


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(AsyncDiLoCo(0.6, 0.8), DiLoCo(0.6, 0.8)), (Downpour(), LocalSGD())], ids=repr
)
def test_with_several_they_are_not(ours: Rule, theirs: Rule, p: int) -> None:
    assert np.abs(round_robin(ours, p, 4)[1] - round_robin(theirs, p, 4)[1]).max() > 1e-3


@PERIODS
@WORKERS
def test_around_the_mean_mixing_keeps_it(p: int, tau: int) -> None:
    """Local SGD's workers that keep a share of themselves still have the center as their mean, after each exchange."""
    mixed, center = synchronous(LocalSGD(mixing=0.4), p, tau)
    whole_periods = STEPS % tau == 0
    assert not whole_periods or np.abs(sum(mixed) / p - center).max() <= 1e-12
    apart = np.abs(mixed[0] - center).max()
    assert apart > 1e-3 if p > 1 else apart <= 1e-12 or not whole_periods


# All at once: the synchronous methods of the papers ---------------------------------------------------------------


@PERIODS
@WORKERS
def test_bmuf_is_slowmo_and_its_nesterov_form_is_diloco(p: int, tau: int) -> None:
    x0, block = start().numpy(), {"momentum": 0.7, "zeta": 0.9}
    classical = reference.bmuf(x0, gradient, **settings(p, tau), **block, nesterov=False)
    assert_equal(synchronous(SlowMo(0.7, slow_lr=0.9), p, tau), classical)
    nesterov = reference.bmuf(x0, gradient, **settings(p, tau), **block, nesterov=True)
    assert_equal(synchronous(DiLoCo(0.9, 0.7), p, tau), nesterov)
    assert np.abs(nesterov[1] - classical[1]).max() > 1e-6


@PERIODS
@pytest.mark.parametrize("p", [2, 4])
def test_summing_is_averaging_at_a_rate_of_p(p: int, tau: int) -> None:
    """DOWNPOUR's steps, all at once, are Local SGD's times p: why it needs rates so much smaller."""
    assert_equal(synchronous(Downpour(), p, tau), synchronous(DiLoCo(float(p), 0.0), p, tau))
    assert_equal(synchronous(MDownpour(0.5), p, tau), synchronous(DiLoCo(float(p), 0.5), p, tau))


@WORKERS
def test_local_sgd_at_period_1_is_sgd_on_the_mean_gradient(p: int) -> None:
    x = start().numpy()
    for _ in range(STEPS):
        x = x - ETA * sum(gradient(i, x) for i in range(p)) / p
    assert_equal(synchronous(LocalSGD(), p, 1), ([x] * p, x))


@pytest.mark.parametrize("p", [1, 2, 4])
def test_the_center_of_synchronous_easgd_at_beta_1_is_the_mean_of_its_workers(p: int) -> None:
    """As in Local SGD: c' = c + sum of (x_i - c) / p. What differs is how far the workers go: alpha of the way to the
    center that was, instead of all the way to the center that is. So no symmetric spring is Local SGD: that has a
    moving rate of 1 for the workers with a beta of 1 for the center, and EASGD has both only for p = 1.
    """
    random = torch.Generator().manual_seed(2)
    center = torch.randn(6, generator=random, dtype=torch.float64)
    workers = [torch.randn(6, generator=random, dtype=torch.float64) for _ in range(p)]
    mean = torch.stack(workers).mean(0)
    elastic, local = EASGD(beta=1.0).bind(p), LocalSGD().bind(p)
    deltas = [elastic.delta(x, center, ()) for x in workers]
    for x, delta in zip(workers, deltas, strict=True):
        torch.testing.assert_close(local.delta(x, center, (center,)), delta)
        moved = x - elastic.settle(x, delta, mean, ())
        torch.testing.assert_close(moved, x + (center - x) / p)
        torch.testing.assert_close(x - local.settle(x, delta, mean, (center,)), mean)
    torch.testing.assert_close(center + sum(deltas), mean)


# One worker alone ------------------------------------------------------------------------------------------------


@PERIODS
@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_one_worker_that_is_set_back_to_its_elastic_center_is_lookahead(alpha: float, tau: int) -> None:
    """The center of EASGD goes alpha of the way to the worker; the worker then takes the center's place."""
    x0 = start().numpy()
    expected = reference.lookahead(x0, gradient, alpha=alpha, **settings(1, tau))
    assert_equal(round_robin(Lookahead(alpha), 1, tau), expected)
    x, center, rule = start(), start(), EASGD(moving_rate=alpha)
    for t in range(1, STEPS + 1):
        x = x - ETA * torch.tensor(gradient(0, x.numpy()))
        if t % tau == 0:
            rule.exchange_(x.clone(), center, (), None)
            x = center.clone()
    assert_equal(([x.numpy()], center.numpy()), expected)


@PERIODS
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5])
def test_one_worker_that_mixes_is_elastic(alpha: float, tau: int) -> None:
    """Going on from a mixture with the center is a spring under another name: that is alpha = (1 - m) / (2 - m)."""
    mixing = (1 - 2 * alpha) / (1 - alpha)
    elastic = round_robin(EASGD(moving_rate=alpha, order="gauss-seidel"), 1, tau)
    assert_equal(round_robin(Lookahead(alpha, mixing=mixing), 1, tau), elastic)


@pytest.mark.parametrize("rate", [None, 0.05])
def test_one_worker_at_period_1_under_an_average_is_asgd_or_mvasgd(rate: float | None) -> None:
    x, z = start().numpy(), start().numpy()
    rule = Averaged(Downpour(), "uniform" if rate is None else rate)
    worker, center = start(), start()
    state, (average, *count) = rule.init(center), rule.init_center(center)
    for t in range(STEPS):
        a = 1 / (t + 1) if rate is None else rate
        z, x = (1 - a) * z + a * x, x - ETA * gradient(0, x)
        worker -= ETA * torch.tensor(gradient(0, worker.numpy()))
        rule.exchange_(worker, center, state, None, None, (average, *count))
    assert_equal(([worker.numpy(), average.numpy()], center.numpy()), ([x, z], x))


@pytest.mark.parametrize("rule", [MDownpour(0.9), DiLoCo(1.0, 0.9), AsyncDiLoCo(1.0, 0.9)], ids=repr)
def test_one_worker_at_period_1_is_nesterovs_sgd(rule: Rule) -> None:
    _, ahead = reference.msgd(start().numpy(), gradient, eta=ETA, delta=0.9, steps=STEPS)
    assert_equal(round_robin(rule, 1, 1), ([ahead], ahead))


@pytest.mark.parametrize("tau", [1, 4, 16])
def test_one_worker_alone_under_local_sgd_or_downpour_is_plain_sgd(tau: int) -> None:
    x = start().numpy()
    for _ in range(96):
        x = x - ETA * gradient(0, x)
    for rule in (LocalSGD(), Downpour()):
        (_, center) = round_robin(rule, 1, tau, steps=96)
        assert np.abs(center - x).max() <= 1e-12


# Through the public Worker ---------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """x^2 / 2 in each of four coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, -3.0, 5.0, 8.0]))

    def forward(self) -> Tensor:
        return self.x.square().sum() / 2


def trained(
    rule: hooke.Rule | None, p: int, steps: int, period: int = 1, fragments: int = 1, **optimizer: float
) -> list[Tensor]:
    """Worker 0's parameters after each of its steps; without a rule, torch's optimizer by itself."""
    seen, first = list[Tensor](), hooke.LocalCenter()
    with ExitStack() as stack:
        stack.callback(first.close)
        models = [Bowl() for _ in range(p)]
        optimizers = [torch.optim.SGD(model.parameters(), **optimizer) for model in models]  # type: ignore[arg-type]
        for index in range(p if rule is not None else 0):
            center = first if index == 0 else hooke.LocalCenter(first.path)
            stack.callback(center.close)
            options: dict = {"center": center, "communication_period": period, "fragments": fragments}
            stack.enter_context(hooke.Worker(models[index], optimizers[index], rule, **options))
        for _ in range(steps):
            for model, one in zip(models, optimizers, strict=True):
                one.zero_grad()
                model().backward()
                one.step()
            seen.append(models[0].x.detach().clone())
    return seen


def test_one_worker_of_mdownpour_is_torchs_nesterov_sgd_to_the_bit() -> None:
    """At rates of 1/4 and 1/2 no step is rounded for a while: then there is nothing to tell the two apart by."""
    ours = trained(hooke.MDownpour(momentum=0.5), 1, 8, lr=0.25)
    theirs = trained(None, 1, 8, lr=0.25, momentum=0.5, nesterov=True)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[-1], trained(None, 1, 8, lr=0.25)[-1])


def test_one_worker_of_mdownpour_is_torchs_nesterov_sgd() -> None:
    ours = trained(hooke.MDownpour(momentum=0.9), 1, STEPS, lr=0.03)
    theirs = trained(None, 1, STEPS, lr=0.03, momentum=0.9, nesterov=True)  # type: ignore[arg-type]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [1, 3])
def test_eamsgd_without_momentum_is_easgd_to_the_bit(p: int) -> None:
    nesterov: dict = {"lr": 0.03, "momentum": 0.0, "nesterov": False}
    ours = trained(hooke.EAMSGD(beta=0.9), p, 40, period=4, **nesterov)
    theirs = trained(hooke.EASGD(beta=0.9), p, 40, period=4, **nesterov)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_phases_are_two_workers_one_after_the_other() -> None:
    """Exchanging at every step first, then seldom: one block or two, and nothing is lost between them."""
    ends = []
    for blocks in ([(1, 5), (4, 8)], [({0: 1, 5: 4}, 13)]):
        model, center = Bowl(), hooke.LocalCenter()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for period, steps in blocks:
            with hooke.Worker(model, optimizer, hooke.Lookahead(), center=center, communication_period=period):
                for _ in range(steps):
                    optimizer.zero_grad()
                    model().backward()
                    optimizer.step()
        ends.append((model.x.detach().clone(), center.pull(), center.exchanges))
        center.close()
    assert ends[0][2] == ends[1][2] == 7
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])


def test_diloco_with_one_fragment_and_no_mixing_is_diloco_to_the_bit() -> None:
    plain, streaming = (trained(rule, 2, 40, period=4, lr=0.03) for rule in (hooke.DiLoCo(), hooke.DiLoCo(mixing=0.0)))
    assert all(torch.equal(a, b) for a, b in zip(plain, streaming, strict=True))


@pytest.mark.parametrize("fragments", [1, 3, 4])
def test_one_worker_alone_is_plain_sgd_whatever_its_fragments(fragments: int) -> None:
    ours = trained(hooke.LocalSGD(), 1, 40, period=4, fragments=fragments, lr=0.03)
    for a, b in zip(ours, trained(None, 1, 40, lr=0.03), strict=True):
        torch.testing.assert_close(a, b)
