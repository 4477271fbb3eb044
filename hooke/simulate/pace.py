"""How long the steps of one simulated worker take, in whole nanoseconds, from a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hooke.simulate.cluster import Cluster

TICKS = 1_000_000_000
"""A second. The virtual clock counts whole nanoseconds: sums are exact, so no order depends on rounding."""

_STEPS_AT_ONCE = 256


class Leg(NamedTuple):
    """Steps that a worker takes without a pause.

    Attributes:
        start: When the first one begins, in ticks.
        ends: When each ends, in ticks after `start`.
    """

    start: int
    ends: Sequence[int] | np.ndarray

    @property
    def end(self) -> int:
        """When the last one ends."""
        return self.start + int(self.ends[-1]) if len(self.ends) else self.start

    def seconds(self) -> np.ndarray:
        """When each ends, in seconds of the virtual clock."""
        return (self.start + np.asarray(self.ends, dtype=np.int64)) / TICKS


def ticks(seconds: float) -> int:
    """The nearest whole number of ticks."""
    return round(seconds * TICKS)


class Pace:
    """The legs of one worker, one after the other.

    Each worker draws from streams named by (seed, worker), so one worker more changes nobody else's times.

    Args:
        cluster: Speeds, jitter and drift.
        worker: Its number.
        length: Steps of a leg.
        seed: Of the run.
    """

    def __init__(self, cluster: Cluster, worker: int, length: int, seed: int) -> None:
        self._mean = cluster.seconds_of(worker) * TICKS
        self._length, self._jitter, self._drift = length, cluster.jitter, cluster.drift
        tick = max(1, round(self._mean))
        self._even = range(tick, length * tick + 1, tick)
        self._random = stream(seed, worker, 0) if cluster.jitter else None
        self._drawn: list[np.ndarray] = []
        self._factors = stream(seed, worker, 1) if cluster.drift else None
        self._factor, self._epoch = 1.0, -1

    def leg(self, start: int, steps: int) -> Leg:
        """The next `steps` steps (at most `length`), begun at `start`."""
        if self._drift:
            return Leg(start, self._drifting(start, steps))
        ends = self._cumulated() if self._random else self._even
        return Leg(start, ends if steps == self._length else ends[:steps])

    def _cumulated(self) -> np.ndarray:
        if not self._drawn:
            each = np.maximum(np.rint(self._mean * self._multipliers()), 1).astype(np.int64)
            self._drawn = list(each.cumsum(axis=1))[::-1]
        return self._drawn.pop()

    def _multipliers(self) -> np.ndarray:
        assert self._random
        shape = (max(1, _STEPS_AT_ONCE // self._length), self._length)
        return np.exp(self._jitter * self._random.standard_normal(shape) - self._jitter**2 / 2)

    def _drifting(self, start: int, steps: int) -> list[int]:
        if not self._drawn:
            shape = (1, self._length)
            self._drawn = list(self._multipliers() if self._random else np.ones(shape))[::-1]
        now, ends = start, []
        for multiplier in self._drawn.pop()[:steps].tolist():
            now += max(1, round(self._mean * self._factor_at(now) * multiplier))
            ends.append(now - start)
        return ends

    def _factor_at(self, now: int) -> float:
        assert self._drift and self._factors
        while self._epoch < now // ticks(self._drift.every):
            sigma = self._drift.sigma
            self._factor = float(np.exp(sigma * self._factors.standard_normal() - sigma**2 / 2))
            self._epoch += 1
        return self._factor


def stream(seed: int, worker: int, what: int) -> np.random.Generator:
    """Random numbers for one purpose of one worker, which nobody else draws."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(worker, what))))
