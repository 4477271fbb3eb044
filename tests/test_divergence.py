"""The warning: it comes in time where a run diverges, once, and never where one is healthy."""

from __future__ import annotations

import itertools
import math
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hooke
from hooke.divergence import FEWEST, GROWTH, PART, Divergence, Watch
from hooke.record import read
from hooke.report.read import read_run
from hooke.run import Run
from hooke.stability import stability_of

# Distances alone ------------------------------------------------------------------------------------------------


def first(distances: Any, lrs: Any = 0.1, length: float = 1e-9) -> int | None:
    """Where divergence is said."""
    watch = Divergence()
    lrs = np.broadcast_to(lrs, len(distances))
    said = [watch.grown(float(d), lr=float(lr), length=lambda: length) for d, lr in zip(distances, lrs, strict=True)]
    places = [k for k, growth in enumerate(said) if growth]
    assert len(places) <= 1
    return places[0] if places else None


@pytest.mark.parametrize("factor", [1.02, 1.1, 2.0, 30.0])
def test_growth_by_a_factor_is_noticed_before_it_is_out_of_hand(factor: float) -> None:
    place = first(factor ** np.arange(2000.0).clip(0, 80 / math.log10(factor)))
    assert place is not None
    expected = max(FEWEST, 2 * math.log(GROWTH) / math.log(factor))  # the median lies half as far back
    assert place == pytest.approx(expected, rel=0.3)


def test_what_settles_sinks_or_jumps_is_healthy() -> None:
    random = np.random.default_rng(0)
    steps = np.arange(5000.0)
    noise = random.lognormal(0, 0.7, 5000)
    assert first((1 - np.exp(-steps / 70)) * noise) is None  # up to where the spring holds
    assert first(noise / (1 + steps)) is None
    assert first(np.where(steps % 1000 == 999, 50.0, 1.0) * noise) is None  # a worker that was away
    assert first(np.sqrt(steps) * noise) is None


def test_a_learning_rate_explains_as_much_growth_as_its_own() -> None:
    lrs = np.concatenate([np.geomspace(1e-6, 0.1, 200), 0.1 * (1 + np.cos(np.linspace(0, np.pi, 800))) / 2])
    assert first(lrs, lrs) is None
    assert first(np.minimum.accumulate(np.maximum(lrs, 1e-3)[::-1])[::-1] * 5, np.maximum(lrs, 1e-3)) is None
    assert first(np.concatenate([lrs, lrs]), np.concatenate([lrs, lrs])) is None  # a warm restart
    assert first(lrs[:200]) is not None  # at a constant rate it would be divergence


def test_a_small_part_of_the_parameters_is_no_divergence() -> None:
    distances = 1.2 ** np.arange(60.0)
    assert first(distances, length=2 * distances[-1] / PART) is None
    assert first(distances, length=0.0) is not None


def test_a_leap_needs_no_history() -> None:
    assert first([1.0, 1e7]) == 1
    assert first([1.0, 1e5, 2e5, 1e5]) is None


def test_values_that_say_nothing_are_left_out() -> None:
    assert first(np.zeros(100)) is None
    assert first([math.nan, math.inf, -1.0] * 100) is None
    assert first(np.concatenate([np.zeros(50), np.ones(50)])) is None
    assert first(1.3 ** np.arange(100.0), 0.0) is None


def test_memory_stays_small_in_a_long_run() -> None:
    watch = Divergence()
    for _ in range(20_000):
        assert not watch.grown(1.0, lr=0.1, length=lambda: 0.0)
    assert len(watch._seen) < 512
    assert watch.grown(1e4, lr=0.1, length=lambda: 0.0) == pytest.approx(1e4)


# Through workers ------------------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """Sum of h x^2 / 2 from a start at distance 1, along directions from flat to steep."""

    def __init__(self, h: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(16))
        self.target = torch.linspace(-1, 1, 16)
        self.h = h * torch.logspace(-3, 0, 16)

    def forward(self) -> torch.Tensor:
        noise = 0.1 * torch.randn(16)
        return (self.h * (self.x - self.target + noise).square()).sum() / 2


@contextmanager
def working(p: int, rule: hooke.Rule, tau: int, h: float, momentum: float = 0.0, lr: float = 0.1) -> Iterator[Any]:
    first = hooke.LocalCenter()
    torch.manual_seed(0)
    with ExitStack() as stack:
        stack.callback(first.close)
        loops = []
        for index in range(p):
            center = first if index == 0 else hooke.LocalCenter(first.path)
            stack.callback(center.close)
            model = Bowl(h)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=momentum > 0)
            worker = hooke.Worker(model, optimizer, rule, center=center, communication_period=tau)
            stack.enter_context(worker)
            worker._exchange.measure_always()
            loops.append((model, optimizer, worker))
        yield loops


