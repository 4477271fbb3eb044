"""Theory as oracle: on f(x) = h x^2 / 2 one round of exchanges is a linear map, stable exactly where the papers say.

The borders are those of `hooke.stability`; here the rules themselves, then workers and a center, must keep to them. The
map is read off by starting from unit vectors: rules are elementwise, so entry k of every flat vector is the trajectory
that starts from the k-th unit vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hooke
from hooke.rule import EASGD, Downpour, LocalSGD, Rule
from hooke.stability import beta_border, moving_rate_border, stability_of

pytestmark = pytest.mark.filterwarnings("ignore:Worker. the run must stay in its stable region")  # some leave it

ETAS = [0.01, 0.1, 0.5, 1.0, 1.5, 1.9, 2.0]


def spectral_radius(state: list[Tensor]) -> float:
    return float(np.abs(np.linalg.eigvals(torch.stack(state).double().numpy())).max())


def unit_state(p: int) -> list[Tensor]:
    """p workers and, last, the center."""
    return list(torch.eye(p + 1, dtype=torch.float64))


def pure_round_robin(p: int, eta: float, alpha: float) -> float:
    """Radius of one round: each worker in turn takes its step and exchanges."""
    rule = EASGD(moving_rate=alpha)
    *workers, center = unit_state(p)
    for i, x in enumerate(workers):
        gradient, out = x.clone(), torch.empty_like(x)
        rule.exchange_(x, center, (), out)
        workers[i] = x - eta * gradient - out
    return spectral_radius([*workers, center])


def pure_synchronous(p: int, eta_h: float, beta: float) -> float:
    rule = EASGD(moving_rate=beta / p)
    *workers, center = unit_state(p)
    deltas = [rule.delta(x, center, ()) for x in workers]
    center = center + sum(deltas)
    workers = [x - eta_h * x - rule.settle(x, d, center, ()) for x, d in zip(workers, deltas, strict=True)]
    return spectral_radius([*workers, center])


@pytest.mark.parametrize("p", [1, 3, 5])
@pytest.mark.parametrize("eta", ETAS)
def test_round_robin_easgd_is_stable_exactly_up_to_the_border(eta: float, p: int) -> None:
    border = moving_rate_border(eta)
    for share in (0.01, 0.5, 0.9, 1 - 1e-6):
        if share * border > 0:
            assert pure_round_robin(p, eta, share * border) < 1
    if border > 0:
        assert pure_round_robin(p, eta, border) == pytest.approx(1, abs=1e-9)
    for beyond in (border + 1e-6, border + 0.01, 1.0):
        if border < beyond <= 1:
            assert pure_round_robin(p, eta, beyond) > 1


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("eta", ETAS[1:-1])
def test_inside_the_border_any_number_of_workers_is_stable(eta: float, p: int) -> None:
    """An even number of reflections at the border is a rotation: the border itself may lie a little further out."""
    border = moving_rate_border(eta)
    assert all(pure_round_robin(p, eta, share * border) < 1 for share in (0.01, 0.5, 0.9, 1.0))
    assert pure_round_robin(p, eta, 1.0) > 1


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_no_moving_rate_saves_a_learning_rate_beyond_2(p: int) -> None:
    assert all(pure_round_robin(p, 2.05, alpha) > 1 for alpha in (0.001, 0.01, 0.1, 0.5, 1.0))


@pytest.mark.parametrize("p", [1, 2, 4, 16])
@pytest.mark.parametrize("eta_h", ETAS[:-1])
def test_synchronous_easgd_is_stable_exactly_up_to_the_border(eta_h: float, p: int) -> None:
    border = min(beta_border(eta_h, p), 2.0)
    assert all(pure_synchronous(p, eta_h, share * border) < 1 for share in (0.01, 0.5, 0.9, 1 - 1e-6))
    for beyond in (beta_border(eta_h, p) * (1 + 1e-6), 2.0):
        if beta_border(eta_h, p) < beyond <= p:  # alpha is at most 1
            assert pure_synchronous(p, eta_h, beyond) > 1


# Through the public Worker and LocalCenter ----------------------------------------------------------------------


class Bowl(nn.Module):
    """h |x|^2 / 2."""

    def __init__(self, x: Tensor, h: float = 1.0) -> None:
        super().__init__()
        self.x, self.h = nn.Parameter(x.clone().float()), h

    def forward(self) -> Tensor:
        return self.h * self.x.square().sum() / 2


@contextmanager
def working(start: Tensor, p: int, rule: Rule, lr: float, period: int) -> Iterator[tuple]:
    """p workers in one process; gives their models, their step functions and the center."""
    first = hooke.LocalCenter()
    with ExitStack() as stack:
        stack.callback(first.close)
        models, steps = [], []
        for index in range(p):
            center = first if index == 0 else hooke.LocalCenter(first.path)
            stack.callback(center.close)
            model = Bowl(start)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            stack.enter_context(hooke.Worker(model, optimizer, rule, center=center, communication_period=period))

            def step(model: Bowl = model, optimizer: torch.optim.SGD = optimizer) -> None:
                optimizer.zero_grad()
                model().backward()
                optimizer.step()

            models.append(model)
            steps.append(step)
        yield models, steps, first


def radius_through_workers(p: int, eta: float, alpha: float) -> float:
    *workers, center = (row.float() for row in unit_state(p))
    with working(center, p, EASGD(moving_rate=alpha), eta, 1) as (models, steps, shared):
        held = shared.pull()
        held[: p + 1] = center
        shared.put(held)
        for model, x in zip(models, workers, strict=True):
            model.x.data.copy_(x)
        for step in steps:
            step()
        return spectral_radius([*(model.x.detach() for model in models), shared.pull()[: p + 1]])


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0, 1.5, 1.9])
def test_the_border_holds_through_workers_and_a_center(eta: float, p: int) -> None:
    border = moving_rate_border(eta)
    assert radius_through_workers(p, eta, 0.99 * border) < 1 - 1e-5
    assert radius_through_workers(p, eta, border) == pytest.approx(1, abs=1e-5)
    assert radius_through_workers(p, eta, min(1.0, 1.02 * border)) > 1 + 1e-5


def center_after(rule: Rule, tau: int, exchanges: int, *, p: int = 4, eta_h: float = 0.05) -> float:
    """Largest |x~| in the last half of so many exchanges of every worker, from 1 (it may swing while it grows)."""
    with working(torch.ones(1), p, rule, 0.1, tau) as (models, steps, shared):
        for model in models:
            model.h = eta_h / 0.1
        seen = []
        for _ in range(tau * exchanges):
            for step in steps:
                step()
            seen.append(abs(float(shared.pull()[0])))
        return max(seen[len(seen) // 2 :])


@pytest.mark.parametrize("tau", [1, 4, 16, 64])
def test_easgd_contracts_where_downpour_diverges(tau: int) -> None:
    """The paper's Figure 2 in two lines: p = 4, eta h = 0.05, workers one after the other."""
    exchanges = {1: 160, 4: 60, 16: 40, 64: 15}[tau]
    assert center_after(EASGD(beta=0.9), tau, exchanges) < 0.1
    downpour = center_after(Downpour(), tau, exchanges)
    assert downpour < 0.1 if tau <= 4 else downpour > 100
    setting = {"lr": 0.1, "curvature": 0.5, "num_workers": 4, "communication_period": tau}
    assert stability_of(EASGD(beta=0.9), **setting).is_stable
    assert stability_of(Downpour(), **setting).is_stable == (tau <= 4)


