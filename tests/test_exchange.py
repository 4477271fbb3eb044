"""How an exchange runs: in place where it can, beside the training where asked, by halves; and what it reports."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hooke.center import LocalCenter
from hooke.exchange import AtOnce, ByHalves, Exchange, Outcome, Overlapped
from hooke.flat import FlatParameters
from hooke.rule import EASGD, Downpour, Rule
from hooke.spec import CenterSpec, Refused

ALPHA = 0.25


class Watched(LocalCenter):
    """Notes how it is called; fails or waits when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []
        self.failure: Exception | None = None
        self.may_go = threading.Event()
        self.may_go.set()

    def _note(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        assert self.may_go.wait(30)
        if self.failure is not None:
            raise self.failure

    def exchange(self, x: Tensor, rule: Rule, state: Any = (), out: Tensor | None = None) -> Tensor:
        self._note("exchange", x)
        return super().exchange(x, rule, state, out)

    def exchange_(self, x: Tensor, rule: Rule, state: Any = ()) -> None:
        self._note("exchange_", x)
        super().exchange_(x, rule, state)


@pytest.fixture
def watched() -> Iterator[Watched]:
    center = Watched()
    yield center
    center.close()


class Setting:
    """One worker with all parameters at 1, its center at 0."""

    def __init__(self, center: Watched, kind: type[Exchange], rule: Rule | None = None, **options: Any) -> None:
        self.model = nn.Linear(2, 1).to(options.pop("dtype", torch.float32))
        self.flat = FlatParameters(self.model)
        zeros = torch.zeros_like(self.flat.vector)
        center.join(zeros, CenterSpec.of(self.flat.entries))
        self.flat.set_(torch.ones_like(zeros))
        self.center, self.outcomes = center, list[Outcome]()
        self.exchange = kind(
            self.flat,
            center,
            rule or EASGD(moving_rate=ALPHA),
            zeros,
            done=self.outcomes.append,
            **options,
        )

    def begin(self, *, subtract_now: bool = False) -> None:
        self.exchange.begin(self.flat.gather_, subtract_now=subtract_now)

    @property
    def x(self) -> list[float]:
        return [value for parameter in self.model.parameters() for value in parameter.detach().flatten().tolist()]

    @property
    def c(self) -> list[float]:
        vector = self.center.pull()
        return [value for entry in self.center.spec.entries for value in entry.view(vector).flatten().tolist()]


MOVED, PULLED, AT_ONE, AT_ZERO = [1 - ALPHA] * 3, [ALPHA] * 3, [1.0] * 3, [0.0] * 3


# At once ---------------------------------------------------------------------------------------------------------


def test_at_once_works_on_the_models_own_memory(watched: Watched) -> None:
    setting = Setting(watched, AtOnce)
    setting.begin(subtract_now=True)
    ((name, x),) = watched.calls
    assert name == "exchange_"
    assert (x.data_ptr(), x.shape) == (setting.flat.vector.data_ptr(), setting.flat.vector.shape)
    assert setting.exchange.staging._scratch is None  # no second vector was needed
    assert (setting.x, setting.c) == (MOVED, PULLED)


def test_what_may_not_be_subtracted_now_waits_for_the_step(watched: Watched) -> None:
    setting = Setting(watched, AtOnce)
    setting.begin()
    assert (setting.x, setting.c) == (AT_ONE, PULLED)
    setting.exchange.after_step()
    assert setting.x == MOVED
    setting.exchange.after_step()
    setting.exchange.finish()
    assert setting.x == MOVED


@pytest.mark.parametrize("kind", [AtOnce, ByHalves])
def test_what_still_waits_is_subtracted_before_the_next_exchange(watched: Watched, kind: Any) -> None:
    options = {"collect_period": 1, "delivery_period": 1, "every_step": False} if kind is ByHalves else {}
    setting = Setting(watched, kind, **options)
    setting.begin()
    setting.begin()
    setting.exchange.finish()
    total = torch.tensor(setting.x) + torch.tensor(setting.c)
    torch.testing.assert_close(total, torch.ones(3))


def test_a_mirrored_model_is_moved_too(watched: Watched) -> None:
    setting = Setting(watched, AtOnce, dtype=torch.bfloat16)
    setting.begin(subtract_now=True)
    assert watched.calls[0][0] == "exchange"
    assert (setting.x, setting.c) == (MOVED, PULLED)


# Beside the training ---------------------------------------------------------------------------------------------


def test_an_overlapped_exchange_keeps_to_the_point_where_it_began(watched: Watched) -> None:
    setting = Setting(watched, Overlapped)
    watched.may_go.clear()
    setting.begin()
    setting.flat.vector.add_(1)  # training goes on
    setting.exchange.after_step()
    assert setting.x == [2.0] * 3
    watched.may_go.set()
    setting.exchange.finish()
    assert (setting.x, setting.c) == ([2 - ALPHA] * 3, PULLED)
    setting.exchange.finish()
    assert setting.x == [2 - ALPHA] * 3
    setting.exchange.close()


def test_one_that_comes_due_meanwhile_is_missed(watched: Watched) -> None:
    setting = Setting(watched, Overlapped)
    watched.may_go.clear()
    setting.begin()

    def not_asked() -> Tensor:
        raise AssertionError("the point was asked for, though its memory is in use")

    setting.exchange.begin(not_asked, subtract_now=False)
    watched.may_go.set()
    setting.exchange.finish()
    missed, made = setting.outcomes
    assert isinstance(missed.failure, TimeoutError)
    assert (str(missed.failure), missed.exchange_seconds) == ("the exchange before is still under way", 0)
    assert made.failure is None
    assert len(watched.calls) == 1
    setting.exchange.close()


def test_one_that_has_come_in_is_subtracted_before_the_next_begins(watched: Watched) -> None:
    setting = Setting(watched, Overlapped)
    setting.begin()
    setting.exchange._under_way.exception(timeout=30)  # type: ignore[attr-defined]
    assert setting.x == AT_ONE
    setting.begin()
    assert (setting.x, len(setting.outcomes)) == (MOVED, 1)
    setting.exchange.finish()
    total = torch.tensor(setting.x) + torch.tensor(setting.c)
    torch.testing.assert_close(total, torch.ones(3))
    assert [outcome.failure for outcome in setting.outcomes] == [None, None]
    setting.exchange.close()


def test_it_tells_whether_one_is_under_way(watched: Watched) -> None:
    setting = Setting(watched, Overlapped)
    assert not setting.exchange.is_under_way
    watched.may_go.clear()
    setting.begin()
    assert setting.exchange.is_under_way
    watched.may_go.set()
    setting.exchange._under_way.exception(timeout=30)  # type: ignore[attr-defined]
    assert not setting.exchange.is_under_way
    setting.exchange.close()


def test_at_once_nothing_is_ever_under_way(watched: Watched) -> None:
    setting = Setting(watched, AtOnce)
    setting.begin()
    assert not setting.exchange.is_under_way


def test_it_tells_what_its_thread_took_from_the_processor_and_not_what_it_slept(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"now": 0.0, "thread": 0.0}
    clock = SimpleNamespace(
        monotonic=lambda: seconds["now"], perf_counter=lambda: seconds["now"], thread_time=lambda: seconds["thread"]
    )
    monkeypatch.setattr("hooke.exchange.time", clock)
    setting = Setting(watched, Overlapped, measures_distance=True)

    def works(x: Tensor, *_: Any, **__: Any) -> Tensor:
        seconds["now"] += 5.0
        seconds["thread"] += 0.25
        return torch.zeros_like(x)

    def measures(x: Tensor) -> float:
        seconds["now"] += 2.0
        seconds["thread"] += 1.0
        return 7.0

    monkeypatch.setattr(watched, "exchange", works)
    monkeypatch.setattr(watched, "distance", measures)
    setting.begin()
    setting.exchange._under_way.exception(timeout=30)  # type: ignore[attr-defined]
    setting.exchange.finish()
    (outcome,) = setting.outcomes
    assert (outcome.exchange_seconds, outcome.busy_seconds, outcome.center_distance) == (5.0, 0.25, 7.0)
    setting.exchange.close()


def test_the_thread_ends_with_the_exchange(watched: Watched) -> None:
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    setting = Setting(watched, Overlapped)
    setting.begin()
    setting.exchange.finish()
    (own,) = set(threading.enumerate()) - before
    setting.exchange.close()
    assert not own.is_alive()


def test_rules_with_a_memory_count_from_where_the_exchange_began(watched: Watched) -> None:
    """DOWNPOUR: what x gains while the exchange is under way belongs to the next one."""
    setting = Setting(watched, Overlapped, Downpour())
    watched.may_go.clear()
    setting.begin()
    setting.flat.vector.add_(1)
    watched.may_go.set()
    setting.exchange.finish()
    assert (setting.x, setting.c) == ([2.0] * 3, AT_ONE)
    setting.begin()
    setting.exchange.finish()
    assert (setting.x, setting.c) == ([2.0] * 3, [2.0] * 3)
    setting.exchange.close()


# By halves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every_step", "due"), [(False, [0, 2, 3, 4, 6, 8, 9, 10]), (True, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])]
)
def test_halves_are_due_at_periods_of_their_own(watched: Watched, every_step: bool, due: list[int]) -> None:
    setting = Setting(watched, ByHalves, collect_period=2, delivery_period=3, every_step=every_step)
    assert [step for step in range(11) if setting.exchange.at(step)] == due  # type: ignore[attr-defined]