def exchange_rounds(loops: Any, rounds: int, tau: int) -> None:
    for _ in range(rounds * tau):
        for model, optimizer, _ in loops:
            optimizer.zero_grad()
            model().backward()
            optimizer.step()


UNSTABLE = [
    (hooke.Downpour(), 4, 16, 0.5, 0.0),
    (hooke.Downpour(), 4, 64, 0.5, 0.0),
    (hooke.EASGD(), 4, 4, 20.5, 0.0),
    (hooke.EASGD(), 2, 64, 25.0, 0.0),  # a leap each period: not finite after three
    (hooke.EASGD(moving_rate=0.9), 1, 1, 9.0, 0.0),
    (hooke.EAMSGD(), 4, 4, 16.0, 0.9),
    (hooke.SlowMo(0.9, 12.0), 1, 8, 2.0, 0.0),
]


@pytest.mark.parametrize(("rule", "p", "tau", "h", "momentum"), UNSTABLE, ids=lambda value: str(value)[:24])
def test_a_run_that_leaves_its_stable_region_is_warned_of_once_and_in_time(
    rule: hooke.Rule, p: int, tau: int, h: float, momentum: float
) -> None:
    setting = {"lr": 0.1, "curvature": h, "num_workers": p, "communication_period": tau, "momentum": momentum}
    made = stability_of(rule, **setting)
    assert not made.is_stable

    def texts() -> list[str]:  # what is not finite is refused, with another warning
        return [str(one.message) for one in said if "stable region" in str(one.message)]

    with working(p, rule, tau, h, momentum) as loops, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(300):
            exchange_rounds(loops, 1, tau)
            if len(texts()) >= p:
                break
        assert all(bool(model.x.isfinite().all()) for model, _, _ in loops)
        assert len(said) == p  # each worker once
        exchange_rounds(loops, 2, tau)  # the center may refuse what is not finite by then
        assert sum("stable region" in str(one.message) for one in said) == p
    text = str(said[0].message)
    name = type(rule).__name__
    limit = made.border / 0.1
    assert text.startswith(
        "Worker: the run must stay in its stable region. Got a distance from the center that has grown"
    )
    assert f"This is {name} with {p} worker{'s' * (p > 1)}, lr 0.1 and period {tau}, stable only where" in text
    assert f"where the loss curves less than {limit:.3g}. Lower lr" in text
    assert text.endswith("`hooke plan SCRIPT` measures how far.")
    assert ("or use EASGD" in text) == (name not in ("EASGD", "EAMSGD"))


STABLE = [
    (hooke.Downpour(), 4, 4, 0.5, 0.0),
    (hooke.Downpour(), 4, 16, 0.3, 0.0),
    (hooke.EASGD(), 4, 16, 9.0, 0.0),
    (hooke.EASGD(moving_rate=0.02), 2, 2, 1.0, 0.0),
    (hooke.EAMSGD(), 4, 10, 5.0, 0.99),
    (hooke.LocalSGD(), 2, 10, 9.0, 0.0),
    (hooke.AsyncDiLoCo(), 2, 10, 1.0, 0.0),
    (hooke.Lookahead(), 1, 5, 9.0, 0.0),
]


@pytest.mark.parametrize(("rule", "p", "tau", "h", "momentum"), STABLE, ids=lambda value: str(value)[:24])
def test_a_stable_run_is_never_warned_of(rule: hooke.Rule, p: int, tau: int, h: float, momentum: float) -> None:
    with working(p, rule, tau, h, momentum) as loops:  # a warning is an error here
        exchange_rounds(loops, 40, tau)
        assert len(loops[0][2]._watch._divergence._seen) > 30


# Phases ---------------------------------------------------------------------------------------------------------


def fit(rule: hooke.Rule, phases: dict[int, int], steps: int) -> None:
    """A regression that learns to the end, whose later periods carry the worker a hundred times as far."""
    torch.manual_seed(0)
    model, truth, center = nn.Linear(20, 1), 3 * torch.randn(20, 1), hooke.LocalCenter()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    with hooke.Worker(model, optimizer, rule, center=center, communication_period=phases) as worker:
        worker._exchange.measure_always()
        for _ in range(steps):
            x = torch.randn(32, 20)
            optimizer.zero_grad()
            (model(x) - x @ truth).square().mean().backward()
            optimizer.step()
    center.close()


@pytest.mark.parametrize(
    ("rule", "phases"), [(hooke.LocalSGD(), {0: 1, 50: 256}), (hooke.EASGD(), {0: 1, 100: 512})], ids=str
)
def test_a_longer_period_explains_a_longer_way(rule: hooke.Rule, phases: dict[int, int]) -> None:
    fit(rule, phases, 1200)  # a warning is an error here


def said_of(watch: Watch, steps: Any, distances: Any) -> list[int]:
    """The steps at which it is said."""
    told = zip(steps, distances, strict=True)
    return [step for step, d in told if watch.sign(float(d), step, num_workers=4, length=lambda: 1e-9)]


