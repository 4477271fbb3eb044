"""Who exchanges with the center when: a discrete-event simulation, without any parameters."""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from hooke.simulate.cluster import Cluster
from hooke.simulate.pace import TICKS, Leg, Pace, stream, ticks

Kind = Literal["exchange", "missed", "died", "joined", "left"]
_JOINS, _DIES = -2, -1  # before whatever else the worker has to do at that moment
_NEVER = 1 << 100
_NOTHING = Leg(0, ())


class Event(NamedTuple):
    """Something that happened to one worker. Times are seconds of the virtual clock.

    Attributes:
        kind: `"exchange"`; `"missed"`: one that came due while the last was under way, or was lost; `"died"`;
            `"joined"`: a fresh process, whose steps count from 0 again; `"left"`: all its steps are taken, or the
            horizon has come.
        worker: Its number.
        step: Steps that the worker had taken when the event began.
        begun: When it began.
        absorbed: When the center had taken in the whole vector. For `"missed"`, when it had taken in the one under way,
            if that is later than `begun`; so a worker's events keep their order. For other kinds `begun`.
        settled: When the correction had come back; inf if the worker died before, or the run ended.
        settled_step: Steps that the worker has taken when the correction is subtracted; `step` where it waits.
        workers: Live workers when absorbed, of a ring those that took part; for who joined, died or left, afterwards.
        ran: The steps that it took since its event before.
    """

    kind: Kind
    worker: int
    step: int
    begun: float
    absorbed: float
    settled: float
    settled_step: int
    workers: int
    ran: Leg

    @property
    def ends(self) -> np.ndarray:
        """Seconds at which the steps ended that this worker took since its event before, up to `step`."""
        return self.ran.seconds()


def timeline(
    cluster: Cluster,
    *,
    values: int,
    communication_period: int,
    steps: int | None = None,
    seconds: float | None = None,
    overlap: bool = False,
    synchronous: bool = False,
    bits: float = 32,
    seed: int = 0,
) -> Iterator[Event]:
    """All events of a run in the order of `absorbed`, then of the worker's number; the same for the same seed.

    At one moment, deaths and joinings come first.

    Each worker exchanges at its step 0, then whenever the period divides its own count of steps, before that step. An
    exchange sends the vector up and brings one down. What several workers send at once waits in the center's link,
    first come, first served; with t seconds for a vector, l of latency and k shards,

        absorbed = max(free, begun + l) + t      settled = absorbed + t / k + l

    (with k > 1 the link of each shard is busy for t / k, and pieces come back while the next are on their way). An
    exchange that a death cuts short before it is absorbed never happens.

    Args:
        cluster: Speeds, links, failures.
        values: In the vector.
        communication_period: Steps between two exchanges of a worker.
        steps: That each worker takes; give this or `seconds`.
        seconds: When the run ends; a worker that has not settled by then never does.
        overlap: Whether workers step on during an exchange. The correction is subtracted after the first step that ends
            after it came; an exchange that comes due before that is missed. Otherwise workers wait.
        synchronous: All live workers wait for each other, then exchange in one ring all-reduce, which takes
            `2 (p - 1) (t / p + l)` and no center.
        bits: Of a value on the wire.
        seed: Of all random numbers. A worker's depend on the seed and its number alone.

    Raises:
        ValueError: Settings that contradict each other.

    Example:
        >>> pair = Cluster(num_workers=2, step_seconds=0.1, bandwidth=1e9)
        >>> for event in timeline(pair, values=1_000_000, communication_period=10, steps=11):
        ...     print(event.kind, event.worker, event.step, event.begun, event.absorbed, event.settled)
        exchange 0 0 0.0 0.032 0.064
        exchange 1 0 0.0 0.064 0.096
        exchange 0 10 1.064 1.096 1.128
        exchange 1 10 1.096 1.128 1.16
        left 0 11 1.228 1.228 1.228
        left 1 11 1.26 1.26 1.26
    """
    if (steps is None) == (seconds is None):
        raise ValueError(f"timeline: give steps or seconds, not both. Got steps={steps}, seconds={seconds}. Give one.")
    if communication_period < 1:
        raise ValueError(f"timeline: communication_period must be at least 1. Got {communication_period}. Use e.g. 10.")
    if synchronous and (overlap or cluster.shards > 1 or cluster.lost):
        raise ValueError(
            f"timeline: synchronous=True needs overlap=False, shards=1 and lost=0. Got overlap={overlap}, "
            f"shards={cluster.shards}, lost={cluster.lost}. A ring of workers has no center; drop synchronous or those."
        )
    course = _Ring if synchronous else _Overlapping if overlap else _Waiting
    return course(cluster, values * bits / cluster.bandwidth, communication_period, steps, seconds, seed).events()


