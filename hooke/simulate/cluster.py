"""The machines of a simulated run, in plain numbers: speeds, links, failures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Failure:
    """The process of one worker dies; a fresh one, which starts from the center, may come back.

    Args:
        worker: Its number, from 0.
        at: Seconds at which it dies; 0: it is not there from the beginning.
        back: Seconds at which the fresh one joins; `None`: never.

    Raises:
        ValueError: `at` below 0, or `back` not after it.

    Example:
        >>> Failure(worker=1, at=30.0, back=45.0).back
        45.0
    """

    worker: int
    at: float
    back: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.at < (math.inf if self.back is None else self.back):
            raise ValueError(
                f"Failure: at must be at least 0, and back later. Got at={self.at}, back={self.back}. "
                "Leave back out where nobody comes back."
            )


@dataclass(frozen=True)
class Drift:
    """Speeds that change: every so many seconds each worker's mean seconds of a step are drawn anew.

    Until the next draw they are its `step_seconds` times an independent lognormal of mean 1.

    Args:
        every: Seconds between two draws, the same for all workers.
        sigma: Of the logarithm.

    Raises:
        ValueError: `every` not positive, or `sigma` negative.

    Example:
        >>> Drift(every=60.0, sigma=0.3).every
        60.0
    """

    every: float
    sigma: float

    def __post_init__(self) -> None:
        if not (0 < self.every < math.inf and 0 <= self.sigma < math.inf):
            raise ValueError(
                f"Drift: every must be positive and sigma at least 0. Got every={self.every}, sigma={self.sigma}. "
                "Use e.g. Drift(every=60.0, sigma=0.3)."
            )


@dataclass(frozen=True)
class Cluster:
    """p workers, each on a processor of its own, and the machines that hold the center.

    Links are full duplex and all of the same bandwidth. With `shards` k > 1 the center's vector is cut over k machines,
    each with such a link; a worker sends its k pieces one after the other, so its own link carries as much as before.

    Args:
        num_workers: p.
        step_seconds: Mean seconds of an optimizer step; one number, or one for each worker.
        jitter: Each step's seconds are multiplied by an independent lognormal of mean 1 and this sigma.
        drift: How the means change in time; `None`: they stay.
        bandwidth: In bit/s, of each link, in each direction.
        latency: Seconds one way.
        shards: Machines that hold the center.
        failures: Deaths and returns.
        lost: Probability that an exchange is lost. The worker notices at once and goes on; its period is longer once.

    Raises:
        ValueError: A number outside its range, or failures of one worker that overlap.

    Example:
        >>> Cluster(num_workers=4, step_seconds=[0.1, 0.1, 0.1, 0.2], bandwidth=1e9).seconds_of(3)
        0.2
    """

    num_workers: int
    step_seconds: float | Sequence[float] = 1.0
    jitter: float = 0.0
    drift: Drift | None = None
    bandwidth: float = math.inf
    latency: float = 0.0
    shards: int = 1
    failures: tuple[Failure, ...] = ()
    lost: float = 0.0

    def __post_init__(self) -> None:
        whole = "must be a whole number, at least 1"
        _check(_is_count(self.num_workers), f"num_workers {whole}", self.num_workers, "e.g. 4")
        for name in ("jitter", "bandwidth", "latency", "lost"):
            value = getattr(self, name)
            _check(_is_number(value), f"{name} must be a number", repr(value), "a float")
            object.__setattr__(self, name, _plain(value))
        _check(isinstance(self.drift, Drift | None), "drift must be a Drift", repr(self.drift), "e.g. Drift(60.0, 0.3)")
        if _is_number(self.step_seconds):
            object.__setattr__(self, "step_seconds", _plain(self.step_seconds))
        if not isinstance(self.step_seconds, int | float):
            listed = _is_listed(self.step_seconds)
            _check(
                listed, "step_seconds must be one number, or one for each worker", repr(self.step_seconds), "a float"
            )
            object.__setattr__(self, "step_seconds", tuple(float(each) for each in self.step_seconds))  # pyright: ignore[reportGeneralTypeIssues]
            count = f"one for each of {self.num_workers} workers"
            given = len(self.step_seconds)  # pyright: ignore[reportArgumentType]
            _check(given == self.num_workers, f"step_seconds must be one number or {count}", given, count)
        every = [self.step_seconds] if isinstance(self.step_seconds, int | float) else self.step_seconds
        good = all(0 < each < math.inf for each in every)
        _check(good, "step_seconds must be positive", self.step_seconds, "the measured seconds of a step")
        _check(0 <= self.jitter < math.inf, "jitter must be at least 0", self.jitter, "e.g. 0.1")
        _check(self.bandwidth > 0, "bandwidth must be positive", self.bandwidth, "bit/s, e.g. 1e9")
        _check(0 <= self.latency < math.inf, "latency must be at least 0", self.latency, "seconds, e.g. 0.001")
        _check(_is_count(self.shards), f"shards {whole}", self.shards, "1: one machine holds the center")
        _check(0 <= self.lost < 1, "lost must be in [0, 1)", self.lost, "the share of exchanges that are lost")
        failures = "failures must be a tuple of Failure"
        _check(isinstance(self.failures, tuple | list), failures, self.failures, "e.g. (Failure(worker=1, at=30.0),)")
        object.__setattr__(self, "failures", tuple(self.failures))
        alike = all(isinstance(each, Failure) for each in self.failures)
        _check(alike, failures, self.failures, "e.g. (Failure(worker=1, at=30.0),)")
        self._check_failures()

    def seconds_of(self, worker: int) -> float:
        """Mean seconds of a step of this worker."""
        return self.step_seconds if isinstance(self.step_seconds, int | float) else self.step_seconds[worker]

    def failures_of(self, worker: int) -> list[Failure]:
        """Of this worker, in order."""
        return sorted((each for each in self.failures if each.worker == worker), key=lambda each: each.at)

    def _check_failures(self) -> None:
        numbers = range(self.num_workers)
        for worker in {each.worker for each in self.failures}:
            _check(worker in numbers, f"failures must be of workers 0 to {self.num_workers - 1}", worker, "one of them")
            mine = self.failures_of(worker)
            for one, later in itertools.pairwise(mine):
                apart = one.back is not None and one.back <= later.at
                _check(apart, "a worker must be back before it dies again", (one, later), "a later `at`")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_listed(values: object) -> bool:
    """Whether these are numbers, one after the other; arrays and tensors give theirs by `tolist`."""
    values = values.tolist() if hasattr(values, "tolist") else values  # pyright: ignore[reportAttributeAccessIssue]
    return isinstance(values, list | tuple) and all(map(_is_number, values))


def _plain(value: Any) -> int | float:
    return value if isinstance(value, int | float) else float(value)


def _check(good: bool, must: str, got: object, use: str) -> None:
    if not good:
        raise ValueError(f"Cluster: {must}. Got {got}. Use {use}.")
