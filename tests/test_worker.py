"""The Worker around a user's own model, optimizer and loop: when it exchanges, and what it leaves alone."""

from __future__ import annotations

import copy
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import FORK, RULES, network, network_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hooke.center import LocalCenter
from hooke.checkpoint import load_state, save_state
from hooke.outer import AsyncDiLoCo, DiLoCo
from hooke.record import read
from hooke.rule import EAMSGD, EASGD, Downpour, LocalSGD, Rule
from hooke.run import Run
from hooke.worker import Worker

ALPHA = 0.25


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def nesterov(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return sgd(model, momentum=0.9, nesterov=True, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """The user's own loop; batches depend on `seed` and on the step of this call only."""
    for step in range(steps):
        optimizer.zero_grad()
        network_loss(model, 100 * seed + step).backward()
        optimizer.step()


def values_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


def held_by(center: LocalCenter) -> Tensor:
    """The center's parameters, as `values_of` has them."""
    vector = center.pull()
    entries = [entry for entry in center.spec.entries if entry.kind == "parameter"]
    return torch.cat([entry.view(vector).double().reshape(-1) for entry in entries])


@contextmanager
def onlooker(center: LocalCenter) -> Iterator[Callable[[Tensor], None]]:
    """Another worker of the center, which pushes whatever vector it is given halfway into it."""
    other = LocalCenter(center.path)
    other.join(torch.zeros(center.spec.numel), center.spec)

    def push(x: Tensor) -> None:
        other.exchange(x, EASGD(moving_rate=0.5))

    yield push
    other.close()


def worker_of(center: LocalCenter, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Worker]:
    model = network()
    optimizer = sgd(model)
    return model, optimizer, Worker(model, optimizer, EASGD(moving_rate=ALPHA), center=center, **options)


# When it exchanges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"), [("jacobi", [1, 1, 1, 2, 2, 2, 3]), ("gauss-seidel", [0, 0, 1, 1, 1, 2, 2])]
)
def test_it_exchanges_whenever_the_period_divides_its_steps(
    center: LocalCenter, order: Any, expected: list[int]
) -> None:
    model = network()
    optimizer, seen = sgd(model), []
    with Worker(model, optimizer, EASGD(order=order), center=center, communication_period=3) as worker:
        for step in range(7):
            train(model, optimizer, 1, seed=step)
            seen.append(center.exchanges)
            assert center.members()[0].step == worker.steps == step + 1
    assert seen == expected


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_exchange_at_step_0_changes_nothing(center: LocalCenter, momentum: float) -> None:
    model, plain = network(), network()
    rule = EAMSGD(moving_rate=ALPHA) if momentum else EASGD(moving_rate=ALPHA)
    optimizer = sgd(model, momentum=momentum, nesterov=bool(momentum))
    with Worker(model, optimizer, rule, center=center):
        train(model, optimizer, 1)
        assert center.exchanges == 1
        assert torch.equal(held_by(center), values_of(plain))
    train(plain, sgd(plain, momentum=momentum, nesterov=bool(momentum)), 1)
    assert torch.equal(values_of(model), values_of(plain))


def test_a_later_worker_starts_from_the_center(center: LocalCenter) -> None:
    first, second = network(0), network(1)
    with Worker(first, sgd(first), EASGD(), center=center):
        with Worker(second, sgd(second), EASGD(), center=LocalCenter(center.path)):
            assert torch.equal(values_of(second), values_of(first))
            assert center.num_workers == 2
        assert center.num_workers == 1


def test_exchange_happens_at_once_whatever_the_period_says(center: LocalCenter) -> None:
    model, optimizer, worker = worker_of(center, communication_period=1000)
    with worker:
        train(model, optimizer, 5)
        x, c = values_of(model), held_by(center)
        worker.exchange()
        torch.testing.assert_close(values_of(model), x - ALPHA * (x - c), rtol=0, atol=1e-6)
        torch.testing.assert_close(held_by(center), c + ALPHA * (x - c), rtol=0, atol=1e-6)
        assert (center.exchanges, worker.steps) == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_pull_goes_to_the_center_as_it_was_told_and_counts_as_a_step(center: LocalCenter, dtype: torch.dtype) -> None:
    model = batch_normed(dtype)
    with Worker(model, sgd(model), LocalSGD(2), center=center, communication_period=2) as worker:
        told, start = held_by(center), statistics(model) + 3
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(2.0)
            model[1].running_mean.add_(3.0)
        center.put(center.pull() + 100)  # of this it has not been told
        worker.pull_(0.25)
        assert (worker.steps, center.exchanges) == (1, 0)
        torch.testing.assert_close(values_of(model), told + 1.5, rtol=0, atol=0.02)
        assert torch.equal(statistics(model)[: len(start) // 2], start[: len(start) // 2])
        worker.pull_(1.0)  # the exchange is due
        assert (worker.steps, center.exchanges) == (2, 1)
        torch.testing.assert_close(values_of(model), held_by(center), rtol=0, atol=1.0)


def test_what_can_not_be_pulled_gets_a_sentence(center: LocalCenter) -> None:
    _, _, worker = worker_of(center)
    memory = "Worker: pull_() needs a rule that goes on from the center. Got EASGD(beta=None, moving_rate=0.25, "
    rate = "Worker: rate of pull_ must be in (0, 1]. Got {}. Lower lr * eta / probability."
    with worker:
        for bad in (0.0, 1.5, math.nan):
            with pytest.raises(ValueError, match=f"^{re.escape(rate.format(bad))}$"):
                worker.pull_(bad)
        with pytest.raises(ValueError, match=f"^{re.escape(memory)}"):
            worker.pull_(0.1)
        assert worker.steps == 0


def test_exchange_pulls_the_plain_point_of_eamsgd(center: LocalCenter) -> None:
    model = network()
    optimizer = nesterov(model)
    with Worker(model, optimizer, EAMSGD(moving_rate=ALPHA), center=center, communication_period=1000) as worker:
        train(model, optimizer, 5)
        ahead = values_of(model)
        velocity = torch.cat([optimizer.state[p]["momentum_buffer"].reshape(-1).double() for p in model.parameters()])
        plain, c = ahead + 0.1 * 0.9 * velocity, held_by(center)
        worker.exchange()
        torch.testing.assert_close(values_of(model), ahead - ALPHA * (plain - c), rtol=0, atol=1e-6)
        torch.testing.assert_close(held_by(center), c + ALPHA * (plain - c), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pull", ["exchange", "every_step"])
def test_exchange_does_both_halves_where_they_have_periods_of_their_own(center: LocalCenter, pull: Any) -> None:
    model, optimizer, worker = worker_of(center, collect_period=1000, delivery_period=999, pull=pull)
    with worker:
        train(model, optimizer, 3)
        x, c = values_of(model), held_by(center)
        worker.exchange()
        torch.testing.assert_close(values_of(model), x - ALPHA * (x - c), rtol=0, atol=1e-6)
        torch.testing.assert_close(held_by(center), c + ALPHA * (x - c), rtol=0, atol=1e-6)


# Any optimizer ---------------------------------------------------------------------------------------------------


class Lion(torch.optim.Optimizer):
    """A user's own optimizer: sign of an interpolated momentum, decoupled decay."""

    def __init__(self, parameters: Any, lr: float = 1e-2, decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["decay"]).sub_((0.9 * momentum + 0.1 * p.grad).sign(), alpha=group["lr"])
                momentum.lerp_(p.grad, 0.01)


def by_groups(model: nn.Module) -> torch.optim.Optimizer:
    weights, biases = ([p for p in model.parameters() if (p.dim() == 1) == flag] for flag in (False, True))
    return torch.optim.SGD([{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.5}], lr=0.1)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": sgd,
    "SGD with heavy ball": lambda model: sgd(model, momentum=0.9),
    "SGD with decay": lambda model: sgd(model, weight_decay=0.1),
    "SGD foreach": lambda model: sgd(model, foreach=True),
    "SGD fused": lambda model: sgd(model, fused=True),
    "SGD maximize": lambda model: sgd(model, maximize=True, lr=0.01),
    "SGD in groups": by_groups,
    "Adam": lambda model: torch.optim.Adam(model.parameters()),
    "Adam with a tensor as rate": lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-2)),
    "AdamW foreach": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "AdamW fused": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters()),
    "a user's own": lambda model: Lion(model.parameters()),
}