@pytest.mark.parametrize("tau", [1, 4, 16, 64])
def test_synchronous_downpour_diverges_as_its_factor_says(tau: int) -> None:
    p, eta_h = 4, 0.05
    said = stability_of(
        Downpour(), lr=0.1, curvature=eta_h / 0.1, num_workers=p, communication_period=tau, synchronous=True
    )
    rule, center = Downpour(), torch.ones(1, dtype=torch.float64)
    for _ in range(20):
        states = [rule.init(center) for _ in range(p)]
        ways = [center * (1 - eta_h) ** tau for _ in range(p)]
        deltas = [rule.delta(x, center, state) for x, state in zip(ways, states, strict=True)]
        center = center + sum(deltas)
        for x, delta, state in zip(ways, deltas, states, strict=True):
            torch.testing.assert_close(x - rule.settle(x, delta, center, state), center)
    assert abs(float(center)) == pytest.approx(said.radius**20, rel=1e-9)
    assert (abs(float(center)) < 1) == said.is_stable == (tau in (1, 4))


@pytest.mark.parametrize("tau", [1, 4, 16, 64])
def test_synchronous_easgd_contracts_at_every_period(tau: int) -> None:
    p, eta_h, rule = 4, 0.05, EASGD(beta=0.9).bind(4)
    center = torch.ones(1, dtype=torch.float64)
    workers = [center.clone() for _ in range(p)]
    for step in range(tau * 60):
        pulls = [torch.zeros(1, dtype=torch.float64)] * p
        if step % tau == 0:
            pulls = [rule.delta(x, center, ()) for x in workers]
            center = center + sum(pulls)
        workers = [x - eta_h * x - pull for x, pull in zip(workers, pulls, strict=True)]
    assert abs(float(center)) < 0.1


@pytest.mark.parametrize("rule", [EASGD(), EASGD(moving_rate=0.9), EASGD(order="gauss-seidel"), Downpour(), LocalSGD()])
def test_what_is_called_stable_is_so_with_workers_and_a_center(rule: Rule) -> None:
    called = []
    for p, tau, eta_h in itertools.product((1, 3), (1, 16), (0.05, 0.5, 0.95, 1.4, 2.1)):
        said = stability_of(rule, lr=0.1, curvature=eta_h / 0.1, num_workers=p, communication_period=tau)
        if said.is_stable:
            assert center_after(rule, tau, max(10, 100 // tau), p=p, eta_h=eta_h) < 1
        called.append(said.is_stable)
    assert 1 < sum(called) < len(called)