class _Worker:
    __slots__ = (
        "ahead",
        "dies",
        "finished",
        "here",
        "leg",
        "life",
        "lost",
        "number",
        "pace",
        "settled",
        "step",
        "told",
        "untold",
    )

    def __init__(self, cluster: Cluster, number: int, period: int, seed: int) -> None:
        self.number = number
        self.pace = Pace(cluster, number, period, seed)
        self.lost = stream(seed, number, 2) if cluster.lost else None
        self.step = 0  # at the end of its leg
        self.leg, self.ahead = _NOTHING, deque[Leg]()
        self.settled = self.told = 0  # the last exchange: when it has settled, when it was absorbed
        self.untold = _NOTHING  # steps before an exchange that never was
        self.here, self.finished, self.life = True, False, 0
        self.dies = _NEVER

    def ran(self, until: int) -> tuple[int, Leg]:
        """Steps taken by then, and those of its leg."""
        done = bisect_right(self.leg.ends, until - self.leg.start)
        return self.step - len(self.leg.ends) + done, Leg(self.leg.start, self.leg.ends[:done])


class _Waiting:
    """The star: an event is on the heap once for each leg of a worker, at the leg's end."""

    def __init__(
        self, cluster: Cluster, transfer: float, period: int, steps: int | None, seconds: float | None, seed: int
    ) -> None:
        self.cluster, self.period = cluster, period
        self.steps = _NEVER if steps is None else steps
        self.horizon = _NEVER if seconds is None else ticks(seconds)
        self.transfer, self.latency = ticks(transfer), ticks(cluster.latency)
        self.piece = ticks(transfer / cluster.shards)
        self.free = 0
        self.workers = [_Worker(cluster, number, period, seed) for number in range(cluster.num_workers)]
        for worker in self.workers:
            worker.dies = self.horizon + 1
        self.here = self.live = cluster.num_workers  # on the heap's clock; among the events told
        self.heap = [(0, number, 0) for number in range(cluster.num_workers)]
        self.told: list[tuple] = []
        self.count = 0
        for number in {each.worker for each in cluster.failures}:
            for each in cluster.failures_of(number):
                heapq.heappush(self.heap, (ticks(each.at), number, _DIES))
                if each.back is not None:
                    heapq.heappush(self.heap, (ticks(each.back), number, _JOINS))
            self._next_death(self.workers[number], -1)

    def events(self) -> Iterator[Event]:
        heap, told, horizon = self.heap, self.told, self.horizon
        while heap and heap[0][0] <= horizon:
            now, number, what = heapq.heappop(heap)
            while told and told[0][0] < now:
                yield self._tell()
            worker = self.workers[number]
            if what == worker.life:
                self._due(worker, now)
            elif what == _DIES:
                self._die(worker, now)
            elif what == _JOINS:
                self._join(worker, now)
        while told:
            yield self._tell()
        for worker in self.workers:
            if worker.here:
                step, ran = worker.ran(horizon)
                self._note("left", worker, step, horizon, ran)
                yield self._tell()

    def _tell(self) -> Event:
        absorbed, _, number, _, kind, step, begun, settled, settled_step, workers, ran = heapq.heappop(self.told)
        if kind == "joined":
            self.live += 1
        elif kind in ("died", "left"):
            self.live -= 1
        settled = math.inf if settled is None else settled / TICKS
        return Event(
            kind, number, step, begun / TICKS, absorbed / TICKS, settled, settled_step, workers or self.live, ran
        )

    def _note(
        self, kind: Kind, worker: _Worker, step: int, begun: int, ran: Leg, *, absorbed: int = 0,
        settled: int | None = 0, settled_step: int | None = None, workers: int = 0,
    ) -> None:  # fmt: skip
        self.count += 1
        if len(worker.untold.ends):
            ran, worker.untold = _joined(worker.untold, ran), _NOTHING
        first = kind not in ("died", "joined")
        settled = begun if settled == 0 else settled
        when, step_then = max(begun, absorbed), step if settled_step is None else settled_step
        heapq.heappush(
            self.told, (when, first, worker.number, self.count, kind, step, begun, settled, step_then, workers, ran)
        )

    def _note_exchange(
        self, worker: _Worker, begun: int, absorbed: int, settled: int, step: int, settled_step: int, ran: Leg,
        workers: int = 0,
    ) -> None:  # fmt: skip
        if absorbed >= worker.dies:
            worker.untold = _joined(worker.untold, ran)
            return
        worker.told = absorbed
        back = None if settled >= worker.dies else settled
        self._note(
            "exchange", worker, step, begun, ran, absorbed=absorbed, settled=back, settled_step=settled_step,
            workers=workers,
        )  # fmt: skip

    # What comes due ---------------------------------------------------------------------------------------------

    def _due(self, worker: _Worker, now: int) -> None:
        step, ran = worker.step, worker.leg
        if step >= self.steps:
            worker.finished = True
            self._note("left", worker, step, max(now, worker.settled), ran)
            self._leave(worker, now)
        elif worker.settled > now or (worker.lost and worker.lost.random() < self.cluster.lost):
            self._miss(worker, now, step, ran)
        else:
            self._exchange(worker, now, step, ran)

    def _miss(self, worker: _Worker, now: int, step: int, ran: Leg) -> None:
        self._note("missed", worker, step, now, ran, absorbed=worker.told)
        self._run(worker, now)

    def _send(self, now: int) -> tuple[int, int]:
        """When the center has absorbed what begins now, and when the correction has come."""
        self.free = max(self.free, now + self.latency) + self.piece
        absorbed = self.free + self.transfer - self.piece
        return absorbed, absorbed + self.piece + self.latency

    def _exchange(self, worker: _Worker, now: int, step: int, ran: Leg) -> None:
        absorbed, settled = self._send(now)
        self._note_exchange(worker, now, absorbed, settled, step, step, ran)
        self._run(worker, settled)

    def _run(self, worker: _Worker, now: int) -> None:
        worker.leg = leg = self._next_leg(worker, now)
        worker.step += len(leg.ends)
        heapq.heappush(self.heap, (leg.end, worker.number, worker.life))

    def _next_leg(self, worker: _Worker, now: int) -> Leg:
        return worker.pace.leg(now, min(self.period, self.steps - worker.step))

    # Who comes and goes -----------------------------------------------------------------------------------------

    def _die(self, worker: _Worker, now: int) -> None:
        if worker.here:
            step, ran = worker.ran(now)
            worker.life += 1
            self._note("died", worker, step, now, ran)
            self._leave(worker, now)
        self._next_death(worker, now)

    def _join(self, worker: _Worker, now: int) -> None:
        if worker.finished:
            return
        worker.here, worker.step, worker.settled, worker.told = True, 0, now, now
        worker.leg = Leg(now, ())
        worker.ahead.clear()
        self.here += 1
        self._note("joined", worker, 0, now, worker.leg)
        heapq.heappush(self.heap, (now, worker.number, worker.life))

    def _leave(self, worker: _Worker, now: int) -> None:
        worker.here = False
        self.here -= 1

    def _next_death(self, worker: _Worker, now: int) -> None:
        deaths = (ticks(each.at) for each in self.cluster.failures_of(worker.number))
        worker.dies = next((at for at in deaths if at > now), self.horizon + 1)