class ByHand:
    """A loop without hooke: d = alpha (x - c) before the step, subtracted after it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.x = list({p.data_ptr(): p for p in model.parameters()}.values())
        self.c = [p.detach().clone() for p in self.x]

    def step(self, seed: int, due: bool) -> None:
        self.optimizer.zero_grad()
        network_loss(self.model, 100 * seed).backward()
        pulls = [ALPHA * (x.detach() - c) * due for x, c in zip(self.x, self.c, strict=True)]
        self.optimizer.step()
        for x, c, pull in zip(self.x, self.c, pulls, strict=True):
            x.data -= pull
            c += pull

    def center(self) -> Tensor:
        return torch.cat([c.double().reshape(-1) for c in self.c])


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_steps_from_the_point_before_the_pull(
    center: LocalCenter, name: str, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooke.exchange.ThreadPoolExecutor", AtOnce)
    model, twin = network(), network()
    optimizer, by_hand = OPTIMIZERS[name](model), ByHand(twin, OPTIMIZERS[name](twin))
    rule = EASGD(moving_rate=ALPHA)
    with Worker(model, optimizer, rule, center=center, communication_period=3, overlap=overlap):
        for step in range(20):
            train(model, optimizer, 1, seed=step)
            by_hand.step(step, due=step % 3 == 0)
        torch.testing.assert_close(values_of(model), values_of(twin), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(held_by(center), by_hand.center(), rtol=1e-5, atol=1e-5)


class AtOnce:
    """A thread that has always finished: what is submitted runs at once."""

    def __init__(self, *args: object) -> None:
        pass

    def submit(self, function: Callable, *args: object) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize("passed", ["by position", "by name"])
@pytest.mark.parametrize("make", [sgd, lambda model: torch.optim.LBFGS(model.parameters(), max_iter=3)])
def test_a_closure_sees_the_point_before_the_pull(center: LocalCenter, make: Callable, passed: str) -> None:
    model, optimizer = network(), None
    optimizer = make(model)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(values_of(model))
        optimizer.zero_grad()
        loss = network_loss(model, 0)
        loss.backward()
        return loss

    with Worker(model, optimizer, EASGD(moving_rate=ALPHA), center=center, communication_period=1):
        for _ in range(3):
            x, c, calls = values_of(model), held_by(center), len(seen)
            loss = optimizer.step(closure) if passed == "by position" else optimizer.step(closure=closure)
            assert torch.equal(seen[calls], x)
            assert loss.isfinite()
            torch.testing.assert_close(held_by(center), c + ALPHA * (x - c), rtol=0, atol=1e-6)
    assert len(seen) >= 3


def test_a_step_that_raises_loses_nothing(center: LocalCenter) -> None:
    """The center has absorbed before the closure fails: the correction is still owed, and subtracted."""
    model, optimizer, worker = worker_of(center, communication_period=1)

    def fails() -> Tensor:
        raise KeyError("no batch")

    with worker, onlooker(center) as push:
        push(torch.ones(center.spec.numel))
        total = values_of(model) + held_by(center)
        for _ in range(3):
            with pytest.raises(KeyError):
                optimizer.step(fails)
        worker.exchange()
        torch.testing.assert_close(values_of(model) + held_by(center), total, rtol=0, atol=1e-5)


def test_eamsgd_uses_the_rate_that_made_the_look_ahead(center: LocalCenter) -> None:
    """Under a schedule the next rate is another one; transcribed by hand, with a momentum of its own a group."""
    model = network()
    first, rest = list(model.parameters())[:1], list(model.parameters())[1:]
    groups = [{"params": first, "momentum": 0.5}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    twin = network()
    p = [q.detach().clone() for q in twin.parameters()]
    v, c = [torch.zeros_like(q) for q in p], [q.clone() for q in p]
    delta, used, rate = [0.5, *[0.9] * (len(p) - 1)], 0.0, 0.2
    with Worker(model, optimizer, EAMSGD(moving_rate=ALPHA), center=center, communication_period=2):
        for step in range(12):
            train(model, optimizer, 1, seed=step)
            schedule.step()
            nn.utils.vector_to_parameters(torch.cat([q.reshape(-1) for q in p]), twin.parameters())
            g = torch.autograd.grad(network_loss(twin, 100 * step), list(twin.parameters()))
            for i in range(len(p)):
                plain = p[i] + used * delta[i] * v[i]
                pull = ALPHA * (plain - c[i]) if step % 2 == 0 else torch.zeros_like(plain)
                v[i] = delta[i] * v[i] + g[i]
                p[i] = p[i] - rate * (g[i] + delta[i] * v[i]) - pull
                c[i] = c[i] + pull
            used, rate = rate, 0.7 * rate
        torch.testing.assert_close(values_of(model), torch.cat([q.reshape(-1) for q in p]).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(held_by(center), torch.cat([q.reshape(-1) for q in c]).double(), rtol=0, atol=1e-5)


def test_a_parameter_group_may_be_added_while_training(center: LocalCenter) -> None:
    model = network()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters[:2], lr=0.1, momentum=0.9, nesterov=True)
    with Worker(model, optimizer, EAMSGD(moving_rate=ALPHA), center=center, communication_period=1):
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": parameters[2:]})
        train(model, optimizer, 3)
        assert center.exchanges == 5
    assert values_of(model).isfinite().all()


def test_a_step_that_the_grad_scaler_skips_is_no_step(center: LocalCenter) -> None:
    model, optimizer, worker = worker_of(center, communication_period=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    taken = []
    with worker:
        for overflows in (False, True, False, True, False):
            optimizer.zero_grad()
            loss = network_loss(model, 0) * (torch.inf if overflows else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            taken.append(worker.steps)
            assert values_of(model).isfinite().all()
        assert taken == [1, 1, 2, 2, 3]
        assert (center.exchanges, center.members()[0].refused) == (3, 0)


def test_autocast_and_a_fused_optimizer_with_a_scaler_train(center: LocalCenter) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    before = network_loss(model, 0).item()
    with Worker(model, optimizer, EASGD(), center=center, communication_period=2) as worker:
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = network_loss(model, 0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        with worker.center_weights():
            assert network_loss(model, 0).item() < before - 0.1


# It leaves the user's objects as it found them -------------------------------------------------------------------


def hooks_of(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    return len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)


def owns_its_memory(model: nn.Module) -> bool:
    return all(p.untyped_storage().nbytes() == p.element_size() * p.numel() for p in model.parameters())


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("raises", [False, True])
def test_leaving_the_block_removes_every_trace(center: LocalCenter, overlap: bool, raises: bool) -> None:
    model, optimizer, worker = worker_of(center, overlap=overlap, communication_period=2)
    before, objects, keys = set(threading.enumerate()), [id(p) for p in model.parameters()], set(vars(model))
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(KeyError) if raises else ExitStack())
        with worker:
            assert hooks_of(optimizer) == (1, 1)
            assert not owns_its_memory(model)
            train(model, optimizer, 5)
            if raises:
                raise KeyError
    assert hooks_of(optimizer) == (0, 0)
    assert owns_its_memory(model)
    assert ([id(p) for p in model.parameters()], set(vars(model))) == (objects, keys)
    assert not set(threading.enumerate()) - before  # those of other tests may end meanwhile
    assert center.num_workers == 0
    plain = network()
    plain.load_state_dict(model.state_dict())
    train(model, optimizer, 3)
    train(plain, sgd(plain), 3)
    assert torch.equal(values_of(model), values_of(plain))
    assert worker.steps == 5


@pytest.mark.parametrize("raises", [False, True])
def test_only_a_worker_that_was_not_cut_off_has_finished(center: LocalCenter, raises: bool) -> None:
    _, _, worker = worker_of(center)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(KeyError) if raises else ExitStack())
        with worker:
            other = LocalCenter(center.path)
            other.join(torch.zeros(center.spec.numel), center.spec)
            if raises:
                raise KeyError
    assert (other.num_workers, other.counted_workers) == (1, 1 if raises else 2)
    other.close()


class Breaks(LocalCenter):
    """A center whose exchange fails in a way that nobody has foreseen."""

    def exchanging(self, *args: object, **place: object) -> Iterator[slice]:
        raise ZeroDivisionError


def test_even_a_center_that_breaks_leaves_no_trace() -> None:
    center = Breaks()
    model, optimizer, worker = worker_of(center, overlap=True)
    with pytest.raises(ZeroDivisionError), worker:
        network_loss(model, 0).backward()
        worker.exchange()
    assert hooks_of(optimizer) == (0, 0)
    assert owns_its_memory(model)
    assert center.num_workers == 0
    center.close()


def test_a_worker_that_is_refused_leaves_the_model_alone(center: LocalCenter) -> None:
    _, _, worker = worker_of(center)
    other = nn.Linear(2, 2)
    with worker:
        refused = Worker(other, sgd(other), EASGD(), center=LocalCenter(center.path))
        with pytest.raises(ValueError, match="same model"):
            refused.start()
        assert owns_its_memory(other)
        assert hooks_of(refused.optimizer) == (0, 0)
        assert center.num_workers == 1


def test_a_worker_can_be_started_again_and_counts_on(center: LocalCenter) -> None:
    model, optimizer, worker = worker_of(center, communication_period=1)
    for rounds in (1, 2):
        with worker:
            train(model, optimizer, 3)
        assert worker.steps == 3 * rounds
        worker.stop()
    with worker, pytest.raises(RuntimeError, match=r"^Worker: start\(\) comes once\."):
        worker.start()
    assert hooks_of(optimizer) == (0, 0)


def test_gradients_and_frozen_parameters_and_local_state_are_not_touched(center: LocalCenter) -> None:
    model = network()
    model[0].requires_grad_(False)
    before, mode = model[0].weight.clone(), model.training
    optimizer = sgd(model)
    with Worker(model, optimizer, EASGD(moving_rate=ALPHA), center=center, communication_period=1) as worker:
        train(model, optimizer, 4)
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        worker.exchange()
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            assert (p.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(p.grad, gradient)
        assert [entry.name for entry in center.spec.entries] == ["2.weight", "2.bias"]
    assert torch.equal(model[0].weight, before)
    assert model.training == mode


def test_an_optimizer_may_hold_a_part_of_the_model_only(center: LocalCenter) -> None:
    model = network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9, nesterov=True)
    with Worker(model, optimizer, EAMSGD(), center=center, communication_period=1):
        train(model, optimizer, 3)
        assert len(center.spec.entries) == 4


# Overlap ---------------------------------------------------------------------------------------------------------


class Slow(LocalCenter):
    """A center that takes as long as it is told."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        self.may_go, self.came = threading.Event(), threading.Event()

    def exchanging(self, *args: Any, **place: Any) -> Iterator[slice]:
        self.came.set()
        assert self.may_go.wait(30)
        return super().exchanging(*args, **place)


