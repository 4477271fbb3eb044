"""The period by measurement: where theory says, steady, bounded; with real workers on a virtual and on a real clock."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hooke.center import LocalCenter
from hooke.exchange import Outcome
from hooke.pacing import FIRST, HEADROOM, KEPT, LONGEST, SHARE, SLACK, Choice, Pace
from hooke.record import read
from hooke.rule import EAMSGD, EASGD, Rule
from hooke.run import Run
from hooke.schedule import Schedule
from hooke.worker import Worker


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


Seconds = float | Callable[[int], float]


def at(seconds: Seconds, k: int) -> float:
    return seconds(k) if callable(seconds) else seconds


class Track:
    """A pace and the worker that it has: steps and exchanges take as long as it is told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pace = Pace(self.clock)
        self.step = self.exchanges = self.delayed = 0
        self.choices: list[Choice] = []
        self._under_way: tuple[float, Outcome] | None = None

    def run(
        self,
        steps: int,
        *,
        step: Seconds,
        exchange: Seconds,
        busy: float = 0.0,
        wait: float = 0.0,
        failure: Exception | None = None,
    ) -> int:
        """The period at the end."""
        for k in range(steps):
            if self.pace.due(self.step) is not None:
                if self._under_way is None:
                    self.pace.begun(self.step)
                    took = at(exchange, self.exchanges)
                    self.exchanges += 1
                    self.clock.now += wait
                    self._under_way = self.clock.now + took, Outcome(took, wait, failure, None, busy)
                else:
                    self.delayed += 1
            self.clock.now += at(step, k)
            if self._under_way is not None and self._under_way[0] <= self.clock.now + 1e-9:
                self.pace.exchanged(self._under_way[1])
                self._under_way = None
            choice = self.pace.stepped()
            self.step += 1
            if choice is not None:
                self.choices.append(choice)
        return self.pace.period


def theory(step: float, exchange: float) -> int:
    return math.ceil(round(HEADROOM * exchange / step, 6))


def delays(period: int, step: float, exchange: float) -> int:
    """How often an exchange came due while the one before was under way, counted one by one."""
    track = Track()
    track.pace.load_state({"period": period, "begun": None, "has_chosen": True})
    track.pace.stepped = lambda: None  # type: ignore[method-assign]
    track.run(20 * period, step=step, exchange=exchange)
    return track.delayed


# Where it settles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "exchange"), [(0.01, 0.0003), (0.01, 0.0085), (0.01, 0.0137), (0.1, 1.6), (2.0, 0.5), (0.003, 0.5)]
)
def test_it_settles_at_the_smallest_period_that_hides_exchanges_and_a_tenth_more(step: float, exchange: float) -> None:
    track = Track()
    assert track.run(8000, step=step, exchange=exchange) == theory(step, exchange)
    assert len(track.choices) == 1
    smallest = next(period for period in range(1, 10_000) if not delays(period, step, exchange))
    assert smallest <= track.pace.period <= HEADROOM * smallest + 1


def test_it_begins_with_ten_and_chooses_after_three_measurements_of_each() -> None:
    track = Track()
    assert track.run(2 * FIRST, step=0.1, exchange=0.45) == FIRST
    assert track.choices == []
    assert track.run(2 * FIRST, step=0.1, exchange=0.45) == 5


def test_what_exchanges_take_from_the_processor_is_a_small_share() -> None:
    track = Track()
    assert track.run(3000, step=0.01, exchange=0.004, busy=0.003, wait=0.001) == math.ceil(1.1 * 0.004 / SHARE / 0.01)
    assert (0.003 + 0.001) / (track.pace.period * 0.01) < SHARE


def test_what_an_exchange_holds_up_the_loop_is_no_part_of_a_step() -> None:
    track = Track()
    track.run(5000, step=0.01, exchange=0.005, wait=0.005)
    assert track.choices[-1].step_seconds == pytest.approx(0.01)


