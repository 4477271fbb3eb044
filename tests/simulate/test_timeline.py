"""The timeline against the closed forms of `hooke.plan.Star`, queues written out, and runs by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from hooke.plan import Star
from hooke.simulate import Cluster, Drift, Event, Failure, timeline

GRID = list(itertools.product((1, 2, 5, 16), (1e7, 1e8, 1e9, 1e10), (0.0, 0.02), (1, 8, 30)))
MILLION = 1_000_000  # values: 0.032 s on a link of 1e9 bit/s


def events(cluster: Cluster, *, values: int = MILLION, period: int = 10, **settings: Any) -> list[Event]:
    return list(timeline(cluster, values=values, communication_period=period, **settings))


def short(run: list[Event]) -> list[tuple]:
    return [(e.kind, e.worker, e.step, *(round(t, 6) for t in e[3:6]), e.settled_step, e.workers) for e in run]


# Closed forms ---------------------------------------------------------------------------------------------------


def measured(star: Star, workers: int, *, overlap: bool, rounds: int) -> tuple[float, float]:
    """Steps a second and mean period, after a quarter of the run."""
    once = max(star.period * star.step_seconds + star.exchange_seconds, star.round_trip_seconds(workers))
    horizon, steps, exchanges = rounds * once, 0, 0
    phases = np.random.default_rng(0).uniform(0.001, 1, workers) * once  # started at once, they would stay in step
    late = tuple(Failure(worker, 0.0, phase) for worker, phase in enumerate(phases.tolist()))
    cluster = Cluster(workers, star.step_seconds, bandwidth=star.bandwidth, latency=star.latency, failures=late)
    for event in events(cluster, values=star.parameters, period=star.period, seconds=horizon, overlap=overlap):
        steps += int((event.ends > horizon / 4).sum())
        exchanges += event.kind == "exchange" and event.absorbed > horizon / 4
    return steps / (0.75 * horizon), steps / max(1, exchanges)


def test_speed_is_that_of_the_closed_form_where_workers_wait() -> None:
    limited = 0
    for workers, bandwidth, latency, period in GRID:
        star = Star(2_000_000, 0.05, bandwidth, latency, period)
        speed, real = measured(star, workers, overlap=False, rounds=60)
        assert star.steps_per_second(workers) == pytest.approx(speed, rel=0.02), star
        assert real == pytest.approx(period, rel=0.03), star
        limited += workers > star.saturated_from
    assert 20 < limited < len(GRID) - 20  # both sides of the border were tried


def test_speed_and_period_are_those_of_the_closed_form_where_workers_step_on() -> None:
    longer = 0
    for workers, bandwidth, latency, period in GRID:
        star = Star(2_000_000, 0.05, bandwidth, latency, period)
        if star.hiding_period(workers) > 20 * period:
            continue  # a run long enough would take long
        speed, real = measured(star, workers, overlap=True, rounds=100)
        assert star.steps_per_second(workers, overlap=True) == pytest.approx(speed, rel=0.01), star
        assert star.real_period(workers, overlap=True) == pytest.approx(real, rel=0.04), (star, workers)
        longer += real > 1.5 * period
    assert longer > 5


def test_from_where_the_link_is_full_more_workers_bring_nothing() -> None:
    star = Star(MILLION, 0.05, 1e9, period=8)
    full = star.saturated_from
    speeds = [measured(star, workers, overlap=False, rounds=40)[0] for workers in (full // 2, full, 2 * full)]
    assert speeds[1] > 1.8 * speeds[0]
    assert speeds[2] == pytest.approx(speeds[1], rel=0.02)


# Queues written out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_are_that_many_queues(shards: int) -> None:
    """Each piece leaves the worker after those before it and waits in a queue of its own, up and down."""
    cluster = Cluster(6, 0.05, jitter=0.5, bandwidth=1e9, latency=0.003, shards=shards)
    run = [e for e in events(cluster, values=700_000, steps=200) if e.kind == "exchange"]
    piece = 32 * 700_000 / 1e9 / shards
    up, down = [0.0] * shards, [0.0] * shards
    waited = 0
    for event in sorted(run, key=lambda e: (e.begun, e.worker)):
        for shard in range(shards):
            arrives = event.begun + 0.003 + shard * piece
            waited += up[shard] > arrives
            up[shard] = max(arrives, up[shard]) + piece
            down[shard] = max(up[shard], down[shard]) + piece
        assert event.absorbed == pytest.approx(max(up), abs=1e-6)
        assert event.settled == pytest.approx(max(down) + 0.003, abs=1e-6)
    assert waited > 20


def test_a_ring_of_all_workers_has_one_moment() -> None:
    cluster = Cluster(4, (0.1, 0.1, 0.1, 0.2), bandwidth=1e9, latency=0.001)
    run = events(cluster, steps=11, synchronous=True)
    ring = 2 * 3 / 4 * 0.032 + 2 * 3 * 0.001
    assert [(e.worker, e.absorbed) for e in run[:4]] == [(i, pytest.approx(ring)) for i in range(4)]
    begun = [ring + 1.0] * 3 + [ring + 2.0]
    assert [e.begun for e in run[4:8]] == [pytest.approx(t) for t in begun]
    assert {round(e.absorbed, 9) for e in run[4:8]} == {round(2 * ring + 2.0, 9)}
    assert all(e.settled == e.absorbed for e in run[:8])


# By hand --------------------------------------------------------------------------------------------------------


def test_steps_go_on_and_what_comes_due_meanwhile_is_missed() -> None:
    cluster = Cluster(1, 0.1, bandwidth=1e8)  # an exchange takes 0.64 s: 7 steps, more than a period of 4
    run = events(cluster, period=4, steps=14, overlap=True)
    assert short(run) == [
        ("exchange", 0, 0, 0.0, 0.32, 0.64, 7, 1),
        ("missed", 0, 4, 0.4, 0.4, 0.4, 4, 1),
        ("exchange", 0, 8, 0.8, 1.12, 1.44, 14, 1),  # the correction is subtracted when the steps are over
        ("missed", 0, 12, 1.2, 1.2, 1.2, 12, 1),
        ("left", 0, 14, 1.44, 1.44, 1.44, 14, 0),
    ]


def test_a_correction_that_is_there_at_once_is_subtracted_after_the_next_step() -> None:
    (first, *_) = events(Cluster(1, 0.1), period=4, steps=8, overlap=True)
    assert (first.step, first.settled_step) == (0, 1)
    (first, *_) = events(Cluster(1, 0.1, bandwidth=64e7), period=4, steps=8, overlap=True)
    assert (first.settled, first.settled_step) == (0.1, 1)  # it came as the step ended


def test_who_dies_before_the_center_has_it_all_leaves_no_trace() -> None:
    cluster = Cluster(2, 0.1, bandwidth=1e8, failures=(Failure(1, at=0.5), Failure(0, at=2.0, back=2.25)))
    run = events(cluster, period=10, seconds=2.5)
    assert short(run) == [
        ("exchange", 0, 0, 0.0, 0.32, 0.64, 0, 2),
        ("died", 1, 0, 0.5, 0.5, 0.5, 0, 1),  # it would have been absorbed at 0.64
        ("exchange", 0, 10, 1.64, 1.96, math.inf, 10, 1),  # absorbed, but nobody there to settle
        ("died", 0, 10, 2.0, 2.0, 2.0, 10, 0),
        ("joined", 0, 0, 2.25, 2.25, 2.25, 0, 1),
        ("left", 0, 0, 2.5, 2.5, 2.5, 0, 0),
    ]


def test_a_death_amid_steps_counts_those_that_were_over() -> None:
    run = events(Cluster(1, 0.1, failures=(Failure(0, 0.75, 1.0),)), period=5, seconds=1.21)
    assert [(e.kind, e.step, e.ends.tolist()) for e in run] == [
        ("exchange", 0, []),
        ("exchange", 5, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("died", 7, [0.6, 0.7]),
        ("joined", 0, []),
        ("exchange", 0, []),
        ("left", 2, [1.1, 1.2]),
    ]


def test_who_has_finished_neither_dies_nor_comes_back() -> None:
    run = events(Cluster(2, (0.1, 0.2), failures=(Failure(0, 5.0, 6.0),)), period=5, steps=30)
    assert [(e.kind, e.worker, e.absorbed) for e in run if e.kind != "exchange"] == [("left", 0, 3.0), ("left", 1, 6.0)]


def test_a_worker_may_be_late() -> None:
    run = events(Cluster(2, 0.1, failures=(Failure(1, 0.0, 0.35),)), period=2, seconds=0.4)
    assert [(e.kind, e.worker, e.absorbed, e.workers) for e in run[:5]] == [
        ("died", 1, 0.0, 1),
        ("exchange", 0, 0.0, 1),
        ("exchange", 0, 0.2, 1),
        ("joined", 1, 0.35, 2),
        ("exchange", 1, 0.35, 2),
    ]


def test_a_barrier_does_not_wait_for_the_dead() -> None:
    cluster = Cluster(3, (0.1, 0.1, 1.0), failures=(Failure(2, 0.55, 3.0),))
    run = events(cluster, period=4, synchronous=True, seconds=4.0)
    second = [e for e in run if e.kind == "exchange" and e.step == 4]
    assert [(e.worker, e.begun, e.absorbed, e.workers) for e in second[:2]] == [(0, 0.4, 0.55, 2), (1, 0.4, 0.55, 2)]
    (fresh,) = (e for e in run if e.kind == "exchange" and e.worker == 2 and e.begun >= 3.0)
    assert (fresh.step, fresh.workers) == (0, 3)
    assert fresh.absorbed == max(e.begun for e in run if e.kind == "exchange" and e.absorbed == fresh.absorbed)


def test_who_comes_while_the_ring_is_busy_has_no_part_in_it() -> None:
    cluster = Cluster(3, 0.1, bandwidth=1e9, failures=(Failure(2, 0.0, 0.01),))  # a ring of two takes 0.032 s
    run = events(cluster, period=4, synchronous=True, seconds=0.2)
    assert [(e.kind, e.worker, e.absorbed, e.workers) for e in run[:4]] == [
        ("died", 2, 0.0, 2),
        ("joined", 2, 0.01, 3),
        ("exchange", 0, 0.032, 2),
        ("exchange", 1, 0.032, 2),
    ]


def test_a_fresh_process_takes_none_of_the_steps_that_the_dead_one_was_about_to_take() -> None:
    cluster = Cluster(1, 0.1, bandwidth=1e8, failures=(Failure(0, 0.25, 1.0),))  # an exchange outlasts two legs
    run = events(cluster, period=3, seconds=2.0, overlap=True)
    back = [e.kind for e in run].index("joined")
    assert run[back - 1].ends.tolist() == [0.1, 0.2]
    assert np.concatenate([e.ends for e in run[back:]]).tolist() == [1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]


def test_lost_exchanges_cost_nothing_but_a_longer_period() -> None:
    run = events(Cluster(4, 0.1, bandwidth=1e9, lost=0.25), period=5, steps=5000)
    counts = Counter(e.kind for e in run)
    assert counts["missed"] + counts["exchange"] == 4000
    assert counts["missed"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert all(e.begun == e.settled for e in run if e.kind == "missed")


# Random streams -------------------------------------------------------------------------------------------------

BUSY = {"jitter": 0.3, "bandwidth": 1e9, "latency": 0.001, "lost": 0.05, "drift": Drift(every=2.0, sigma=0.5)}


def plain(run: list[Event]) -> list[tuple]:
    return [(*each[:-1], each.ends.tolist()) for each in run]


@pytest.mark.parametrize("way", [{}, {"overlap": True}])
def test_the_same_seed_gives_the_same_events(way: dict) -> None:
    cluster = Cluster(5, 0.1, failures=(Failure(2, 1.0, 2.0),), **BUSY)
    first, again, other = (plain(events(cluster, period=3, steps=50, seed=seed, **way)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first, key=lambda e: (e[4], e[0] not in ("died", "joined"), e[1]))
    for worker in range(5):
        steps = [e[2] for e in first if e[1] == worker]
        fresh = [e[0] for e in first if e[1] == worker].count("joined")
        assert sum(later < one for one, later in itertools.pairwise(steps)) == fresh  # in order but for a fresh one


@pytest.mark.parametrize("way", [{}, {"overlap": True}, {"synchronous": True}])
@pytest.mark.parametrize("length", [{"steps": 50}, {"seconds": 4.0}])
@pytest.mark.parametrize("drift", [None, Drift(every=2.0, sigma=0.5)])
def test_every_step_is_told_once(way: dict, length: dict, drift: Drift | None) -> None:
    cluster = Cluster(3, 0.1, **{**BUSY, "lost": 0.0 if "synchronous" in way else 0.05, "drift": drift})
    ends: dict[int, list[float]] = defaultdict(list)
    for event in events(cluster, period=7, **length, **way):
        ends[event.worker] += event.ends.tolist()
        assert len(ends[event.worker]) == event.step
        assert event.ends.size == 0 or event.ends[-1] <= event.absorbed
    for mine in ends.values():
        assert mine == sorted(mine)
        assert len(mine) == length.get("steps", len(mine))


def step_seconds(cluster: Cluster, worker: int, **settings: Any) -> np.ndarray:
    mine = [e.ends for e in events(cluster, seconds=20.0, overlap=True, **settings) if e.worker == worker]
    return np.diff(np.concatenate(mine))


def test_one_worker_more_changes_nobody_elses_times() -> None:
    few, many = (Cluster(p, 0.1, jitter=0.3, drift=Drift(2.0, 0.5)) for p in (2, 7))
    np.testing.assert_array_equal(step_seconds(few, 1), step_seconds(many, 1))
    assert not np.array_equal(step_seconds(many, 1), step_seconds(many, 2))


def test_the_period_does_not_change_the_steps() -> None:
    cluster = Cluster(1, 0.1, jitter=0.3)
    np.testing.assert_allclose(step_seconds(cluster, 0, period=5), step_seconds(cluster, 0, period=40), atol=2e-9)


def test_steps_take_their_mean_with_the_jitter_asked_for() -> None:
    times = step_seconds(Cluster(1, 0.001, jitter=0.3), 0)
    assert times.mean() == pytest.approx(0.001, rel=0.01)
    assert np.log(times).std() == pytest.approx(0.3, rel=0.03)


def test_drift_keeps_a_mean_for_a_while() -> None:
    run = events(Cluster(1, 0.01, drift=Drift(every=1.0, sigma=0.5)), seconds=200.0)
    ends = np.concatenate([e.ends for e in run])
    times, begun = np.diff(ends), ends[:-1]
    ticks = np.rint(1e9 * times)
    means = [np.unique(ticks[(begun >= second) & (begun < second + 1)]) / 1e9 for second in range(199)]
    assert {len(mean) for mean in means} == {1}
    logs = np.log([mean[0] / 0.01 for mean in means])
    assert (np.diff(logs) != 0).all()
    assert logs.std() == pytest.approx(0.5, rel=0.15)
    assert np.exp(logs).mean() == pytest.approx(1.0, abs=0.12)


# Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_workers": 0}, "Cluster: num_workers must be a whole number, at least 1. Got 0. Use e.g. 4."),
        ({"num_workers": 2.5}, "Cluster: num_workers must be a whole number, at least 1. Got 2.5. Use e.g. 4."),
        (
            {"num_workers": 2, "step_seconds": [1.0]},
            "Cluster: step_seconds must be one number or one for each of 2 workers. Got 1. "
            "Use one for each of 2 workers.",
        ),
        ({"step_seconds": 0.0}, "Cluster: step_seconds must be positive. Got 0.0. Use the measured seconds of a step."),
        ({"jitter": -1.0}, "Cluster: jitter must be at least 0. Got -1.0. Use e.g. 0.1."),
        ({"bandwidth": 0.0}, "Cluster: bandwidth must be positive. Got 0.0. Use bit/s, e.g. 1e9."),
        ({"bandwidth": "1G"}, "Cluster: bandwidth must be a number. Got '1G'. Use a float."),
        (
            {"step_seconds": "0.1"},
            "Cluster: step_seconds must be one number, or one for each worker. Got '0.1'. Use a float.",
        ),
        ({"drift": 0.3}, "Cluster: drift must be a Drift. Got 0.3. Use e.g. Drift(60.0, 0.3)."),
        (
            {"failures": Failure(0, 1.0)},
            "Cluster: failures must be a tuple of Failure. Got Failure(worker=0, at=1.0, back=None). "
            "Use e.g. (Failure(worker=1, at=30.0),).",
        ),
        (
            {"failures": (0, 1.0)},
            "Cluster: failures must be a tuple of Failure. Got (0, 1.0). Use e.g. (Failure(worker=1, at=30.0),).",
        ),
        ({"latency": -1.0}, "Cluster: latency must be at least 0. Got -1.0. Use seconds, e.g. 0.001."),
        (
            {"shards": 0},
            "Cluster: shards must be a whole number, at least 1. Got 0. Use 1: one machine holds the center.",
        ),
        ({"lost": 1.0}, "Cluster: lost must be in [0, 1). Got 1.0. Use the share of exchanges that are lost."),
        (
            {"failures": (Failure(2, 1.0),)},
            "Cluster: failures must be of workers 0 to 1. Got 2. Use one of them.",
        ),
    ],
)
def test_a_cluster_that_can_not_be_is_one_sentence(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Cluster(**{"num_workers": 2, **wrong})
    assert str(error.value) == message


def test_numbers_of_numpy_are_numbers() -> None:
    cluster = Cluster(2, step_seconds=np.float32(0.5), bandwidth=np.float64(1e9))  # pyright: ignore[reportArgumentType]
    assert cluster == Cluster(2, step_seconds=0.5, bandwidth=1e9)
    assert Cluster(2, step_seconds=np.array([0.1, 0.2])).seconds_of(1) == 0.2  # pyright: ignore[reportArgumentType]


def test_failures_that_can_not_be() -> None:
    with pytest.raises(ValueError, match=r"^Failure: at must be at least 0, and back later\. Got at=2\.0, back=1\.0\."):
        Failure(0, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"^Cluster: a worker must be back before it dies again\."):
        Cluster(1, failures=(Failure(0, 1.0), Failure(0, 2.0, 3.0)))
    with pytest.raises(ValueError, match=r"^Drift: every must be positive and sigma at least 0\. Got every=0\.0"):
        Drift(0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "timeline: give steps or seconds, not both. Got steps=None, seconds=None. Give one."),
        (
            {"steps": 1, "seconds": 1},
            "timeline: give steps or seconds, not both. Got steps=1, seconds=1. Give one.",
        ),
        ({"steps": 1, "period": 0}, "timeline: communication_period must be at least 1. Got 0. Use e.g. 10."),
        ({"steps": -1}, "timeline: steps must be a whole number, at least 0. Got -1. Use e.g. 100."),
        ({"steps": 2.5}, "timeline: steps must be a whole number, at least 0. Got 2.5. Use e.g. 100."),
        ({"seconds": -1.0}, "timeline: seconds must be at least 0 and finite. Got -1.0. Use e.g. 60.0."),
        ({"seconds": math.nan}, "timeline: seconds must be at least 0 and finite. Got nan. Use e.g. 60.0."),
        (
            {"steps": 1, "values": -1},
            "timeline: values must be a whole number, at least 0. Got -1. Use the vector's length.",
        ),
        (
            {"steps": 1, "period": 2.5},
            "timeline: communication_period must be at least 1. Got 2.5. Use e.g. 10.",
        ),
        (
            {"steps": 1, "synchronous": True, "overlap": True},
            "timeline: synchronous=True needs overlap=False, shards=1 and lost=0. Got overlap=True, shards=1, "
            "lost=0.0. A ring of workers has no center; drop synchronous or those.",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        events(Cluster(1), **settings)
    assert str(error.value) == message
