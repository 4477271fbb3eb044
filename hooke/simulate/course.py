"""The course of a simulated run, event by event: whole nanoseconds on a heap, one entry for each leg of a worker."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Any

from hooke.simulate.cluster import Cluster
from hooke.simulate.event import Event, Kind
from hooke.simulate.pace import TICKS, Leg, Pace, stream, ticks

_JOINS, _DIES = -2, -1  # before whatever else the worker has to do at that moment
_NEVER = 1 << 100
_NOTHING = Leg(0, ())


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


class Waiting:
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
        """All of them, in order."""
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
        absorbed, _, number, _, kind, what, ran = heapq.heappop(self.told)
        step, begun, settled, settled_step, workers = what
        if kind == "joined":
            self.live += 1
        elif kind in ("died", "left"):
            self.live -= 1
        settled = math.inf if settled is None else settled / TICKS
        return Event(
            kind, number, step, begun / TICKS, absorbed / TICKS, settled, settled_step, workers or self.live, ran
        )

    def _note(self, kind: Kind, worker: _Worker, step: int, now: int, ran: Leg) -> None:
        self._queue(kind, worker, now, (step, now, now, step, 0), ran)

    def _note_exchange(
        self, worker: _Worker, step: int, ran: Leg, begun: int, absorbed: int, settled: int, settled_step: int,
        workers: int = 0,
    ) -> None:  # fmt: skip
        if absorbed >= worker.dies:
            worker.untold = _joined(worker.untold, ran)
            return
        worker.told = absorbed
        back = None if settled >= worker.dies else settled
        self._queue("exchange", worker, absorbed, (step, begun, back, settled_step, workers), ran)

    def _queue(self, kind: Kind, worker: _Worker, when: int, what: tuple, ran: Leg) -> None:
        """Tell it once the clock has passed `when`; deaths and joinings first."""
        if len(worker.untold.ends):
            ran, worker.untold = _joined(worker.untold, ran), _NOTHING
        self.count += 1
        later = kind not in ("died", "joined")
        heapq.heappush(self.told, (when, later, worker.number, self.count, kind, what, ran))

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
        self._queue("missed", worker, max(now, worker.told), (step, now, now, step, 0), ran)
        self._run(worker, now)

    def _send(self, now: int) -> tuple[int, int]:
        """When the center has absorbed what begins now, and when the correction has come."""
        self.free = max(self.free, now + self.latency) + self.piece
        absorbed = self.free + self.transfer - self.piece
        return absorbed, absorbed + self.piece + self.latency

    def _exchange(self, worker: _Worker, now: int, step: int, ran: Leg) -> None:
        absorbed, settled = self._send(now)
        self._note_exchange(worker, step, ran, now, absorbed, settled, step)
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


class Overlapping(Waiting):
    """The star whose workers step on: their legs do not depend on the exchanges, so they are known ahead."""

    def _exchange(self, worker: _Worker, now: int, step: int, ran: Leg) -> None:
        absorbed, worker.settled = self._send(now)
        settled_step = self._step_after(worker, now, worker.settled)
        self._note_exchange(worker, step, ran, now, absorbed, worker.settled, settled_step)
        self._run(worker, now)

    def _step_after(self, worker: _Worker, now: int, settled: int) -> int:
        """Steps taken once the first that ends at `settled` or later has ended, or all of them."""
        step, start, known = worker.step, now, iter(tuple(worker.ahead))
        while step < self.steps:
            leg = next(known, None)
            if leg is None:
                leg = worker.pace.leg(start, min(self.period, self.steps - step))
                worker.ahead.append(leg)
            if leg.end >= settled:
                return step + 1 + bisect_left(leg.ends, settled - leg.start)
            step, start = step + len(leg.ends), leg.end
        return step

    def _next_leg(self, worker: _Worker, now: int) -> Leg:
        return worker.ahead.popleft() if worker.ahead else super()._next_leg(worker, now)


class Ring(Waiting):
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
            self._note_exchange(worker, step, ran, begun, settled, settled, step, workers=part)
            self._run(worker, settled)
        self.waiting = []