def test_it_is_bounded_and_a_longer_exchange_delays_the_next() -> None:
    track = Track()
    assert track.run(100_000, step=0.001, exchange=20.0) == LONGEST
    assert track.exchanges == pytest.approx(100_000 * 0.001 / 20.0, abs=1)
    (choice,) = track.choices
    assert choice.why == (
        "An exchange takes 2e+04 ms, as long as 2e+04 steps of 1 ms; with headroom it is hidden behind 10000. 10000 is "
        "the longest period."
    )


def test_workers_of_other_speed_choose_other_periods() -> None:
    quick, slow = Track(), Track()
    assert quick.run(3000, step=0.01, exchange=0.3) == 33
    assert slow.run(3000, step=0.05, exchange=0.3) == 7


# How it follows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [((0.01, 0.3), (0.01, 1.5)), ((0.01, 1.5), (0.01, 0.3)), ((0.01, 0.3), (0.04, 0.3)),
                          ((0.04, 0.3), (0.01, 0.3))]
)  # fmt: skip
def test_it_follows_a_link_and_steps_that_change(before: tuple[float, float], after: tuple[float, float]) -> None:
    track = Track()
    assert track.run(3000, step=before[0], exchange=before[1]) == theory(*before)
    period = track.run(5000, step=after[0], exchange=after[1])
    assert SLACK * period <= theory(*after) <= period
    assert track.choices[-1].exchange_seconds == after[1]


def test_what_is_far_off_once_changes_nothing() -> None:
    """A stalled exchange, an evaluation between two steps, the slow start of both."""
    track = Track()
    track.run(
        9000,
        step=lambda k: 30.0 if k % 1000 == 700 or k == 1 else 0.01,
        exchange=lambda k: 9.0 if k % 10 == 0 else 0.3,
    )
    assert [choice.period for choice in track.choices] == [33]


@pytest.mark.parametrize(("uneven", "most"), [(0.1, 0), (0.2, 25)])
def test_it_does_not_flap(uneven: float, most: int) -> None:
    """Changes in 2500 exchanges, each step and each exchange longer or shorter by so much."""
    random = np.random.default_rng(0)
    track = Track()
    kinds: dict[str, Seconds] = {
        "step": lambda _: 0.01 * random.uniform(1 - uneven, 1 + uneven),
        "exchange": lambda _: 0.3 * random.uniform(1 - uneven, 1 + uneven),
    }
    track.run(3000, **kinds)
    settled = len(track.choices)
    track.run(100_000, **kinds)
    assert track.exchanges > 2500
    assert len(track.choices) - settled <= most
    assert all(28 <= choice.period <= 40 for choice in track.choices)


def test_a_failed_exchange_is_no_measurement() -> None:
    track = Track()
    track.run(3000, step=0.01, exchange=0.3)
    assert track.run(3000, step=0.01, exchange=5.0, failure=ConnectionResetError("cut")) == 33
    assert track.run(3000, step=0.01, exchange=0.0, failure=ConnectionResetError("cut")) == 33
    never = Track()
    assert never.run(3000, step=0.01, exchange=0.0, failure=ConnectionResetError("cut")) == FIRST


def test_what_is_due_goes_on_being_due_until_it_has_begun() -> None:
    pace = Pace()
    assert pace.due(0) == 0
    pace.begun(0)
    assert [step for step in range(14) if pace.due(step) is not None] == [10, 11, 12, 13]
    pace.begun(13)
    assert [step for step in range(30) if pace.due(step) is not None] == list(range(23, 30))


def test_a_pause_between_two_starts_is_no_step() -> None:
    track = Track()
    track.run(1000, step=0.01, exchange=0.3)
    for _ in range(10):
        track.pace.rest()
        track.clock.now += 1000
        track.run(100, step=0.01, exchange=0.3)
    assert [choice.period for choice in track.choices] == [33]
    assert max(track.pace._steps) == pytest.approx(0.01)


