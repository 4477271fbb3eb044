"""Workers on a noisy quadratic against literal references, hooke's rules, and closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import hooke
from hooke.simulate import Bowl, Cluster, Descent, Event, Failure, stationary_variance, timeline
from hooke.stability import moving_rate_border, way_border

H = (1.0, 0.3, 0.05)
BUSY = Cluster(5, (0.1, 0.1, 0.13, 0.2, 0.07), jitter=0.3, bandwidth=1e9, latency=0.01, lost=0.1)
RULES = {"easgd": hooke.EASGD(beta=0.9), "downpour": hooke.Downpour(), "local-sgd": hooke.LocalSGD()}


def events_of(cluster: Cluster, *, period: int = 4, **settings: Any) -> list[Event]:
    if settings.get("synchronous"):
        cluster = replace(cluster, lost=0.0)
    return list(timeline(cluster, values=1_000_000, communication_period=period, **settings))


def literal(events: list[Event], bowl: Bowl, p: int, method: str, beta: float) -> np.ndarray:
    """Step by step, with hooke's own rules: every worker a loop over its steps, in the order of the events."""
    lr, momentum, h = bowl.lr, bowl.momentum, np.array(bowl.curvatures)
    rule = {**RULES, "easgd": hooke.EASGD(beta=beta)}[method]
    c = np.ones(len(h))
    x, v, start = (np.array([value] * p) for value in (c, 0 * c, c))
    step, pending = [0] * p, [(0 * c, 0)] * p

    def go(i: int, until: int) -> None:
        while step[i] < until:
            v[i] = momentum * v[i] - lr * h * (x[i] + momentum * v[i])
            x[i] = x[i] + v[i]
            step[i] += 1
            if step[i] == pending[i][1]:
                x[i] = x[i] - pending[i][0]

    def exchange(event: Event, seen: np.ndarray) -> None:
        i = event.worker
        state = () if method == "easgd" else (torch.from_numpy(start[i]),)
        bound = rule.bind(event.workers)
        held = torch.from_numpy(seen)
        delta = bound.delta(torch.from_numpy(x[i]), held, state)
        bound.absorb_(torch.from_numpy(c), delta, ())
        ready.append((event, delta))

    def settle() -> None:
        for event, delta in ready:
            i = event.worker
            bound = rule.bind(event.workers)
            state = () if method == "easgd" else (torch.from_numpy(start[i]),)
            correction = bound.settle(torch.from_numpy(x[i]), delta, torch.from_numpy(c), state).numpy()
            start[i] = x[i] - correction
            pending[i] = (correction, max(event.settled_step, event.step + (rule.order == "jacobi")))
            if pending[i][1] == step[i]:
                x[i] = x[i] - correction
        ready.clear()

    ready: list = []
    synchronous = len({event.absorbed for event in events}) < len(events) / 2
    for _, together in itertools.groupby(events, key=lambda e: (e.absorbed, synchronous or e.worker)):
        seen = c.copy() if synchronous else c
        for event in together:
            if event.kind == "exchange":
                go(event.worker, event.step)
                exchange(event, seen)
        settle()
    return c


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("way", ["waiting", "overlap", "synchronous"])
def test_without_noise_it_is_the_rule_applied_step_by_step(method: str, momentum: float, way: str) -> None:
    bowl = Bowl(H, lr=0.02, momentum=momentum)
    events = events_of(BUSY, steps=60, overlap=way == "overlap", synchronous=way == "synchronous")
    run = Descent(bowl, 5, method=method, synchronous=way == "synchronous")  # pyright: ignore[reportArgumentType]
    for event in events:
        run.absorb(event)
    assert run.excess == pytest.approx(float(bowl.excess(run.center)))
    np.testing.assert_allclose(run.center, literal(events, bowl, 5, method, 0.9), rtol=1e-9, atol=1e-12)
    assert not np.allclose(run.center, 1.0, atol=0.01)


# Legs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7, 300])
def test_a_leg_is_its_steps(momentum: float, steps: int) -> None:
    bowl = Bowl((1.0, 0.3, 2.5), sigma=(1.0, 2.0, 0.1), lr=0.8, momentum=momentum)  # 2.5 x 0.8 = 2: on the border
    leg = bowl.leg(steps)
    for i, (h, sigma) in enumerate(zip(bowl.curvatures, (1.0, 2.0, 0.1), strict=True)):
        e = bowl.lr * h
        step = np.array([[1 - e, momentum * (1 - e)], [-e, momentum * (1 - e)]])  # of x and v, written out
        noise = (bowl.lr * sigma) ** 2 * np.ones((2, 2))
        covariance = sum(
            np.linalg.matrix_power(step, k) @ noise @ np.linalg.matrix_power(step, k).T for k in range(steps)
        )
        size = 2 if momentum else 1
        power = np.linalg.matrix_power(step, steps)[:size, :size]
        np.testing.assert_allclose(leg.power[..., i], power, rtol=1e-9, atol=1e-12)
        got = leg.spread[..., i] @ leg.spread[..., i].T
        np.testing.assert_allclose(got, covariance[:size, :size], rtol=1e-9, atol=1e-12)


