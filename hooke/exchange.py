"""HOW an exchange runs: at once, beside the next steps, or by halves. `worker` decides when."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hooke.center import Center
from hooke.flat import FlatParameters
from hooke.ranks import ranks_of
from hooke.rule import EASGD, Rule, State
from hooke.spec import Refused
from hooke.staging import WHOLE, Staging


@dataclass(frozen=True)
class Outcome:
    """What one exchange came to.

    Attributes:
        exchange_seconds: How long it took, wherever it ran, without the measurement of the distance.
        wait_seconds: How long it held up the training loop.
        failure: Why it did not happen, or `None`.
        center_distance: Euclidean distance of x from the center just before, where it was measured.
        busy_seconds: Processor time of the thread beside the training loop, where there is one; what other threads do
            for it (of the network, of torch) is not in it.
    """

    exchange_seconds: float
    wait_seconds: float
    failure: Exception | None = None
    center_distance: float | None = None
    busy_seconds: float = 0.0


FAILURES = (Refused, OSError)
"""What costs nothing but a longer period: the center refused, or can't be reached."""


class Exchange(ABC):
    """Carries out the exchanges of one worker.

    Args:
        flat: The worker's parameters.
        center: Where the center lives; joined already.
        rule: What is exchanged.
        told: The center's values that the worker has started from.
        done: Is told the outcome of each exchange.
        measures_distance: Whether to measure the distance from the center now and then.
    """

    def __init__(
        self,
        flat: FlatParameters,
        center: Center,
        rule: Rule,
        told: Tensor,
        *,
        done: Callable[[Outcome], None],
        measures_distance: bool = False,
    ) -> None:
        self.flat, self.center, self.rule = flat, center, rule
        self.ranks = ranks_of(center)
        self.staging = Staging(flat.vector, on_host=center.on_host)
        self.memory: State = rule.init(told)
        self._done = done
        self._distance_due = 0.0 if measures_distance and self.ranks.speaks else math.inf
        self._measures_always = False
        self._correction: tuple[Tensor, slice] | None = None

    @abstractmethod
    def begin(self, point: Callable[[], Tensor], *, subtract_now: bool, part: slice | None = None) -> None:
        """Exchange that part of `point()`, the worker's x; subtract the correction now, or when `after_step` comes.

        `None` is the whole. `point` may use the staging's scratch vector, so it is called only when no exchange is
        under way and nothing waits to be subtracted (a step that raised leaves its correction behind).
        """

    @property
    def is_under_way(self) -> bool:
        """Whether the exchange before runs still, so that one that begins now would be missed."""
        return False

    def after_step(self) -> None:
        """The optimizer has stepped: subtract what waits for that."""
        if self._correction is not None:
            self.flat.subtract_(*self._correction)
            self._correction = None

    def finish(self) -> None:
        """Wait for an exchange under way, so that nothing is owed."""
        self.after_step()

    def close(self) -> None:
        """Give back what the exchange holds."""

    def state(self) -> dict[str, Tensor | list[Tensor] | None]:
        """Copies of the vectors that this worker remembers."""
        return {"memory": [part.clone() for part in self.memory], "told": None}

    def load_state(self, state: dict[str, Tensor | list[Tensor] | None]) -> None:
        """Remember what `state` returned."""
        memory = state["memory"]
        assert isinstance(memory, list)
        for part, saved in zip(self.memory, memory, strict=True):
            part.copy_(saved)

    def _settle(self, correction: Tensor, subtract_now: bool, part: slice = WHOLE) -> None:
        if subtract_now:
            self.flat.subtract_(correction, part)
        else:
            self._correction = correction, part

    def _carried(self, point: Tensor, part: slice = WHOLE) -> Tensor:
        return point if self.staging.is_direct else self.staging.to_host(point, part)

    def _in_center(self, part: slice | None) -> tuple[State, dict[str, int]]:
        """What the worker remembers of that part, and how to tell the center where it lies."""
        if part is None:
            return self.memory, {}
        return tuple(vector[part] for vector in self.memory), {"start": part.start}

    def measure_always(self) -> None:
        """Measure the distance at every exchange, whatever it costs: a simulation must not depend on the clock."""
        self._measures_always = True

    def _measures_distance_now(self) -> bool:
        """So seldom that it costs at most a hundredth of the time: it is a pass over both vectors."""
        return self._measures_always or time.monotonic() >= self._distance_due

    def _distance(self, x: Tensor) -> tuple[float | None, float]:
        """The distance, and the seconds that it took to measure it.

        `None` where the center can't say: that is no reason to leave out the exchange.
        """
        began, distance = time.monotonic(), None
        with suppress(*FAILURES):
            distance = self.ranks.center.distance(x)
        now = time.monotonic()
        self._distance_due = now + 100 * (now - began)
        return distance, now - began