def test_a_state_goes_on_with_the_period_and_measures_anew() -> None:
    track = Track()
    track.run(1000, step=0.01, exchange=0.3)
    other = Track()
    other.pace.load_state(track.pace.state())
    other.step = track.step
    assert other.run(3000, step=0.01, exchange=0.3) == 33
    assert other.choices == []
    assert other.run(3000, step=0.01, exchange=0.6) == 66


# A worker on a virtual clock -----------------------------------------------------------------------------------------


class Link(Executor):
    """In the place of the exchange's thread: the result is there when the virtual clock has come to its end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way: tuple[float, Future[Any], Any] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        began, future, answer = self._clock.now, Future[Any](), Future[Any]()
        try:
            answer.set_result(fn(*args, **kwargs))  # moves the clock
        except OSError as error:
            answer.set_exception(error)
        self._under_way, self._clock.now = (self._clock.now, future, answer), began
        return future

    def arrive(self, *, by: float) -> None:
        if self._under_way is not None and self._under_way[0] <= by + 1e-9:
            (_, future, answer), self._under_way = self._under_way, None
            if answer.exception() is None:
                future.set_result(answer.result())
            else:
                future.set_exception(answer.exception())


class Far(LocalCenter):
    """An exchange takes as long as it is told, or fails."""

    seconds = 0.0
    is_cut = False
    sleep = staticmethod(time.sleep)

    def exchange(self, *args: Any, **options: Any) -> Any:
        self.sleep(self.seconds)
        if self.is_cut:
            raise ConnectionResetError("the link is cut")
        return super().exchange(*args, **options)


class Virtual:
    """A worker whose steps take virtual seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rule: Rule | None = None, **options: Any) -> None:
        self.clock, self.center = Clock(), Far()
        self.link = Link(self.clock)
        times = SimpleNamespace(perf_counter=self.clock, monotonic=lambda: 0.0, thread_time=lambda: 0.0)
        monkeypatch.setattr("hooke.exchange.time", times)
        monkeypatch.setattr("hooke.exchange.ThreadPoolExecutor", lambda *_: self.link)
        self.center.sleep = self._pass  # type: ignore[method-assign]
        self.model = nn.Linear(3, 1)
        options = {"overlap": True, "communication_period": "auto", **options}
        momentum = 0.9 if isinstance(rule, EAMSGD) else 0.0
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=momentum, nesterov=momentum > 0)
        self.worker = Worker(self.model, optimizer, rule or EASGD(moving_rate=0.25), center=self.center, **options)
        assert self.worker._pace is not None
        self.worker._pace._clock = self.clock
        self.begun: list[int] = []

    def _pass(self, seconds: float) -> None:
        self.clock.now += seconds

    def train(self, steps: int, seconds: float) -> int:
        """The period at the end."""
        for _ in range(steps):
            before = self.center.exchanges
            self.clock.now += seconds
            self.link.arrive(by=self.clock.now)
            self.worker.optimizer.zero_grad()
            self.model(torch.ones(1, 3)).square().mean().backward()
            self.worker.optimizer.step()
            if self.center.exchanges > before:
                self.begun.append(self.worker.steps - 1)
        return self.worker.communication_period

    def end(self) -> None:
        self.link.arrive(by=math.inf)
        self.worker.stop()
        self.center.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def prepare(**settings: Any) -> None:
        told = Run(str(tmp_path), str(tmp_path / "center"), worker=0, num_workers=1, started=0.0, **settings)
        for name, value in told.environment().items():
            monkeypatch.setenv(name, value)

    prepare()
    yield prepare


def rows_of(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read(tmp_path / "workers" / "0.jsonl") if row["name"] == name]