@pytest.fixture
def slow() -> Iterator[Slow]:
    center = Slow()
    yield center
    center.close()


def wait_until_done(worker: Worker) -> None:
    under_way = worker._exchange._under_way  # type: ignore[attr-defined]
    under_way.exception(timeout=30)


def test_the_correction_is_subtracted_after_the_first_step_that_finds_it(slow: Slow) -> None:
    """x goes on meanwhile; what is subtracted belongs to the point where the exchange began."""
    model, optimizer, worker = worker_of(slow, overlap=True, communication_period=3)
    with worker, onlooker(slow) as push:
        push(torch.ones(slow.spec.numel))
        x, c = values_of(model), held_by(slow)
        expected = copy.deepcopy(model)
        by_hand = sgd(expected)
        for step in range(5):  # it is due at 0 and at 3
            train(model, optimizer, 1, seed=step)
            train(expected, by_hand, 1, seed=step)
            assert torch.equal(values_of(model), values_of(expected))
        assert torch.equal(held_by(slow), c)
        slow.may_go.set()
        wait_until_done(worker)
        torch.testing.assert_close(held_by(slow), c + ALPHA * (x - c), rtol=0, atol=1e-6)
        train(model, optimizer, 1, seed=5)
        train(expected, by_hand, 1, seed=5)
        torch.testing.assert_close(values_of(model), values_of(expected) - ALPHA * (x - c), rtol=0, atol=1e-6)
        assert slow.exchanges == 2  # the onlooker's and one: the one due at step 3 was missed


