"""The timeline against the closed forms of `hooke.plan.star`, and event by event."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from hooke.plan.star import Star
from hooke.simulate import Cluster, Event, timeline

GRID = list(itertools.product((1, 2, 5, 16), (1e7, 1e8, 1e9, 1e10), (0.0, 0.02), (1, 8, 30)))


def run_of(star: Star, workers: int, *, overlap: bool, exchanges: int) -> tuple[float, float]:
    """Steps a second and mean period, after a quarter of the run."""
    round_trip = star.round_trip_seconds(workers)
    horizon = exchanges * max(star.period * star.step_seconds + star.exchange_seconds, round_trip)
    cluster = Cluster(workers, star.step_seconds, bandwidth=star.bandwidth, latency=star.latency)
    steps = exchanges = 0
    for event in timeline(
        cluster, values=star.parameters, communication_period=star.period, seconds=horizon, overlap=overlap
    ):
        counts = event.absorbed > horizon / 4
        steps += counts * len(event.ends)
        exchanges += counts and event.kind == "exchange"
    return steps / (0.75 * horizon), steps / max(1, exchanges)


def test_speed_is_that_of_the_closed_form_where_workers_wait() -> None:
    for workers, bandwidth, latency, period in GRID:
        star = Star(2_000_000, 0.05, bandwidth, latency, period)
        speed, _ = run_of(star, workers, overlap=False, exchanges=60)
        assert star.steps_per_second(workers) == pytest.approx(speed, rel=0.03), star


def test_the_same_seed_gives_the_same_events() -> None:
    cluster = Cluster(5, 0.1, jitter=0.3, bandwidth=1e9, latency=0.001)

    def events(seed: int) -> list[Event]:
        return list(timeline(cluster, values=100_000, communication_period=3, steps=50, seed=seed))

    def plain(seed: int) -> list[tuple]:
        return [(*each[:-1], each.ends.tolist()) for each in events(seed)]

    assert plain(1) == plain(1) != plain(2)
    assert Counter(each.kind for each in events(1)) == {"exchange": 5 * 17, "left": 5}