class AtOnce(Exchange):
    """The training loop waits for the exchange."""

    def begin(self, point: Callable[[], Tensor], *, subtract_now: bool, part: slice | None = None) -> None:
        """Exchange; in place and without any copy where the vector is the model's own memory on the CPU."""
        began = time.perf_counter()
        distance, measuring, failure, here = None, 0.0, None, part or WHOLE
        self.after_step()
        measures, (remembered, place) = self._measures_distance_now(), self._in_center(part)
        x = self._carried(point(), WHOLE if measures else here)
        try:
            distance, measuring = self._distance(x) if measures else (None, 0.0)
            if subtract_now and self.flat.is_view and x is self.flat.vector:
                self.center.exchange_(x[here], self.rule, remembered, **place)
            else:
                out = self.staging.scratch if self.staging.is_direct else x
                correction = self.center.exchange(x[here], self.rule, remembered, out=out[here], **place)
                self._settle(self.staging.to_device(correction, here), subtract_now, here)
        except FAILURES as error:
            failure = error
        seconds = time.perf_counter() - began
        self._done(Outcome(seconds - measuring, seconds, failure, distance))


class Overlapped(Exchange):
    """The exchange runs in a thread of its own, beside the next steps; one that comes due meanwhile is missed."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._thread: Executor = ThreadPoolExecutor(1, "hooke-exchange")
        self._under_way: Future[Outcome] | None = None
        self._part = WHOLE
        self._held_up = 0.0
        self._looks_before = True

    def run_by(self, executor: Executor) -> None:
        """Let `executor` run the exchanges, and not a thread of their own: a simulation has a clock of its own.

        There a correction is subtracted after a step only.
        """
        self._thread.shutdown()
        self._thread, self._looks_before = executor, False

    @property
    def is_under_way(self) -> bool:
        """Whether the thread is at work."""
        return self._under_way is not None and not self._under_way.done()

    def begin(self, point: Callable[[], Tensor], *, subtract_now: bool, part: slice | None = None) -> None:
        """Copy `point` and let the thread exchange it; the correction is subtracted by a later `after_step`.

        One that has come in since the last step is subtracted first, so that an exchange may take a whole period.
        """
        if self._looks_before:
            self.after_step()
        began = time.perf_counter()
        if self._under_way is not None:
            self._done(Outcome(0.0, 0.0, TimeoutError("the exchange before is still under way")))
            return
        self._part, measures = part or WHOLE, self._measures_distance_now()
        snapshot = self.staging.begin_copy(point(), WHOLE if measures else self._part)
        try:
            self.ranks.begin(self.staging.scratch[self._part], None if part is None else part.start)
        except FAILURES as error:
            self._done(Outcome(0.0, time.perf_counter() - began, error))
            return
        if self.ranks.speaks:
            self._under_way = self._thread.submit(self._exchange, snapshot, part, measures)
        else:
            self._under_way = Future()
            self._under_way.set_result(Outcome(0.0, 0.0))
        self._held_up = time.perf_counter() - began

    def after_step(self) -> None:
        """Subtract the correction if it has arrived."""
        if self._under_way is not None and self.ranks.agree(self._under_way.done()):
            self._collect(self._under_way)

    def finish(self) -> None:
        """Wait for the exchange under way and subtract its correction."""
        if self._under_way is not None and self.ranks.agree(True, finishing=True):
            self._collect(self._under_way)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _exchange(self, snapshot: Tensor, part: slice | None, measures: bool) -> Outcome:
        """In the thread: exchange, and begin to bring the correction to its place in `staging.scratch`."""
        began = time.perf_counter()
        here, (remembered, place) = part or WHOLE, self._in_center(part)
        with torch.no_grad():
            self.staging.wait_copied()
            distance, measuring = self._distance(snapshot) if measures else (None, 0.0)
            busy, x = time.thread_time(), snapshot[here]
            correction = self.ranks.center.exchange(x, self.rule, remembered, out=x, **place)
            self.staging.begin_return(correction, here)
            busy = time.thread_time() - busy
        return Outcome(time.perf_counter() - began - measuring, 0.0, None, distance, busy)

    def _collect(self, under_way: Future[Outcome]) -> None:
        began = time.perf_counter()
        self._under_way = None
        failure = under_way.exception()
        if failure is not None and not isinstance(failure, Exception):
            raise failure
        self.staging.wait_returned()
        correction = self.staging.scratch[self._part]
        try:
            self.ranks.share(failure, (correction, *(vector[self._part] for vector in self.memory)))
        except FAILURES as error:
            self._done(Outcome(0.0, self._held_up, error))
            return
        outcome = under_way.result()
        self.flat.subtract_(correction, self._part)
        waited = self._held_up + time.perf_counter() - began
        self._done(replace(outcome, wait_seconds=waited))


class ByHalves(Exchange):
    """The two directions at periods of their own, as the first description of the method has it.

    Every `collect_period` steps the center absorbs alpha * (x - center). Every `delivery_period` steps the worker is
    told the center. The spring pulls x by alpha * (x - told): when the center is delivered, or at every step.
    """

    def __init__(self, *args: object, collect_period: int, delivery_period: int, every_step: bool, **kwargs: object):
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._collect_period, self._delivery_period, self._every_step = collect_period, delivery_period, every_step
        self.told = self.center.pull()
        self._step = 0

    def at(self, step: int) -> ByHalves | None:
        """This exchange if something is due at `step`."""
        self._step = step
        due = self._every_step or step % self._collect_period == 0 or step % self._delivery_period == 0
        return self if due else None

    def begin(self, point: Callable[[], Tensor], *, subtract_now: bool, part: slice | None = None) -> None:
        """Collect, deliver and pull, whichever is due."""
        assert isinstance(self.rule, EASGD)
        began = time.perf_counter()
        collects, delivers = self._step % self._collect_period == 0, self._step % self._delivery_period == 0
        self.after_step()
        x = self._carried(point())
        distance, measuring, failure, pull = None, 0.0, None, None
        try:
            if delivers:
                self.center.pull(self.told)
            if delivers or self._every_step:
                pull = self.rule.bind(self.center.counted_workers).delta(x, self.told, ())
            if collects:
                distance, measuring = self._distance(x) if self._measures_distance_now() else (None, 0.0)
                self.center.exchange(x, self.rule, out=self.staging.scratch if self.staging.is_direct else x)
        except FAILURES as error:
            failure = error
        if pull is not None:
            self._settle(self.staging.to_device(pull), subtract_now)
        if collects or delivers:
            seconds = time.perf_counter() - began
            self._done(Outcome(seconds - measuring, seconds, failure, distance))

    def state(self) -> dict[str, Tensor | list[Tensor] | None]:
        """Copies of the vectors that this worker remembers."""
        return {**super().state(), "told": self.told.clone()}

    def load_state(self, state: dict[str, Tensor | list[Tensor] | None]) -> None:
        """Remember what `state` returned."""
        super().load_state(state)
        if isinstance(state["told"], Tensor):  # other periods remember none: the worker was told when it started
            self.told.copy_(state["told"])