def watching(*phases: tuple[int, int]) -> Watch:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    return Watch(hooke.Downpour(), optimizer, phases, synchronous=False, has_border=True)


def test_each_phase_is_judged_by_itself() -> None:
    short, long = np.arange(1, 101), np.arange(116, 1700, 16)
    steps, distances = np.concatenate([short, long]), np.concatenate([np.ones(len(short)), np.full(len(long), 1e5)])
    assert said_of(watching((0, 1), (100, 16)), steps, distances) == []
    assert said_of(watching((0, 1)), steps, distances) == [116]  # of one period it would be divergence
    grows = np.concatenate([np.ones(len(short)), 1e3 * 1.3 ** np.arange(len(long))])
    (step,) = said_of(watching((0, 1), (100, 16)), steps, grows)
    assert 100 + 16 * FEWEST < step < 100 + 16 * 60


def test_distances_are_compared_until_a_chosen_period_is_twice_as_long_or_half() -> None:
    """Eight distances of 1 and then 200: a sign, unless the worker's period has become another between them."""

    def signs(*chosen: int) -> list[int]:
        watch = watching((0, 10))
        said = said_of(watch, range(1, 100, 10), [1.0] * 10)
        for period in chosen:
            watch.paced(100, period)
        return said + said_of(watch, range(110, 200, 10), [200.0] * 9)

    assert signs() == [110]
    assert signs(19) == [110]
    assert signs(19, 12, 6) == [110]
    assert signs(20) == []
    assert signs(5) == []
    assert signs(19, 20) == []


def test_a_warning_names_the_period_that_was_chosen_last() -> None:
    watch = watching((0, 10))
    for step in range(1, 100, 10):
        watch.sign(1.0, step, num_workers=4, length=lambda: 2.0)
    watch.paced(100, 12)
    sign = watch.sign(200.0, 110, num_workers=4, length=lambda: 2.0)
    assert sign is not None and "period 12" in sign.text


def test_a_warning_comes_once_in_all_phases_and_names_the_period_of_its_own() -> None:
    watch, steps = watching((0, 4), (400, 16)), [*range(4, 401, 4), *range(416, 1700, 16)]
    signs = [watch.sign(1.2**k, step, num_workers=4, length=lambda: 1e-9) for k, step in enumerate(steps)]
    (sign,) = [sign for sign in signs if sign]
    border = stability_of(hooke.Downpour(), lr=1.0, curvature=1.0, num_workers=4, communication_period=4).border
    assert f"with 4 workers, lr 0.1 and period 4, stable only where the loss curves less than {border / 0.1:.3g}." in (
        sign.text
    )
    late = watching((0, 1), (400, 16))
    signs = [
        late.sign(max(1.0, 1.2 ** (k - 100)), step, num_workers=4, length=lambda: 1e-9) for k, step in enumerate(steps)
    ]
    assert ["and period 16, stable" in sign.text for sign in signs if sign] == [True]


# Simulated runs -------------------------------------------------------------------------------------------------


def simulated_warnings(monkeypatch: pytest.MonkeyPatch, tick: float) -> list[int]:
    """Virtual seconds at which workers warn, where a look at the real clock takes `tick` seconds."""
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: tick * next(looks), perf_counter=time.perf_counter)
    monkeypatch.setattr("hooke.exchange.time", clock)
    torch.manual_seed(0)
    with hooke.Simulation(
        Bowl(0.5),
        loss=lambda model, batch: model(),
        batches=lambda worker, step: None,
        rule=hooke.Downpour(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        communication_period=64,
    ) as simulation:
        counts = []
        for second in range(64, 2000, 64):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                simulation.run(until=float(second))
            counts += [second] * sum("stable region" in str(one.message) for one in said)
            if counts:
                break
    return counts


def test_when_a_simulated_worker_warns_does_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = simulated_warnings(monkeypatch, tick=0.0)
    assert len(fast) == 1  # once for the whole simulation
    assert simulated_warnings(monkeypatch, tick=1.0) == fast


# What is left of it ---------------------------------------------------------------------------------------------


def test_the_warning_is_a_row_and_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path), str(tmp_path / "center"), 0, 1, started=time.monotonic())
    monkeypatch.setenv("HOOKE_RUN", run.environment()["HOOKE_RUN"])
    rule = hooke.EASGD(moving_rate=0.9)
    with pytest.warns(RuntimeWarning, match="stable region"), working(1, rule, 1, 9.0) as loops:
        exchange_rounds(loops, 200, 1)
    rows = [row for row in read(run.files.rows(0)) if row["name"] == "diverging"]
    assert len(rows) == 1 and rows[0]["value"] > GROWTH and "Lower lr" in rows[0]["note"]
    (tmp_path / "run.json").write_text("{}")
    alerts = read_run(tmp_path).alerts
    assert [
        alert for alert in alerts if re.match(r"worker 0 seems to diverge, first at step \d+: Worker: the", alert.text)
    ]