def halves(watched: Watched, step: int, *, every_step: bool = False) -> Setting:
    setting = Setting(watched, ByHalves, collect_period=2, delivery_period=3, every_step=every_step)
    watched.put(torch.full_like(setting.flat.vector, 0.5))  # told 0 at the start, it is 0.5 now
    setting.exchange.at(step)  # type: ignore[attr-defined]
    setting.begin(subtract_now=True)
    return setting


def test_collecting_moves_the_center_only(watched: Watched) -> None:
    setting = halves(watched, 2)
    assert (setting.x, setting.c) == (AT_ONE, [0.5 + ALPHA / 2] * 3)


def test_delivering_moves_the_worker_only(watched: Watched) -> None:
    setting = halves(watched, 3)
    assert (setting.x, setting.c) == ([1 - ALPHA / 2] * 3, [0.5] * 3)


def test_between_the_periods_every_step_pulls_to_what_the_worker_was_told(watched: Watched) -> None:
    setting = halves(watched, 1, every_step=True)
    assert (setting.x, setting.c) == (MOVED, [0.5] * 3)
    assert setting.outcomes == []  # nothing was exchanged


def test_both_halves_pull_at_one_rate_though_another_worker_has_finished(watched: Watched) -> None:
    rule, options = EASGD(beta=0.8), {"collect_period": 1, "delivery_period": 1, "every_step": False}
    setting = Setting(watched, ByHalves, rule, **options)
    other = LocalCenter(watched.path)
    other.join(torch.zeros(watched.spec.numel), watched.spec)
    other.leave(finished=True)
    setting.begin(subtract_now=True)
    assert setting.c == pytest.approx([0.4] * 3)
    assert setting.x == pytest.approx([0.6] * 3)
    other.close()