@pytest.mark.parametrize(
    "rule", [EASGD(moving_rate=0.25), EASGD(moving_rate=0.25, order="gauss-seidel"), EAMSGD(moving_rate=0.25)]
)
def test_a_worker_settles_where_theory_says_and_follows_its_link(
    rule: Rule, monkeypatch: pytest.MonkeyPatch, run: Callable, tmp_path: Path
) -> None:
    virtual = Virtual(monkeypatch, rule)
    virtual.worker.start()
    periods = []
    for seconds in (0.5, 2.0, 0.25):
        virtual.center.seconds = seconds
        periods.append(virtual.train(400, 0.1))
        assert virtual.worker._watch._phases[-1][1] == periods[-1]
    virtual.end()
    assert periods == [theory(0.1, 0.5), theory(0.1, 2.0), theory(0.1, 0.25)] == [6, 22, 3]
    told, seconds = rows_of(tmp_path, "communication_period"), rows_of(tmp_path, "step_seconds")
    assert [row["value"] for row in told] == periods
    assert [row["value"] for row in seconds] == pytest.approx([0.1] * 3)
    assert [row["step"] for row in told] == [row["step"] for row in seconds]
    assert (
        told[1]["note"]
        == "An exchange takes 2e+03 ms, as long as 20 steps of 100 ms; with headroom it is hidden behind 22."
    )
    gaps = np.diff(virtual.begun)
    assert set(gaps[-30:]) == {3}
    assert set(gaps[:3]) == {FIRST}
    assert rows_of(tmp_path, "missed") == []  # a late one was only delayed