def _joined(one: Leg, other: Leg) -> Leg:
    """Both, one after the other."""
    if not len(one.ends):
        return other
    later = [other.start - one.start + int(end) for end in other.ends]
    return Leg(one.start, [*(int(end) for end in one.ends), *later])


class _Overlapping(_Waiting):
    """The star whose workers step on: their legs do not depend on the exchanges, so they are known ahead."""

    def _exchange(self, worker: _Worker, now: int, step: int, ran: Leg) -> None:
        absorbed, worker.settled = self._send(now)
        settled_step = self._step_after(worker, now, worker.settled)
        self._note_exchange(worker, now, absorbed, worker.settled, step, settled_step, ran)
        self._run(worker, now)

    def _step_after(self, worker: _Worker, now: int, settled: int) -> int:
        """Steps taken once the first that ends at `settled` or later has ended, or all of them."""
        step, start = worker.step, now
        for index in itertools.count():
            if step >= self.steps:
                return step
            if index == len(worker.ahead):
                worker.ahead.append(worker.pace.leg(start, min(self.period, self.steps - step)))
            leg = worker.ahead[index]
            if leg.end >= settled:
                return step + 1 + bisect_left(leg.ends, settled - leg.start)
            step, start = step + len(leg.ends), leg.end
        raise AssertionError

    def _next_leg(self, worker: _Worker, now: int) -> Leg:
        return worker.ahead.popleft() if worker.ahead else super()._next_leg(worker, now)


class _Ring(_Waiting):
    """Whoever comes waits until all live workers are there."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.waiting: list[tuple[_Worker, int, int, Leg]] = []

    def _exchange(self, worker: _Worker, now: int, step: int, ran: Leg) -> None:
        self.waiting.append((worker, now, step, ran))
        self._reduce(now)

    def _leave(self, worker: _Worker, now: int) -> None:
        super()._leave(worker, now)
        self.waiting = [each for each in self.waiting if each[0] is not worker]
        self._reduce(now)

    def _reduce(self, now: int) -> None:
        if not self.waiting or len(self.waiting) < self.here:
            return
        hops = 2 * (self.here - 1)
        settled = now + round(hops * self.transfer / self.here) + hops * self.latency
        part = sum(settled < each[0].dies for each in self.waiting)
        for worker, begun, step, ran in sorted(self.waiting, key=lambda each: each[0].number):
            self._note_exchange(worker, begun, settled, settled, step, step, ran, workers=part)
            self._run(worker, settled)
        self.waiting = []