def test_both_at_once_are_one_exchange(watched: Watched) -> None:
    setting = halves(watched, 6)
    assert (setting.x, setting.c) == ([1 - ALPHA / 2] * 3, [0.5 + ALPHA / 2] * 3)
    assert len(setting.outcomes) == 1


# What it reports -------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Watched], Setting]] = {
    "at once": lambda center: Setting(center, AtOnce),
    "overlapped": lambda center: Setting(center, Overlapped),
    "by halves": lambda center: Setting(center, ByHalves, collect_period=1, delivery_period=1, every_step=False),
}


@pytest.fixture(params=KINDS)
def setting(request: pytest.FixtureRequest, watched: Watched) -> Iterator[Setting]:
    made = KINDS[request.param](watched)
    yield made
    made.exchange.close()


@pytest.mark.parametrize("kind", [AtOnce, Overlapped])
def test_the_distance_is_measured_where_it_is_wanted_and_not_too_often(
    watched: Watched, kind: type[Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock takes a second, so one measurement does, and the next comes a hundred seconds later."""
    seconds = itertools.count()
    real = {"perf_counter": time.perf_counter, "thread_time": time.thread_time}
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), **real)
    monkeypatch.setattr("hooke.exchange.time", clock)
    setting = Setting(watched, kind, measures_distance=True)
    for _ in range(150):
        setting.begin()
        setting.exchange.finish()
    first, second, *later = [outcome.center_distance for outcome in setting.outcomes]
    assert first == pytest.approx(setting.flat.vector.numel() ** 0.5)
    assert second is None, "measured again before a hundred times its seconds have passed"
    assert 0 < sum(distance is not None for distance in later) < 3


def test_the_distance_is_not_measured_where_nobody_wants_it(setting: Setting) -> None:
    setting.begin()
    setting.exchange.finish()
    assert setting.outcomes[0].center_distance is None


@pytest.mark.parametrize("kind", ["at once", "by halves"])
def test_seconds_of_an_exchange_are_without_those_of_the_distance_which_hold_up_the_loop_too(
    watched: Watched, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr("hooke.exchange.time", clock)
    halves = {"collect_period": 1, "delivery_period": 1, "every_step": False}
    options = halves if kind == "by halves" else {}
    setting = Setting(watched, ByHalves if options else AtOnce, measures_distance=True, **options)

    def measures(x: Tensor) -> float:
        now[0] += 2.0
        return 7.0

    monkeypatch.setattr(watched, "distance", measures)
    setting.begin(subtract_now=True)
    assert setting.outcomes == [Outcome(0.0, 2.0, None, 7.0)]


@pytest.mark.parametrize("failure", [Refused("not finite"), ConnectionResetError("cut"), TimeoutError("late")])
def test_a_failure_that_may_happen_is_told_and_not_raised(setting: Setting, failure: Exception) -> None:
    setting.center.failure = failure  # type: ignore[attr-defined]
    setting.begin()
    setting.exchange.finish()
    (outcome,) = setting.outcomes
    assert outcome.failure is failure
    assert setting.c == AT_ZERO


@pytest.mark.parametrize("failure", [ZeroDivisionError("a bug"), KeyError("another")])
def test_a_failure_that_may_not_happen_is_raised(setting: Setting, failure: Exception) -> None:
    setting.center.failure = failure  # type: ignore[attr-defined]
    with pytest.raises(type(failure)):
        setting.begin()
        setting.exchange.finish()


def test_seconds_say_how_long_it_took_and_how_long_it_held_up_the_training(setting: Setting) -> None:
    setting.center.may_go.clear()  # type: ignore[attr-defined]
    timer = threading.Timer(0.05, setting.center.may_go.set)  # type: ignore[attr-defined]
    timer.start()
    setting.begin()
    timer.join()
    time.sleep(0.05)
    setting.exchange.finish()
    (outcome,) = setting.outcomes
    assert outcome.exchange_seconds >= 0.04
    if isinstance(setting.exchange, Overlapped):
        assert outcome.wait_seconds < outcome.exchange_seconds
    else:
        assert outcome.wait_seconds == outcome.exchange_seconds


def test_a_state_is_a_copy_that_comes_back(watched: Watched) -> None:
    setting = Setting(watched, AtOnce, Downpour())
    state = setting.exchange.state()
    setting.begin(subtract_now=True)
    assert not torch.equal(setting.exchange.memory[0], state["memory"][0])  # type: ignore[index]
    setting.exchange.load_state(state)
    assert not setting.exchange.memory[0].any()
    setting.exchange.memory[0].fill_(7)
    assert not state["memory"][0].any()  # type: ignore[index]


def test_halves_remember_what_they_were_told(watched: Watched) -> None:
    setting = halves(watched, 3)
    state = setting.exchange.state()
    assert state["told"].unique().tolist() == [0.5]  # type: ignore[union-attr]
    setting.exchange.told.zero_()  # type: ignore[attr-defined]
    setting.exchange.load_state(state)
    assert setting.exchange.told.unique().tolist() == [0.5]  # type: ignore[attr-defined]
