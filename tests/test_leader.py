"""LSGD: who leads, where the center is, and what the others do."""

from __future__ import annotations

import re
from contextlib import ExitStack, closing, suppress
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import ETA, Quadratic, flat
from test_replicated import gradient, on_ranks
from torch import Tensor

import hooke
from hooke.leader import LSGD

STEPS = 100


def loss(worker: int, x: np.ndarray) -> float:
    problem = Quadratic(11, worker, torch.float64)
    away = x - problem.b.numpy()
    return float(away @ problem.A.numpy() @ away / 2)


def step(worker: hooke.Worker) -> None:
    """The user's loop: the loss is recorded where it is known."""
    worker.optimizer.zero_grad()
    value = worker.model()
    value.backward()
    worker.record(loss=value.item())
    worker.optimizer.step()


def train(p: int, tau: int, rule: hooke.Rule, steps: int = STEPS) -> tuple[list[np.ndarray], np.ndarray]:
    """p workers of one LocalCenter, one after the other."""
    with ExitStack() as stack:
        first = stack.enter_context(closing(hooke.LocalCenter()))
        workers = []
        for index in range(p):
            center = stack.enter_context(closing(hooke.LocalCenter(first.path)))
            model = Quadratic(11, index)
            optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
            worker = hooke.Worker(model, optimizer, rule, center=center, communication_period=tau)
            workers.append(stack.enter_context(worker))
        for _ in range(steps):
            for worker in workers:
                step(worker)
        return [flat(worker.model) for worker in workers], first.pull()[:11].double().numpy()


