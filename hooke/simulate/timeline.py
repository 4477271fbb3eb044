"""Who exchanges with the center when: a discrete-event simulation, without any parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hooke.simulate.cluster import Cluster
from hooke.simulate.course import Overlapping, Ring, Waiting
from hooke.simulate.event import Event


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
    _check_counts(steps, seconds, values)
    if not isinstance(communication_period, int) or communication_period < 1:
        raise ValueError(f"timeline: communication_period must be at least 1. Got {communication_period}. Use e.g. 10.")
    if synchronous and (overlap or cluster.shards > 1 or cluster.lost):
        raise ValueError(
            f"timeline: synchronous=True needs overlap=False, shards=1 and lost=0. Got overlap={overlap}, "
            f"shards={cluster.shards}, lost={cluster.lost}. A ring of workers has no center; drop synchronous or those."
        )
    course = Ring if synchronous else Overlapping if overlap else Waiting
    return course(cluster, values * bits / cluster.bandwidth, communication_period, steps, seconds, seed).events()


def _check_counts(steps: object, seconds: object, values: object) -> None:
    if not (isinstance(values, int) and values >= 0):
        raise ValueError(
            f"timeline: values must be a whole number, at least 0. Got {values!r}. Use the vector's length."
        )
    if steps is not None and not (isinstance(steps, int) and steps >= 0):
        raise ValueError(f"timeline: steps must be a whole number, at least 0. Got {steps!r}. Use e.g. 100.")
    if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
        raise ValueError(f"timeline: seconds must be at least 0 and finite. Got {seconds!r}. Use e.g. 60.0.")