def test_an_exchange_may_take_a_whole_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes in between two steps is subtracted before the next begins."""
    virtual = Virtual(monkeypatch)
    virtual.center.seconds = 0.09
    virtual.worker.start()
    assert virtual.train(400, 0.1) == 1
    assert virtual.begun[-100:] == list(range(300, 400))
    virtual.end()


def test_a_worker_that_is_started_again_does_not_count_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual = Virtual(monkeypatch)
    virtual.center.seconds = 0.5
    pace = virtual.worker._pace
    assert pace is not None
    for _ in range(9):
        virtual.worker.start()
        assert virtual.train(60, 0.1) in (FIRST, 6)
        virtual.link.arrive(by=math.inf)
        virtual.worker.stop()
        virtual.clock.now += 1000.0
    assert virtual.worker.communication_period == 6
    assert max(pace._steps) == pytest.approx(0.1)
    virtual.center.close()


def test_a_link_that_is_cut_teaches_nothing(monkeypatch: pytest.MonkeyPatch, run: Callable, tmp_path: Path) -> None:
    virtual = Virtual(monkeypatch)
    virtual.center.seconds = 0.5
    virtual.worker.start()
    assert virtual.train(300, 0.1) == 6
    virtual.center.is_cut, virtual.center.seconds = True, 9.0
    assert virtual.train(600, 0.1) == 6
    virtual.center.is_cut, virtual.center.seconds = False, 0.5
    assert virtual.train(300, 0.1) == 6
    virtual.end()
    assert [row["value"] for row in rows_of(tmp_path, "communication_period")] == [6]
    assert {row["note"] for row in rows_of(tmp_path, "missed")} == {"the link is cut"}


def test_a_resumed_worker_goes_on_with_its_period(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    virtual = Virtual(monkeypatch)
    virtual.center.seconds = 2.0
    virtual.worker.start()
    assert virtual.train(500, 0.1) == 22
    virtual.link.arrive(by=math.inf)
    virtual.worker.save(epoch=1)
    last = virtual.begun[-1]
    virtual.end()

    run(resume=True)
    resumed = Virtual(monkeypatch)
    resumed.center.seconds = 2.0
    with resumed.worker as worker:
        assert worker.communication_period == FIRST
        assert worker.restore() == {"epoch": 1}
        assert worker.communication_period == 22
        assert resumed.train(500, 0.1) == 22
        resumed.link.arrive(by=math.inf)
    assert resumed.begun[:2] == [last + 22, last + 44]
    resumed.center.close()


def test_a_state_fits_a_worker_with_a_period_of_its_own_and_the_other_way_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    virtual, center = Virtual(monkeypatch), LocalCenter()
    model = nn.Linear(3, 1)
    fixed = Worker(model, torch.optim.SGD(model.parameters(), lr=0.1), EASGD(moving_rate=0.25), center=center)
    with fixed, virtual.worker:
        fixed.load_state_dict(virtual.worker.state_dict())
        virtual.worker.load_state_dict(fixed.state_dict())
        assert virtual.worker.communication_period == fixed.communication_period == FIRST
    center.close()
    virtual.center.close()


def test_a_worker_tells_the_period_that_it_has_now() -> None:
    model, center = nn.Linear(3, 1), LocalCenter()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def worker(**options: Any) -> Worker:
        return Worker(model, optimizer, EASGD(), center=center, **options)

    assert worker(communication_period=7).communication_period == 7
    assert worker(collect_period=3).communication_period == 3
    with worker(communication_period={0: 1, 3: 16}) as phased:
        seen = []
        for _ in range(5):
            seen.append(phased.communication_period)
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    assert seen == [1, 1, 1, 16, 16]
    center.close()


def test_ranks_that_exchange_at_once_need_a_period_that_all_know() -> None:
    center: Any = SimpleNamespace(is_synchronous=True)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    auto = (
        'Worker: communication_period="auto" needs a center where each worker exchanges on its own. Got '
        "SimpleNamespace, where all ranks exchange at once. Set a whole number of steps and drop overlap, or use "
        "LocalCenter."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(auto)}$"):
        Worker(model, optimizer, EASGD(), center=center, overlap=True, communication_period="auto")
    plain = (
        "Worker: overlap needs a center where each worker exchanges on its own. Got SimpleNamespace, where all ranks "
        "exchange at once. Drop overlap, or use LocalCenter."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(plain)}$"):
        Worker(model, optimizer, EASGD(), center=center, overlap=True)


def test_ranks_of_one_worker_need_a_period_that_all_know_too() -> None:
    center: Any = SimpleNamespace(is_synchronous=False, ranks=SimpleNamespace(size=2))
    model = nn.Linear(3, 1)
    sentence = (
        'Worker: communication_period="auto" needs a worker that is one process. Got one of 2 ranks, whose '
        "clocks differ. Set a whole number of steps."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Worker(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            EASGD(),
            center=center,
            overlap=True,
            communication_period="auto",
        )


def test_in_words_it_is_auto() -> None:
    assert str(Pace()) == "period auto, 1 fragment"
    assert str(Schedule.of(3)) == "period 3, 1 fragment"


# A worker on the real clock ------------------------------------------------------------------------------------------


def test_with_a_thread_and_a_link_that_sleeps_it_follows_too(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a sleep takes is this machine's affair: periods are judged by the rows beside them."""
    monkeypatch.setattr("hooke.pacing.SHARE", 1e6)  # on a busy machine, what it takes from the processor says nothing
    center, model = Far(), nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def train_until(reached: Callable[[int], bool]) -> int:
        for _ in range(4000):
            time.sleep(0.004)
            model(torch.ones(1, 3)).square().mean().backward()
            optimizer.step()
            if worker.steps > 50 and reached(worker.communication_period):
                return worker.communication_period
        raise AssertionError(f"still {worker.communication_period}")

    center.seconds = 0.25
    with Worker(model, optimizer, EASGD(), center=center, overlap=True, communication_period="auto") as worker:
        slow = train_until(lambda period: period > FIRST)
        center.seconds = 0.02
        quick = train_until(lambda period: period < slow / 2)
        center.seconds = 0.25
        train_until(lambda period: period > 2 * quick)
    center.close()
    exchanges = rows_of(tmp_path, "exchange_seconds")
    for told, step in zip(rows_of(tmp_path, "communication_period"), rows_of(tmp_path, "step_seconds"), strict=True):
        last = [row["value"] for row in exchanges if row["step"] <= told["step"]][-KEPT:]
        assert told["value"] == theory(step["value"], float(np.median(last)))