# Noise ----------------------------------------------------------------------------------------------------------


def stationary(M: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """P = M P M' + Q, by summing 2^60 terms."""
    P = Q
    for _ in range(60):
        P, M = P + M @ P @ M.T, M @ M
    return P


def full_maps(e: float, noise: float, p: int, alpha: float, tau: int) -> tuple[np.ndarray, np.ndarray]:
    """All workers and the center through one period, at once: the map, and the covariance of its noise."""
    q = 1 - e
    M, Q = np.zeros((p + 1, p + 1)), np.zeros((p + 1, p + 1))
    for i in range(p):
        M[i, i] = q**tau - q ** (tau - 1) * alpha
        M[i, p] = q ** (tau - 1) * alpha
        M[p, i] = alpha
        Q[i, i] = noise**2 * sum(q ** (2 * k) for k in range(tau))
    M[p, p] = 1 - p * alpha
    return M, Q


def turn_maps(e: float, noise: float, p: int, alpha: float, tau: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, one worker after the other."""
    M, Q = np.eye(p + 1), np.zeros((p + 1, p + 1))
    for i in range(p):
        one, kick = full_maps(e, noise, 1, alpha, tau)
        turn, its = np.eye(p + 1), np.zeros((p + 1, p + 1))
        turn[np.ix_([i, p], [i, p])] = one
        its[i, i] = kick[0, 0]
        M, Q = turn @ M, turn @ Q @ turn.T + its
    return M, Q


@pytest.mark.parametrize(("p", "tau"), [(1, 1), (3, 2), (4, 10)])
def test_the_variance_of_a_synchronous_center_is_that_of_all_workers_written_out(p: int, tau: int) -> None:
    bowl = Bowl((1.0, 0.2), sigma=0.5, lr=0.3)
    got = stationary_variance(bowl, p, communication_period=tau, beta=0.9)
    full = [stationary(*full_maps(0.3 * h, 0.3 * 0.5, p, 0.9 / p, tau))[-1, -1] for h in (1.0, 0.2)]
    np.testing.assert_allclose(got, full, rtol=1e-9)


@pytest.mark.parametrize("synchronous", [True, False])
def test_simulated_noise_has_the_variance_of_the_linear_map(synchronous: bool) -> None:
    p, tau, copies = 3, 2, 256
    bowl = Bowl((1.0,) * copies, sigma=0.5, lr=0.3)  # as many equal directions as trials
    run = Descent(bowl, p, start=0.0, synchronous=synchronous, seed=1)
    squares = []
    for event in events_of(Cluster(p, 0.1), period=tau, steps=1000, synchronous=synchronous):
        run.absorb(event)
        if event.worker == p - 1 and event.kind == "exchange" and event.step >= 60:
            assert run.excess >= 0  # finishes the round
            squares.append((run.center**2).mean())
    maps = full_maps if synchronous else turn_maps
    expected = stationary(*maps(0.3, 0.3 * 0.5, p, 0.3, tau))[-1, -1]
    assert np.mean(squares) == pytest.approx(expected, rel=0.03)


def test_momentum_has_its_own_variance() -> None:
    bowl = Bowl((0.5,) * 256, sigma=0.5, lr=0.1, momentum=0.9)
    run = Descent(bowl, 2, start=0.0, synchronous=True, seed=1)
    squares = []
    for event in events_of(Cluster(2, 0.1), period=3, steps=3000, synchronous=True):
        run.absorb(event)
        if event.worker == 1 and event.kind == "exchange" and event.step >= 200:
            assert run.excess >= 0
            squares.append((run.center**2).mean())
    expected = stationary_variance(bowl, 2, communication_period=3)[0]
    assert np.mean(squares) == pytest.approx(expected, rel=0.03)


def test_the_variance_of_the_center_falls_like_one_over_p() -> None:
    bowl = Bowl((1.0,), sigma=1.0, lr=0.1)
    times_p = [p * stationary_variance(bowl, p, communication_period=10)[0] for p in (64, 256, 1024, 4096)]
    np.testing.assert_allclose(times_p, times_p[-1], rtol=0.02)
    assert stationary_variance(bowl, 1)[0] > 3 * stationary_variance(bowl, 4)[0]


# Stability ------------------------------------------------------------------------------------------------------


def grows(bowl: Bowl, p: int, **settings: Any) -> bool:
    run = Descent(bowl, p, **settings)
    for event in events_of(Cluster(p), period=1, steps=1500):
        run.absorb(event)
    assert not 0.01 < run.excess < 100  # it has made up its mind
    return run.excess > 1


@pytest.mark.parametrize("e", [0.3, 1.0, 1.6])
def test_easgd_in_turn_diverges_where_the_border_says(e: float) -> None:
    border = moving_rate_border(e)
    assert not grows(Bowl((1.0,), lr=e), 3, moving_rate=0.99 * border)
    assert grows(Bowl((1.0,), lr=e), 3, moving_rate=1.02 * border)


@pytest.mark.parametrize("p", [2, 4, 8])
def test_downpour_in_turn_diverges_where_the_border_says(p: int) -> None:
    assert not grows(Bowl((1.0,), lr=0.98 * way_border(p)), p, method="downpour")
    assert grows(Bowl((1.0,), lr=1.02 * way_border(p)), p, method="downpour")


# Seeds and errors -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_center() -> None:
    def center(seed: int) -> list[float]:
        run = Descent(Bowl(H, sigma=1.0), 5, seed=seed)
        for event in events_of(BUSY, steps=60):
            run.absorb(event)
        return run.center.tolist()

    assert center(0) == center(0) != center(1)


def test_who_comes_back_starts_from_the_center() -> None:
    run = Descent(Bowl((1.0,), lr=0.1, momentum=0.5), 2)
    cluster = Cluster(2, 0.1, failures=(Failure(1, 3.0, 6.0),))
    seen = []
    for event in events_of(cluster, period=5, seconds=6.0):
        before = run.center.copy()
        run.absorb(event)
        if event.kind == "joined":
            assert run.state[1].tolist() == [before.tolist(), [0.0]]  # without the velocity of the one that died
            assert run.center == before
            seen.append(event.worker)
    assert seen == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bowl(()), "Bowl: curvatures must be positive. Got (). Use e.g. (1.0, 0.1)."),
        (lambda: Bowl((1.0, -1.0)), "Bowl: curvatures must be positive. Got (1.0, -1.0). Use e.g. (1.0, 0.1)."),
        (
            lambda: Bowl((1.0,), lr=0.0),
            "Bowl: lr must be positive and momentum in [0, 1). Got lr=0.0, momentum=0.0. "
            "Use e.g. lr=0.1, momentum=0.9.",
        ),
        (lambda: Bowl((np.nan,)), "Bowl: curvatures must be positive. Got (nan,). Use e.g. (1.0, 0.1)."),
        (
            lambda: Bowl(1.0),  # pyright: ignore[reportArgumentType]
            "Bowl: curvatures must be a sequence. Got 1.0. Use e.g. (1.0, 0.1).",
        ),
        (
            lambda: Bowl((1.0,), lr=np.nan),
            "Bowl: lr must be positive and momentum in [0, 1). Got lr=nan, momentum=0.0. "
            "Use e.g. lr=0.1, momentum=0.9.",
        ),
        *(
            (
                lambda sigma=sigma: Bowl((1.0,), sigma=sigma),
                "Bowl: sigma must be at least 0, one number or one for each of 1 directions. Got "
                f"{sigma}. Use e.g. 0.1.",
            )
            for sigma in (-1.0, np.nan, (1.0, 2.0))
        ),
        (
            lambda: stationary_variance(Bowl((0.1, 1.0), sigma=1.0, lr=3.0), 4),
            "stationary_variance: the map must be stable. Got a spectral radius of 2.309 at curvature 1. Use a smaller "
            "lr or beta.",
        ),
        (
            lambda: stationary_variance(Bowl((1.0,), sigma=1.0), 0),
            "stationary_variance: num_workers and communication_period must be at least 1. Got 0 and 1. Use e.g. 4 "
            "and 10.",
        ),
        (
            lambda: Descent(Bowl((1.0,)), 2, method="admm"),  # pyright: ignore[reportArgumentType]
            "Descent: method must be easgd, downpour or local-sgd. Got 'admm'. Use 'easgd'.",
        ),
    ],
)
def test_what_can_not_be_is_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