def assert_equal(got: tuple, expected: tuple) -> None:
    for ours, theirs in zip([*got[0], got[1]], [*expected[0], expected[1]], strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("tau", [1, 4, 16])
def test_one_by_one_equals_the_reference(tau: int, p: int) -> None:
    settings: dict[str, Any] = {"p": p, "eta": ETA, "tau": tau, "steps": STEPS, "pull": 0.3, "loss": loss}
    expected = reference.lsgd_asynchronous(flat(Quadratic(11, 0)), gradient, **settings)
    assert_equal(train(p, tau, LSGD(pull=0.3)), expected)


def train_rank(rank: int, taus: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = []
    for tau in taus:
        model, center = Quadratic(11, rank), hooke.ReplicatedCenter()
        optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
        with hooke.Worker(model, optimizer, LSGD(), center=center, communication_period=tau) as worker:
            for _ in range(STEPS):
                step(worker)
            ends.append((flat(model), center.pull()[:11].double().numpy()))
    return ends


def test_all_at_once_equals_the_reference(tmp_path: Any) -> None:
    taus = [1, 4]
    got = on_ranks(3, tmp_path, train_rank, taus)
    for index, tau in enumerate(taus):
        settings: dict[str, Any] = {"p": 3, "eta": ETA, "tau": tau, "steps": STEPS, "pull": 0.1, "loss": loss}
        workers, leader = reference.lsgd(flat(Quadratic(11, 0)), gradient, **settings)
        assert_equal(([ends[index][0] for ends in got], got[0][index][1]), (workers, leader))
        assert len({ends[index][1].tobytes() for ends in got}) == 1


def test_one_worker_is_its_own_leader_and_trains_as_if_alone() -> None:
    x = flat(Quadratic(11, 0))
    for _ in range(STEPS):
        x = x - ETA * gradient(0, x)
    assert_equal(train(1, 4, LSGD()), ([x], x))
    assert_equal(train(1, 4, hooke.Averaged(LSGD())), ([x], x))


# Who leads -------------------------------------------------------------------------------------------------------


def exchanged(center: hooke.LocalCenter, value: float) -> float:
    """Where a worker at `value` goes, all of the way to its leader."""
    x = torch.full((4,), value)
    center.exchange_(x, LSGD(pull=1.0))
    return x[0].item()


@pytest.fixture
def three() -> Any:
    with ExitStack() as stack:
        first = stack.enter_context(closing(hooke.LocalCenter()))
        centers = [first, *(stack.enter_context(closing(hooke.LocalCenter(first.path))) for _ in range(2))]
        for center in centers:
            center.join(torch.zeros(4), hooke.CenterSpec((), 4))
        yield centers


def test_the_lowest_loss_leads_and_the_center_is_where_its_worker_is(three: list) -> None:
    for center, told in zip(three, (0.5, 0.1, 0.3), strict=True):
        center.report(told)
    assert exchanged(three[0], 1.0) == 0.0  # the leader has not come yet
    assert exchanged(three[1], 2.0) == 2.0
    assert [exchanged(three[0], 1.0), exchanged(three[2], 3.0)] == [2.0, 2.0]
    three[2].report(0.05)
    assert exchanged(three[2], 3.0) == exchanged(three[1], 2.0) == 3.0


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_a_loss_that_is_not_finite_never_leads(three: list, bad: float) -> None:
    three[0].report(bad)
    assert exchanged(three[0], 1.0) == 0.0
    three[1].report(7.0)
    assert exchanged(three[1], 2.0) == 2.0
    assert exchanged(three[0], 1.0) == 2.0


def test_a_worker_that_has_left_leads_no_more(three: list) -> None:
    three[0].report(0.1)
    three[1].report(0.2)
    assert exchanged(three[1], 2.0) == 0.0
    three[0].leave()
    assert exchanged(three[1], 2.0) == 2.0
    three[0].join(torch.zeros(4), hooke.CenterSpec((), 4))
    assert exchanged(three[1], 3.0) == 3.0  # who joins has told nothing yet


def nan_on_rank_0(rank: int) -> list[float]:
    center = hooke.ReplicatedCenter()
    center.join(torch.zeros(2), hooke.CenterSpec((), 2))
    center.report([0.1, 0.3, 0.2][rank])
    x = torch.full((2,), float("nan") if rank == 0 else float(rank))
    with suppress(hooke.Refused):
        center.exchange_(x, LSGD(pull=1.0))
    return [center.pull()[0].item(), x[0].item()]


def test_a_rank_that_is_refused_does_not_lead(tmp_path: Any) -> None:
    ends = on_ranks(3, tmp_path, nan_on_rank_0)
    assert [one[0] for one in ends] == [2.0] * 3
    assert ends[1] == ends[2] == [2.0, 2.0]


# What it needs ---------------------------------------------------------------------------------------------------


def made(**options: Any) -> hooke.Worker:
    model = Quadratic(11, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    return hooke.Worker(model, optimizer, LSGD(), center=hooke.LocalCenter(), **options)


def test_without_losses_there_is_a_sentence_and_not_a_center_that_stands_still() -> None:
    sentence = (
        "Worker: LSGD needs this worker's training loss. Got none up to its second exchange. Call "
        "worker.record(loss=loss.item()) at each step."
    )
    with made(communication_period=2) as worker:
        for _ in range(3):
            worker.optimizer.step()
        with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
            worker.optimizer.step()


def test_the_mean_since_the_last_exchange_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(hooke.LocalCenter, "report", lambda self, value: told.append(value))
    with made(communication_period=2) as worker:
        for value in (1.0, 3.0, 5.0, 6.0):
            worker.record(loss=value)
            worker.record(of="center", loss=100.0)
            worker.optimizer.step()
        worker.record(loss=9.0)
        state = worker.state_dict()
    assert told == [2.0, 5.5]
    with made(communication_period=2) as worker:
        worker.load_state_dict(state)
        worker.record(loss=10.0)
        worker.exchange()
    assert told == [2.0, 5.5, 9.5]


@pytest.mark.parametrize("pull", [0.0, -0.1, 1.1, float("nan")])
def test_a_wrong_pull_gets_a_sentence(pull: float) -> None:
    sentence = f"LSGD: pull must be in (0, 1]. Got {pull}. Use the authors' pull=0.1."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        LSGD(pull=pull)


def test_fragments_are_refused() -> None:
    sentence = "Worker: fragments must be 1 beside LSGD, or the center would be a patchwork of leaders. Got 2. Drop it."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        made(fragments=2)


def test_in_place_gives_what_delta_and_settle_give() -> None:
    for leads in (True, False):
        rule, x, c = LSGD(pull=0.3).leading(leads), torch.randn(9), torch.randn(9)
        delta: Tensor = rule.delta(x, c, ())
        expected_c = c + delta
        expected_x = x - rule.settle(x, delta, expected_c, ())
        rule.exchange_(x, c, (), None)
        assert torch.equal(x, expected_x) and torch.equal(c, expected_c)