def test_what_is_under_way_is_finished_at_the_end(slow: Slow) -> None:
    model, optimizer, worker = worker_of(slow, overlap=True, communication_period=1)
    with worker:
        handle = LocalCenter(slow.path)
        handle.put(torch.ones(slow.spec.numel))
        train(model, optimizer, 1)
        x = values_of(model)
        assert slow.came.wait(30)
        threading.Timer(0.05, slow.may_go.set).start()
    started = values_of(network())
    torch.testing.assert_close(values_of(model), x - ALPHA * (started - 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(held_by(handle), 1 + ALPHA * (started - 1), rtol=0, atol=1e-6)
    handle.close()


@pytest.mark.parametrize("rule", [EASGD(moving_rate=ALPHA), EASGD(0.9, order="gauss-seidel")], ids=repr)
def test_overlapped_exchanges_keep_the_sum(center: LocalCenter, rule: Rule) -> None:
    model, optimizer = network(), None
    optimizer = sgd(model, lr=0.0)
    with Worker(model, optimizer, rule, center=center, communication_period=1, overlap=True):
        for parameter in model.parameters():
            parameter.data.add_(1.0)
        total = values_of(model) + held_by(center)
        train(model, optimizer, 50)
    torch.testing.assert_close(values_of(model) + held_by(center), total, rtol=0, atol=1e-5)
    assert (values_of(model) - values_of(network())).max() < 0.9  # and it has been pulled


@pytest.mark.parametrize("looked", [False, True])
def test_overlap_gives_what_waiting_gives_where_the_exchange_is_quick(
    looked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooke.exchange.ThreadPoolExecutor", AtOnce)
    ends = []
    for overlap in (False, True):
        model = network()
        optimizer, rule = nesterov(model), EAMSGD(moving_rate=ALPHA)
        with closing(LocalCenter()) as center:
            options: dict[str, Any] = {"center": center, "communication_period": 3, "overlap": overlap}
            with Worker(model, optimizer, rule, **options) as worker:
                train(model, optimizer, 20)
                if looked:
                    with worker.center_weights():
                        pass
                train(model, optimizer, 5)
                ends.append((values_of(model), held_by(center)))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rule", [Downpour(), LocalSGD()], ids=repr)
def test_one_worker_that_adds_up_its_own_way_is_plain_sgd(center: LocalCenter, rule: Rule, overlap: bool) -> None:
    model, plain = network(), network()
    optimizer, alone = nesterov(model), nesterov(plain)
    with Worker(model, optimizer, rule, center=center, communication_period=2, overlap=overlap) as worker:
        train(model, optimizer, 40)
        train(plain, alone, 40)
        worker.state_dict()  # finishes what is under way
        worker.exchange()
        worker.state_dict()
        torch.testing.assert_close(values_of(model), values_of(plain), rtol=0, atol=1e-5)
        torch.testing.assert_close(held_by(center), values_of(plain), rtol=0, atol=1e-5)


# The center's weights --------------------------------------------------------------------------------------------


def batch_normed(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("buffers", ["average", "local"])
def test_the_centers_weights_are_there_in_the_block_and_the_workers_own_after_it_to_the_bit(
    center: LocalCenter, dtype: torch.dtype, buffers: Any
) -> None:
    model = batch_normed(dtype)
    optimizer = sgd(model, lr=0.05)
    with Worker(
        model, optimizer, EASGD(moving_rate=ALPHA), center=center, communication_period=3, buffers=buffers
    ) as worker:
        train(model, optimizer, 8)
        model.eval()
        own = copy.deepcopy(model.state_dict())
        vector = center.pull()
        with worker.center_weights() as same:
            assert same is model
            for entry in center.spec.entries:
                assert torch.equal(model.state_dict()[entry.name], entry.view(vector).to(dtype))
            assert any(not torch.equal(value, own[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
        with pytest.raises(KeyError), worker.center_weights():
            raise KeyError
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
        assert torch.equal(center.pull(), vector)
        model.train()
        train(model, optimizer, 1)
        assert worker.steps == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_training_does_not_notice_a_look_at_the_center(dtype: torch.dtype) -> None:
    ends = []
    for looks in (False, True):
        model, rule = batch_normed(dtype), EAMSGD(moving_rate=ALPHA)
        optimizer = nesterov(model)
        with closing(LocalCenter()) as center, Worker(model, optimizer, rule, center=center) as worker:
            for step in range(25):
                train(model, optimizer, 1, seed=step)
                if looks:
                    with worker.center_weights():
                        model.eval()(torch.ones(2, 5, dtype=dtype))
                        model.train()
            ends.append((values_of(model), center.pull()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_nothing_but_evaluation_inside_the_centers_weights(center: LocalCenter) -> None:
    """Whatever would take the center's weights for the worker's own is refused, also in a nested block."""
    model, optimizer, worker = worker_of(center)
    verbs: dict[str, Callable[[], Any]] = {
        "optimizer.step()": optimizer.step,
        "exchange()": worker.exchange,
        "state_dict()": worker.state_dict,
        "load_state_dict()": lambda: worker.load_state_dict({}),
        "center_weights()": lambda: worker.center_weights().__enter__(),
        "stop()": worker.stop,
    }
    with worker:
        held = center.pull()
        for verb, call in verbs.items():
            sentence = (
                f"Worker: {verb} needs the worker's own weights. Got a call inside center_weights(). Leave its block "
                "first."
            )
            with worker.center_weights():
                worker.record(of="center", accuracy=0.5)
                for _ in range(2):  # the first refusal must not open the door
                    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
                        call()
        assert worker.steps == 0
        assert torch.equal(center.pull(), held)
        train(model, optimizer, 1)
        assert worker.steps == 1


def test_a_parameter_that_is_trained_but_not_exchanged_is_an_error(center: LocalCenter) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Worker(model, optimizer, EASGD(), center=center, communication_period=1):
        train(model, optimizer, 1)
        model[0].requires_grad_(True)
        with pytest.raises(RuntimeError, match="must update the parameters that were trainable"):
            train(model, optimizer, 1)


class Scheduled(torch.optim.Optimizer):
    """An optimizer that has no single learning rate."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": None})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(0.1 * parameter.grad)


def test_an_optimizer_without_a_learning_rate_of_its_own_works(center: LocalCenter) -> None:
    model = nn.Linear(5, 3)
    optimizer = Scheduled(model.parameters())
    with Worker(model, optimizer, EASGD(), center=center, communication_period=1) as worker:
        train(model, optimizer, 2)
    assert (worker.steps, center.exchanges) == (2, 2)


# Buffers ---------------------------------------------------------------------------------------------------------


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([model[1].running_mean, model[1].running_var])


def test_averaged_buffers_are_pulled_by_the_moving_rate(center: LocalCenter) -> None:
    model, plain = batch_normed(), batch_normed()
    optimizer, rule = sgd(model, lr=0.0), EASGD(moving_rate=ALPHA, order="gauss-seidel")
    with Worker(model, optimizer, rule, center=center, communication_period=1000) as worker:
        began = statistics(model).clone()
        train(model, optimizer, 3)
        train(plain, sgd(plain, lr=0.0), 3)
        assert torch.equal(statistics(model), statistics(plain))
        x = statistics(model).clone()
        worker.exchange()
        torch.testing.assert_close(statistics(model), x - ALPHA * (x - began))
        with worker.center_weights():
            torch.testing.assert_close(statistics(model), began + ALPHA * (x - began))
        assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("rule", [Downpour(), LocalSGD()], ids=repr)
def test_rules_that_add_changes_up_still_average_buffers(center: LocalCenter, rule: Rule) -> None:
    """Four workers' changes of a variance, added up, could leave it negative."""
    model = batch_normed()
    optimizer = sgd(model)
    with (
        Worker(model, optimizer, rule, center=center, communication_period=1000) as worker,
        onlooker(center),
    ):
        train(model, optimizer, 3)
        x, began = statistics(model).clone(), statistics(batch_normed())
        worker.exchange()
        torch.testing.assert_close(statistics(model), (x + began) / 2)
        with worker.center_weights():
            torch.testing.assert_close(statistics(model), (x + began) / 2)


def test_local_buffers_stay_where_they_are(center: LocalCenter) -> None:
    model, plain = batch_normed(), batch_normed()
    optimizer = sgd(model, lr=0.0)
    options: dict[str, Any] = {"center": center, "communication_period": 1, "buffers": "local"}
    with Worker(model, optimizer, EASGD(moving_rate=ALPHA), **options) as worker:
        train(model, optimizer, 3)
        train(plain, sgd(plain, lr=0.0), 3)
        assert torch.equal(statistics(model), statistics(plain))
        with worker.center_weights():
            assert torch.equal(statistics(model), statistics(plain))
        assert {entry.kind for entry in center.spec.entries} == {"parameter"}


# Conservation ----------------------------------------------------------------------------------------------------


def whole(worker: Worker) -> Tensor:
    """What this worker holds, in float64, the remainder that rounding dropped included."""
    worker.state_dict()  # finishes what is under way
    vector = worker._flat.gather_()
    return torch.cat([entry.view(vector).double().reshape(-1) for entry in worker._flat.entries])


def whole_center(center: LocalCenter) -> Tensor:
    vector = center.pull()
    return torch.cat([entry.view(vector).double().reshape(-1) for entry in center.spec.entries])


class Mixed(nn.Module):
    """Parameters of every kind, and buffers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.full = nn.Parameter(torch.zeros(size))
        self.brain = nn.Parameter(torch.zeros(size, dtype=torch.bfloat16))
        self.small = nn.Parameter(torch.zeros(3, size, dtype=torch.float16).t())
        self.gaps = nn.Parameter(torch.zeros(size, 4)[:, :2])
        self.register_buffer("mean", torch.zeros(size))


turns = st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=15)


@given(
    size=st.sampled_from([0, 1, 5, 17]),
    turns=turns,
    rate=st.floats(0.01, 1.0),
    overlap=st.booleans(),
    period=st.sampled_from([1, 3]),
)
@settings(deadline=None, max_examples=40)
def test_workers_at_rate_0_keep_the_sum_with_their_center(
    size: int, turns: list, rate: float, overlap: bool, period: int
) -> None:
    first = LocalCenter()
    options: dict[str, Any] = {"communication_period": period, "fragments": period if size else 1, "overlap": overlap}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("hooke.center.BLOCK", 7)
        stack.callback(first.close)
        workers = []
        for index in range(3):
            model = Mixed(size)
            center = first if index == 0 else LocalCenter(first.path)
            stack.callback(center.close)
            worker = Worker(model, sgd(model, lr=0.0), EASGD(rate), center=center, **options)
            workers.append(stack.enter_context(worker))
            generator = torch.Generator().manual_seed(index)
            for tensor in [*model.parameters(), model.mean]:
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
        total = sum(map(whole, workers)) + whole_center(first)
        for index, steps in turns:
            workers[index].optimizer.step() if steps else workers[index].exchange()
        now = sum(map(whole, workers)) + whole_center(first)
        torch.testing.assert_close(now, total, rtol=0, atol=1e-4)


def test_a_bfloat16_model_reaches_what_rounding_alone_would_never_reach(center: LocalCenter) -> None:
    """Pulls far below the resolution of bfloat16 add up in the master copy."""
    model = nn.Linear(4, 4).to(torch.bfloat16)
    model.weight.data.fill_(1.0)
    optimizer = sgd(model, lr=0.0)
    with Worker(model, optimizer, EASGD(moving_rate=1e-3), center=center, communication_period=1):
        for _ in range(700):
            center.put(torch.zeros(center.spec.numel))
            optimizer.step()
    assert model.weight.float().mean().item() == pytest.approx(math.exp(-0.7), abs=4e-3)


# Models of every kind --------------------------------------------------------------------------------------------


def tied() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    return model


def tied_by_memory() -> nn.Module:
    model = tied()
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model


class Convolution(nn.Module):
    """A convolution in channels_last, for the inputs of `network_loss`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, None, :, None].expand(-1, 2, -1, 2).contiguous(memory_format=torch.channels_last)
        return self.head(self.conv(image).flatten(1))


def compiled(backend: str) -> nn.Module:
    return torch.compile(network(), backend=backend)


def frozen_below() -> nn.Module:
    model = network()
    model[0].requires_grad_(False)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "plain": (network, 1e-5),
    "batch norm": (batch_normed, 1e-5),
    "tied weights": (tied, 1e-5),
    "tied by memory": (tied_by_memory, 1e-5),
    "frozen below": (frozen_below, 1e-5),
    "channels_last": (Convolution, 1e-5),
    "bfloat16": (lambda: network().to(torch.bfloat16), 3e-2),
    "float16": (lambda: network().to(torch.float16), 4e-3),
    "float64": (lambda: network().to(torch.float64), 1e-6),
    "a half of it in bfloat16": (lambda: nn.Sequential(network(), Cast(), nn.Linear(3, 3).to(torch.bfloat16)), 3e-2),
    "compiled": (lambda: compiled("eager"), 1e-5),
    "compiled ahead of time": (lambda: compiled("aot_eager"), 1e-5),
    "a deep copy": (lambda: copy.deepcopy(network()), 1e-5),
}


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


@pytest.mark.parametrize("name", MODELS)
def test_any_model_trains_as_by_hand(center: LocalCenter, name: str) -> None:
    make, atol = MODELS[name]
    model, twin = make(), make()
    as_it_was = [(id(p), p.dtype, p.stride()) for p in model.parameters()]
    optimizer, by_hand = nesterov(model, lr=0.02), ByHand(twin, nesterov(twin, lr=0.02))
    with Worker(model, optimizer, EASGD(moving_rate=ALPHA), center=center, communication_period=2, buffers="local"):
        for step in range(12):
            train(model, optimizer, 1, seed=step)
            by_hand.step(step, due=step % 2 == 0)
        assert [(id(p), p.dtype, p.stride()) for p in model.parameters()] == as_it_was
        torch.testing.assert_close(values_of(model), values_of(twin), rtol=0, atol=atol)
    train(model, optimizer, 1)
    by_hand.step(0, due=False)
    torch.testing.assert_close(values_of(model), values_of(twin), rtol=0, atol=atol)
    assert torch.equal(values_of(copy.deepcopy(model)), values_of(model))


def test_a_compiled_worker_joins_the_center_of_an_uncompiled_one(center: LocalCenter) -> None:
    plain, other = batch_normed(), torch.compile(batch_normed(), backend="eager")
    with ExitStack() as stack:
        stack.enter_context(Worker(plain, sgd(plain), EASGD(), center=center))
        stack.enter_context(Worker(other, sgd(other), EASGD(), center=LocalCenter(center.path)))
        assert center.num_workers == 2


def test_a_copy_made_while_training_is_free_of_the_worker(center: LocalCenter) -> None:
    model, optimizer, worker = worker_of(center, communication_period=1)
    with worker:
        train(model, optimizer, 2)
        twin = copy.deepcopy(model)
        own = values_of(twin)
        train(model, optimizer, 2)
        assert torch.equal(values_of(twin), own)
        train(twin, sgd(twin), 1)
        model.load_state_dict(twin.state_dict())
        assert torch.equal(values_of(model), values_of(twin))
        c = held_by(center)
        worker.exchange()
        torch.testing.assert_close(held_by(center), c + ALPHA * (values_of(twin) - c), rtol=0, atol=1e-6)


def test_a_model_that_is_moved_meanwhile_goes_on(center: LocalCenter) -> None:
    model, twin = Convolution(), Convolution()
    twin.load_state_dict(model.state_dict())
    optimizer, by_hand = sgd(model), ByHand(twin, sgd(twin))
    with Worker(model, optimizer, EASGD(moving_rate=ALPHA), center=center, communication_period=2):
        for step in range(8):
            train(model, optimizer, 1, seed=step)
            by_hand.step(step, due=step % 2 == 0)
            model.to(memory_format=(torch.contiguous_format, torch.channels_last)[step % 2])
        torch.testing.assert_close(values_of(model), values_of(twin), rtol=0, atol=1e-5)
        torch.testing.assert_close(held_by(center), by_hand.center(), rtol=0, atol=1e-5)


# State -----------------------------------------------------------------------------------------------------------

STATES: dict[str, tuple[Rule, dict[str, Any]]] = {
    **{case.name: (case.rule, {"communication_period": 3}) for case in RULES},
    "by halves": (EASGD(moving_rate=ALPHA), {"collect_period": 3, "delivery_period": 5}),
    "every step": (EAMSGD(moving_rate=ALPHA), {"communication_period": 4, "pull": "every_step"}),
    "following p": (EASGD(beta=0.9), {"communication_period": 3}),
    "fragments": (EAMSGD(moving_rate=ALPHA), {"communication_period": 4, "fragments": 3}),
    "streaming": (DiLoCo(mixing=0.3), {"communication_period": {0: 4, 8: 6}, "fragments": 4}),
}


@dataclass
class Training:
    """Two workers of one center, the second always one step behind."""

    rule: Rule
    options: dict[str, Any]
    make: Callable[[], nn.Module]

    def __enter__(self) -> Training:
        self.stack = ExitStack()
        self.center = LocalCenter()
        self.stack.callback(self.center.close)
        self.models, self.optimizers, self.workers = [], [], []
        for center in (self.center, LocalCenter(self.center.path)):
            self.stack.callback(center.close)
            model = self.make()
            optimizer = nesterov(model, lr=0.05)
            worker = Worker(model, optimizer, self.rule, center=center, **self.options)
            self.models.append(model)
            self.optimizers.append(optimizer)
            self.workers.append(self.stack.enter_context(worker))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def go(self, steps: range) -> None:
        for step in steps:
            for index, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
                train(model, optimizer, 1, seed=2 * step + index)
                for group in optimizer.param_groups:
                    group["lr"] = 0.05 * 0.95**step  # the next step's, as a scheduler sets it

    def state(self) -> list[Any]:
        each = zip(self.workers, self.models, self.optimizers, strict=True)
        return [
            {"worker": w.state_dict(), "model": dict(m.state_dict()), "optimizer": o.state_dict()} for w, m, o in each
        ]

    def load(self, states: list[Any]) -> None:
        for state, w, m, o in zip(states, self.workers, self.models, self.optimizers, strict=True):
            m.load_state_dict(state["model"])
            o.load_state_dict(state["optimizer"])
            w.load_state_dict(state["worker"])

    def everything(self) -> list[Tensor]:
        center = [self.center.pull(), *self.center.pull_memory().values()]
        return [*(value for model in self.models for value in model.state_dict().values()), *center]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", STATES)
def test_training_goes_on_from_a_state_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Through a file, into new objects, in the middle of a period."""
    rule, options = STATES[name]
    with Training(rule, options, lambda: batch_normed(dtype)) as one:
        one.go(range(7))
        center = {"center": one.center.pull(), "center_memory": one.center.pull_memory()}
        save_state(tmp_path / "state", {"workers": one.state(), **center})
        one.go(range(7, 20))
        expected = one.everything()
        steps = [worker.steps for worker in one.workers]
    with Training(rule, options, lambda: batch_normed(dtype)) as other:
        other.go(range(100, 102))  # something else, which must leave nothing behind
        saved = load_state(tmp_path / "state")
        other.center.put(saved["center"], saved["center_memory"])
        other.load(saved["workers"])
        other.go(range(7, 20))
        assert [worker.steps for worker in other.workers] == steps == [20, 20]
        for ours, theirs in zip(other.everything(), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_a_state_is_a_copy(center: LocalCenter) -> None:
    model = network().to(torch.bfloat16)
    optimizer = sgd(model)
    with Worker(model, optimizer, Downpour(), center=center, communication_period=2) as worker:
        train(model, optimizer, 3)
        state = worker.state_dict()
        before = copy.deepcopy(state)
        train(model, optimizer, 5)
        assert torch.equal(state["master"], before["master"])
        assert torch.equal(state["memory"][0], before["memory"][0])
        assert (state["steps"], state["rule"]) == (3, "Downpour()")


def test_the_state_of_another_rule_gets_a_sentence(center: LocalCenter) -> None:
    _, _, worker = worker_of(center)
    sentence = (
        "Worker: a state must come from the same rule. Got Downpour(), this worker has EASGD(beta=None, "
        "moving_rate=0.25, order='jacobi'). Use that rule, or start without the state."
    )
    with worker, pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        worker.load_state_dict({"rule": "Downpour()"})


def test_a_state_fits_other_periods_too(center: LocalCenter) -> None:
    model, optimizer, worker = worker_of(center, communication_period=2)
    with worker:
        train(model, optimizer, 3)
        state = worker.state_dict()
    by_halves = Worker(model, optimizer, worker.rule, center=center, collect_period=2, delivery_period=3)
    with by_halves:
        by_halves.load_state_dict(state)
        train(model, optimizer, 3)
        assert by_halves.steps == 6
        state = by_halves.state_dict()
    with worker:
        worker.load_state_dict(state)
        assert worker.steps == 6


class Batches(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        return index


def test_processes_that_load_data_do_not_disturb_the_worker(center: LocalCenter) -> None:
    """They inherit the center's files; that they end must not free this worker's locks."""
    model, optimizer, worker = worker_of(center, communication_period=1)
    with worker:
        for epoch in range(2):
            for step in torch.utils.data.DataLoader(Batches(), batch_size=None, num_workers=2):
                train(model, optimizer, 1, seed=int(step) + 10 * epoch)
        assert (worker.steps, center.exchanges) == (12, 12)
        with ProcessPoolExecutor(1, mp_context=FORK) as pool:
            assert pool.submit(workers_at, center.path).result() == 1


def workers_at(path: Path) -> int:
    return LocalCenter(path).num_workers


# Under `hooke run` -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def prepare(**settings: Any) -> None:
        told = Run(str(tmp_path), str(tmp_path / "center"), worker=0, num_workers=1, started=0.0, **settings)
        for name, value in told.environment().items():
            monkeypatch.setenv(name, value)

    prepare()
    yield prepare


def started(dtype: torch.dtype, rule: Rule | None = None) -> tuple[nn.Module, torch.optim.Optimizer, Worker]:
    model = batch_normed(dtype)
    optimizer = nesterov(model)
    return model, optimizer, Worker(model, optimizer, rule or EAMSGD(), communication_period=3)


@pytest.mark.parametrize("rule", [EAMSGD(), DiLoCo(), AsyncDiLoCo(delay=3)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_resumed_run_goes_on_to_the_bit(run: Callable, tmp_path: Path, dtype: torch.dtype, rule: Rule) -> None:
    def noisy(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            (network_loss(model, step) * torch.rand(())).backward()
            optimizer.step()

    torch.manual_seed(5)
    model, optimizer, worker = started(dtype, rule)
    with worker:
        torch.manual_seed(5)
        noisy(model, optimizer, range(7))
        worker.save(epoch=3, done=[1, 2])
        noisy(model, optimizer, range(7, 15))
        expected = [*model.state_dict().values(), worker.center.pull(), *worker.center.pull_memory().values()]
    (tmp_path / "center").unlink()

    run(resume=True)
    model, optimizer, worker = started(dtype, rule)
    with worker:
        assert worker.restore() == {"epoch": 3, "done": [1, 2]}
        assert worker.steps == 7
        noisy(model, optimizer, range(7, 15))
        got = [*model.state_dict().values(), worker.center.pull(), *worker.center.pull_memory().values()]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True))


def test_a_run_that_is_not_resumed_starts_anew(run: Callable) -> None:
    model, optimizer, worker = started(torch.float32)
    with worker:
        train(model, optimizer, 2)
        worker.save()
    model, _, worker = started(torch.float32)
    with worker:
        assert worker.restore() is None
        assert worker.steps == 0
    run(restarts=1)
    model, _, worker = started(torch.float32)
    with worker:
        assert worker.restore() == {}
        assert worker.steps == 2


def test_the_checkpoint_of_another_model_gets_a_sentence(run: Callable, tmp_path: Path) -> None:
    _, _, worker = started(torch.float32)
    with worker:
        worker.save()
    run(resume=True)
    (tmp_path / "center").unlink()
    model = nn.Linear(2, 2)
    sentence = (
        r"(?s)^Worker: .*0\.safetensors must be of the same model and optimizer\. Got: .* Build them as in the run"
    )
    with Worker(model, sgd(model), EASGD()) as other, pytest.raises(ValueError, match=sentence):
        other.restore()


def test_a_checkpoint_is_due_after_the_seconds_that_were_asked_for(run: Callable) -> None:
    run(checkpoint_every=0.0)
    _, _, worker = started(torch.float32)
    with worker:
        assert worker.checkpoint_due
        run(checkpoint_every=1e9)
    _, _, worker = started(torch.float32)
    with worker:
        assert not worker.checkpoint_due


def test_a_start_that_fails_leaves_no_trace(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("a file where the rows' folder should be")
    model, optimizer, worker = started(torch.float32)
    with pytest.raises(FileExistsError):
        worker.start()
    assert hooks_of(optimizer) == (0, 0)
    assert owns_its_memory(model)
    assert worker.center.num_workers == 0


def test_rows_say_what_each_exchange_cost(run: Callable, tmp_path: Path) -> None:
    model, optimizer, worker = started(torch.float32)
    with worker:
        train(model, optimizer, 4)
        worker.record(loss=0.5, examples=32)
        worker.record(of="center", accuracy=0.75)
        worker.record(examples=32, loss=0.25)
        model[0].weight.data.fill_(torch.nan)
        with pytest.warns(RuntimeWarning):
            worker.exchange()
    rows = [(row["worker"], row["step"], row["name"], row["value"]) for row in read(tmp_path / "workers" / "0.jsonl")]
    numel = worker.center.spec.numel  # type: ignore[attr-defined]
    assert [row for row in rows if row[2] == "bytes_sent"] == [
        (0, 0, "bytes_sent", 4 * numel),
        (0, 3, "bytes_sent", 4 * numel),
    ]
    assert [row[2:] for row in rows if row[2] in ("loss", "examples")] == [
        ("loss", 0.5),
        ("examples", 32),
        ("loss", 0.25),
        ("examples", 64),
    ]
    assert ("center", 4, "accuracy", 0.75) in rows
    assert [row for row in rows if row[2] == "refused"] == [(0, 4, "refused", 1)]
    assert {row[2] for row in rows} >= {"exchange_seconds", "wait_seconds", "bytes_received", "staleness"}


# A worker that diverges, a center that is away -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rule", [EASGD(), EAMSGD(), Downpour()], ids=repr)
def test_a_worker_that_turns_nan_is_refused_with_a_warning_and_the_center_does_not_move(
    rule: Rule, overlap: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooke.exchange.ThreadPoolExecutor", AtOnce)
    model = network().to(dtype)
    optimizer = nesterov(model)
    with closing(LocalCenter()) as center:
        options: dict[str, Any] = {"center": center, "communication_period": 10, "overlap": overlap}
        with Worker(model, optimizer, rule, **options) as worker:
            train(model, optimizer, 3)
            worker.exchange()
            worker.state_dict()  # finishes what is under way
            good, state = center.pull(), copy.deepcopy(model.state_dict())
            model[0].weight.data[0, 0] = torch.nan
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                worker.exchange()
                train(model, optimizer, 2)
            assert [(w.category, str(w.message).split(" Got")[0]) for w in seen] == [
                (
                    RuntimeWarning,
                    "Worker: an exchange was refused, training goes on. center: x must be finite and below 1e+30.",
                )
            ]
            assert torch.equal(center.pull(), good)
            assert (center.members()[0].refused, worker.steps) == (1, 5)
            model.load_state_dict(state)  # the user sets it back: it is taken again
            optimizer.state.clear()
            worker.exchange()
            train(model, optimizer, 1)
            assert center.members()[0].refused == 1
            assert values_of(model).isfinite().all()


class Away(LocalCenter):
    """A center whose link is cut from time to time."""

    cut = False

    def exchanging(self, *args: Any, **place: Any) -> Iterator[slice]:
        if self.cut:
            raise ConnectionResetError("the link is cut")
        return super().exchanging(*args, **place)


@pytest.mark.parametrize("overlap", [False, True])
def test_an_exchange_that_fails_costs_a_longer_period_only(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooke.exchange.ThreadPoolExecutor", AtOnce)
    model, plain = network(), network()
    optimizer, center = sgd(model), Away()
    options: dict[str, Any] = {"center": center, "communication_period": 2, "overlap": overlap}
    with closing(center), Worker(model, optimizer, EASGD(), **options):
        center.cut = True
        train(model, optimizer, 10)
        train(plain, sgd(plain), 10)
        assert torch.equal(values_of(model), values_of(plain))
        center.cut = False
        train(model, optimizer, 2)
        assert not torch.equal(held_by(center), values_of(network()))
        assert center.exchanges == 1


def test_a_stalled_pull_of_halves_costs_nothing_either() -> None:
    model, plain = network(), network()
    optimizer, center = sgd(model), Away()
    with closing(center), Worker(model, optimizer, EASGD(), center=center, collect_period=2, delivery_period=100):
        center.cut = True
        train(model, optimizer, 6)
        train(plain, sgd(plain), 6)
        assert torch.equal(held_by(center), values_of(network()))
        torch.testing.assert_close(values_of(model), values_of(plain), rtol=0, atol=1e-6)


# Sentences -------------------------------------------------------------------------------------------------------


def make_worker(optimizer: Callable = sgd, rule: Any = None, **options: Any) -> Callable[[], Worker]:
    def make() -> Worker:
        model = network()
        return Worker(model, optimizer(model), EASGD() if rule is None else rule, **options)

    return make


def of_another_model(model: nn.Module) -> torch.optim.Optimizer:
    return sgd(nn.Linear(4, 2))


PERIOD = "Worker: {} must be a whole number of steps, at least 1. Got {}. Use e.g. 10."
NESTEROV = (
    "Worker: EAMSGD needs torch.optim.SGD with nesterov=True. Got {}. Use SGD(..., momentum=0.9, nesterov=True), or "
    "hooke.EASGD() with this optimizer."
)
ELASTIC = (
    "Worker: collect_period, delivery_period and pull='every_step' need an elastic rule. Got {}. Use hooke.EASGD() or "
    "hooke.EAMSGD(), or one communication_period."
)
BESIDE = (
    "Worker: {} must stand beside one communication_period and no fragments. Got phases or fragments. Drop one of the "
    "two."
)
ONE_PERIOD = "Worker: overlap needs one communication_period. Got separate periods or pull='every_step'. Drop one."


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        *(
            (make_worker(communication_period=bad), PERIOD.format("communication_period", bad))
            for bad in (0, -1, 2.5, True, None)
        ),
        (make_worker(communication_period="often"), PERIOD.format("communication_period", "'often'")),
        (
            make_worker(communication_period="auto"),
            'Worker: communication_period="auto" hides exchanges behind the steps, which needs overlap=True. Got '
            "overlap=False. Set overlap=True, or a whole number of steps.",
        ),
        (
            make_worker(communication_period="auto", overlap=True, fragments=2),
            'Worker: communication_period="auto" exchanges the whole vector. Got fragments=2. Drop fragments, or set '
            "a whole number of steps.",
        ),
        (
            make_worker(communication_period="auto", overlap=True, collect_period=10),
            'Worker: communication_period="auto" is one period for both directions. Got collect_period too. Drop one '
            "of the two.",
        ),
        (
            make_worker(communication_period="auto", overlap=True, pull="every_step"),
            "Worker: communication_period=\"auto\" is one period for both directions. Got pull='every_step' too. Drop "
            "one of the two.",
        ),
        (make_worker(collect_period=0), PERIOD.format("collect_period", 0)),
        (make_worker(delivery_period=1.0), PERIOD.format("delivery_period", 1.0)),
        (
            make_worker(of_another_model),
            "Worker: optimizer must update parameters of model. Got 2 tensors that are not (first: shape (2, 4)). Pass "
            "the model whose parameters optimizer updates.",
        ),
        (
            make_worker(rule=EASGD),
            "Worker: rule must be a hooke rule. Got <class 'hooke.rule.EASGD'>. Use an object, e.g. hooke.EASGD().",
        ),
        (make_worker(lambda m: torch.optim.Adam(m.parameters()), EAMSGD()), NESTEROV.format("Adam")),
        (make_worker(lambda m: sgd(m, momentum=0.9), EAMSGD()), NESTEROV.format("SGD")),
        (
            make_worker(pull="sometimes"),
            "Worker: pull must be one of ('exchange', 'every_step'). Got 'sometimes'. Use 'exchange'.",
        ),
        (
            make_worker(buffers="shared"),
            "Worker: buffers must be one of ('average', 'local'). Got 'shared'. Use 'average'.",
        ),
        (make_worker(rule=Downpour(), collect_period=3), ELASTIC.format("Downpour()")),
        (make_worker(rule=LocalSGD(), pull="every_step"), ELASTIC.format("LocalSGD(num_workers=None, mixing=0.0)")),
        (make_worker(overlap=True, delivery_period=3), ONE_PERIOD),
        (make_worker(collect_period=3, fragments=2), BESIDE.format("collect_period")),
        (
            make_worker(delivery_period=3, pull="every_step", communication_period={0: 1, 9: 4}),
            BESIDE.format("delivery_period and pull='every_step'"),
        ),
        (make_worker(fragments=0), "Worker: fragments must be a whole number, at least 1. Got 0. Use e.g. 4."),
        (make_worker(overlap=True, pull="every_step"), ONE_PERIOD),
        (
            make_worker(),
            "Worker: needs a center. Got none: this script was not started by `hooke run`. Start it with `hooke run "
            "--workers 4 SCRIPT`, or pass center=hooke.LocalCenter() to train alone.",
        ),
    ],
)
def test_a_wrong_setting_gets_a_sentence_with_the_repair(
    make: Callable[[], Worker], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOKE_RUN", raising=False)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


def test_equal_periods_are_one_period(center: LocalCenter) -> None:
    """Then overlap and every rule are allowed."""
    model = network()
    Worker(model, sgd(model), Downpour(), center=center, collect_period=3, delivery_period=3, overlap=True)


@pytest.mark.parametrize("verb", ["exchange", "center_weights", "state_dict", "load_state_dict", "restore", "record"])
def test_outside_its_block_a_worker_says_so(center: LocalCenter, verb: str) -> None:
    _, _, worker = worker_of(center)
    calls: dict[str, Callable[[], Any]] = {
        "center_weights": lambda: worker.center_weights().__enter__(),
        "load_state_dict": lambda: worker.load_state_dict({}),
    }
    sentence = f"Worker: {verb}() needs an active worker. Got one that is not. Use it inside `with`."
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        calls.get(verb, getattr(worker, verb))()


def test_a_script_that_was_started_alone_has_no_checkpoints(center: LocalCenter) -> None:
    _, _, worker = worker_of(center)
    with worker:
        assert not worker.checkpoint_due
        assert worker.restore() is None
        with pytest.raises(
            RuntimeError, match=r"^Worker: save\(\) needs a run directory\. Got a script that was started"
        ):
            worker.save()


def test_a_recorded_name_must_be_one_of_the_list_even_without_a_record(center: LocalCenter) -> None:
    _, _, worker = worker_of(center)
    with worker:
        worker.record(loss=1.0)
        with pytest.raises(ValueError, match=r"^Record: name must be one of .* Got 'lss'\."):
            worker.record(lss=1.0)
        with pytest.raises(ValueError, match=r"^Worker: of must be one of \('worker', 'center'\)\. Got 'model'"):
            worker.record(of="model", loss=1.0)  # type: ignore[arg-type]


# Fragments -------------------------------------------------------------------------------------------------------


def test_each_exchange_of_a_fragment_carries_its_part_of_the_bytes(center: LocalCenter) -> None:
    model, optimizer, worker = worker_of(center, communication_period=6, fragments=4)
    with worker:
        carried = [center.bytes_sent]
        for _ in range(13):
            train(model, optimizer, 1)
            carried.append(center.bytes_sent)
        numel = center.spec.numel
    each = {step: after - before for step, (before, after) in enumerate(pairwise(carried)) if after > before}
    assert list(each) == [0, 1, 3, 4, 6, 7, 9, 10, 12]  # in this order an exchange comes before the step
    assert set(each.values()) <= {4 * (numel // 4), 4 * (numel // 4 + 1)}
    assert sum(each[step] for step in (1, 3, 4, 6)) == 4 * numel
    assert center.bytes_received - 4 * numel == center.bytes_sent  # and the whole once, when it joined


def test_exchange_at_once_is_of_the_whole_vector(center: LocalCenter) -> None:
    model, optimizer, worker = worker_of(center, communication_period=50, fragments=5)
    with worker:
        train(model, optimizer, 4)
        x, c = values_of(model), held_by(center)
        worker.exchange()
        torch.testing.assert_close(held_by(center), c + ALPHA * (x - c), rtol=0, atol=1e-6)


def test_a_fragment_overlaps_the_next_steps(slow: Slow) -> None:
    """The first of two is sent after step 3 as it is then; the rest of x and of the center has no part in it."""
    model, optimizer, worker = worker_of(slow, overlap=True, communication_period=6, fragments=2)
    worker.rule = EASGD(moving_rate=ALPHA, order="gauss-seidel")
    with worker, onlooker(slow) as push:
        push(torch.ones(slow.spec.numel))
        train(model, optimizer, 3)
        x, c = worker._flat.gather_().clone(), slow.pull()
        slow.may_go.set()
        wait_until_done(worker)
        half, correction = slow.spec.numel // 2, ALPHA * (x - c)
        torch.testing.assert_close(slow.pull()[:half], (c + correction)[:half], rtol=0, atol=1e-6)
        assert torch.equal(slow.pull()[half:], c[half:])
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved = x - worker._flat.gather_()
        torch.testing.assert_close(moved[:half], correction[:half], rtol=0, atol=1e-6)
        torch.testing.assert_close(moved[half:], torch.zeros_like(moved[half:]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
def test_fragments_go_through_the_host_and_back(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an accelerator, but for the stream."""
    monkeypatch.setattr("hooke.exchange.ThreadPoolExecutor", AtOnce)
    ends = []
    for direct in (True, False):
        with closing(LocalCenter()) as center:
            model = batch_normed()
            options: dict[str, Any] = {"communication_period": 4, "fragments": 3, "overlap": overlap, "center": center}
            with Worker(model, nesterov(model), DiLoCo(mixing=0.3), **options) as worker:
                worker._exchange.staging.is_direct = direct
                train(model, worker.optimizer, 15)
                worker.state_dict()
                ends.append([values_of(model), center.pull(), *worker._exchange.memory])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends, strict=True))


def test_rows_of_fragments_tell_the_distance_of_the_whole(run: Callable, tmp_path: Path) -> None:
    model = batch_normed()
    optimizer = nesterov(model)
    with Worker(model, optimizer, EAMSGD(), communication_period=3, fragments=3) as worker:
        worker.center.put(worker.center.pull() + 1)
        train(model, optimizer, 1)
    rows = [row for row in read(tmp_path / "workers" / "0.jsonl") if row["name"] == "center_distance"]
    assert rows[0]["value"] == pytest.approx(worker.center.spec.numel**0.5, rel=0.02)  # type: ignore[attr-defined]


# On an accelerator -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("rule", [EASGD(moving_rate=ALPHA), EAMSGD(moving_rate=ALPHA), Downpour()], ids=repr)
def test_on_an_accelerator_training_equals_the_host(
    rule: Rule, fragments: int, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooke.exchange.ThreadPoolExecutor", AtOnce)
    ends = []
    for device in ("cpu", "cuda"):
        model = batch_normed().to(device)
        optimizer = nesterov(model)
        with closing(LocalCenter()) as center:
            options: dict[str, Any] = {"center": center, "communication_period": 3, "overlap": overlap}
            options["fragments"] = fragments
            with Worker(model, optimizer, rule, **options) as worker:
                for step in range(12):
                    optimizer.zero_grad()
                    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step)).to(device)
                    model(inputs).square().mean().backward()
                    optimizer.step()
                with worker.center_weights():
                    assert next(model.parameters()).device.type == device
                ends.append((values_of(model).cpu(), held_by(center)))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-4)
