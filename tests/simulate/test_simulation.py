"""Real workers on a virtual clock, against a literal loop over the events of the timeline."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import ETA, RULES, SYNCHRONOUS, Quadratic, RuleCase, network
from torch import Tensor, nn

import hooke
from hooke.rule import Rule
from hooke.simulate import Cluster, Drift, Event, Failure, Simulation, timeline

SIZE = 9
A = Quadratic(SIZE, 0, torch.float64).A.numpy()
BEGIN = Quadratic(SIZE, 0, torch.float64).x.detach().numpy()


def minimum_of(worker: int, step: int = 0) -> Tensor:
    """Worker i's batches: the minimum of a bowl, which moves a little at each step."""
    fixed = np.random.default_rng(100 + worker).normal(size=SIZE)
    return torch.tensor(fixed + 0.1 * np.random.default_rng((worker, step)).normal(size=SIZE), dtype=torch.float32)


def bowl(model: nn.Module, b: Tensor) -> Tensor:
    away = model.x - b
    return away @ model.A @ away / 2


def sgd(momentum: float = 0.0) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=ETA, momentum=momentum, nesterov=momentum > 0)


def simulated(rule: Rule, cluster: Cluster, until: float, *, momentum: float = 0.0, **options: Any) -> np.ndarray:
    """The center of a simulation on bowls."""
    settings = {"communication_period": 4, "batches": minimum_of, "optimizer": sgd(momentum)} | options
    with Simulation(Quadratic(SIZE, 0), bowl, rule=rule, cluster=cluster, **settings) as simulation:
        simulation.run(until)
        return simulation.center[:SIZE].double().numpy()


class Literal:
    """Event by event, in float64, with what an exchange takes from x subtracted when it settles."""

    def __init__(self, rule: Rule, p: int, momentum: float, batches: Callable[[int, int], Tensor]) -> None:
        self.rule, self.momentum, self.batches = rule, momentum, batches
        self.center = torch.tensor(BEGIN)
        self.memory = rule.init_center(self.center)
        self.x, self.v, self.state, self.taken, self.owed = {}, {}, {}, {}, {}
        for worker in range(p):
            self.join(worker)

    def join(self, worker: int) -> None:
        self.x[worker] = self.center.clone()
        self.v[worker] = torch.zeros(SIZE, dtype=torch.float64)
        self.state[worker] = self.rule.init(self.center)
        self.taken[worker], self.owed[worker] = 0, (math.inf, None)

    def walk(self, worker: int, step: int) -> None:
        while self.taken[worker] < step:
            x, v = self.x[worker], self.v[worker]
            b = self.batches(worker, self.taken[worker]).double()
            v = self.momentum * v - ETA * torch.tensor(A) @ (x + self.momentum * v - b)
            self.x[worker], self.v[worker] = x + v, v
            self.taken[worker] += 1
            self.settle(worker)

    def settle(self, worker: int) -> None:
        at, correction = self.owed[worker]
        if at <= self.taken[worker]:
            self.x[worker], self.owed[worker] = self.x[worker] - correction, (math.inf, None)

    def exchange(self, event: Event) -> None:
        """Jacobi waits for the step; where the worker waits for the exchange, Gauss-Seidel does not."""
        worker, x = event.worker, self.x[event.worker].clone()
        if not x.isfinite().all():
            return
        out = torch.empty_like(x)
        self.rule.bind(event.workers).exchange_(x, self.center, self.state[worker], out, memory=self.memory)
        at = event.settled_step
        if at == event.step and self.rule.order == "jacobi":
            at += 1
        self.owed[worker] = at, out
        self.settle(worker)

    def happen(self, event: Event) -> None:
        if event.kind == "joined":
            self.join(event.worker)
        elif event.kind == "exchange" and (event.step or self.rule.order == "jacobi"):
            self.walk(event.worker, event.step)
            self.exchange(event)


def events_of(cluster: Cluster, until: float, period: int = 4, **options: Any) -> list[Event]:
    """Those that a simulation of bowls goes by; a vector of 9 fills a line of 16."""
    every = timeline(cluster, values=16, communication_period=period, steps=1 << 40, **options)
    return list(itertools.takewhile(lambda event: event.absorbed <= until, every))


def expected(rule: Rule, cluster: Cluster, until: float, *, momentum: float = 0.0, period: int = 4, **options: Any):
    batches = options.pop("batches", minimum_of)
    literal = Literal(rule, cluster.num_workers, momentum, batches)
    for event in events_of(cluster, until, period, **options):
        literal.happen(event)
    return literal.center.numpy()


def assert_close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-5) -> None:
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


UNEVEN = Cluster(3, [1.0, 1.3, 2.1], jitter=0.2, bandwidth=16 * 32 / 0.7, latency=0.1)


# What a simulation computes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_every_rule_equals_the_literal_loop_over_the_events(case: RuleCase) -> None:
    want = expected(case.rule, UNEVEN, 100.0, momentum=case.momentum)
    assert_close(simulated(case.rule, UNEVEN, 100.0, momentum=case.momentum), want)
    assert np.abs(want - BEGIN).max() > 0.1


@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_workers_of_equal_speed_take_turns_as_in_the_papers(case: RuleCase) -> None:
    """Events of the same time come in the order of the workers' numbers."""
    cluster, steps = Cluster(3), 41  # the exchange of step 40 is the last
    got = simulated(case.rule, cluster, 40.0, momentum=case.momentum, batches=lambda worker, step: minimum_of(worker))

    def gradient(worker: int, x: np.ndarray) -> np.ndarray:
        return A @ (x - minimum_of(worker).double().numpy())

    assert_close(got, case.expected(BEGIN, gradient, p=3, tau=4, steps=steps)[1])


@pytest.mark.parametrize("case", SYNCHRONOUS, ids=lambda case: case.name)
def test_synchronous_workers_equal_the_papers_equations(case: RuleCase) -> None:
    cluster = Cluster(3, [1.0, 1.3, 2.1], bandwidth=1e3, latency=0.1)
    *_, last = (event for event in events_of(cluster, 200.0, synchronous=True) if event.kind == "exchange")

    def gradient(worker: int, x: np.ndarray) -> np.ndarray:
        return A @ (x - minimum_of(worker).double().numpy())

    got = simulated(case.rule, cluster, 200.0, synchronous=True, batches=lambda worker, step: minimum_of(worker))
    assert last.step >= 60
    assert_close(got, case.expected(BEGIN, gradient, p=3, tau=4, steps=last.step + 1)[1])


OVERLAPPED = [
    hooke.EASGD(beta=0.9),
    hooke.EASGD(beta=0.9, order="gauss-seidel"),
    hooke.Downpour(),
    hooke.AsyncDiLoCo(0.6, 0.8),
    hooke.Averaged(hooke.LocalSGD(), 0.1),
]


@pytest.mark.parametrize("period", [1, 2, 5])
@pytest.mark.parametrize("lost", [0.0, 0.3])
@pytest.mark.parametrize("rule", OVERLAPPED, ids=repr)
def test_a_correction_arrives_when_the_timeline_says(rule: Rule, lost: float, period: int) -> None:
    """On links so slow that exchanges come back within a step, after several, and after others came due."""
    cluster = Cluster(3, [1.0, 1.3, 2.1], jitter=0.3, bandwidth=16 * 32 / 0.4, latency=0.05, lost=lost)
    events = events_of(cluster, 60.0, period, overlap=True)
    late = {event.settled_step - event.step for event in events if event.kind == "exchange"}
    missed = sum(event.kind == "missed" for event in events)
    assert {1, 2} <= late
    assert (missed > 0) == (lost > 0 or period == 1)
    got = simulated(rule, cluster, 60.0, overlap=True, communication_period=period)
    assert_close(got, expected(rule, cluster, 60.0, overlap=True, period=period))


def test_what_comes_due_while_an_exchange_is_under_way_is_missed() -> None:
    """Meanwhile the center absorbs from those who are before it in the queue."""
    cluster = Cluster(4, [1.0, 1.0, 1.1, 1.2], bandwidth=16 * 32 / 1.5)
    events = events_of(cluster, 50.0, 1, overlap=True)
    assert sum(event.kind == "missed" for event in events) > 20
    got = simulated(hooke.EASGD(), cluster, 50.0, overlap=True, communication_period=1)
    assert_close(got, expected(hooke.EASGD(), cluster, 50.0, overlap=True, period=1))


@pytest.mark.parametrize("overlap", [False, True])
def test_fragments_equal_a_worker_that_exchanges_them_in_turn(overlap: bool) -> None:
    """One worker alone, whose exchanges take no time: `hooke.Worker` does the same without any clock."""
    rule, cluster = hooke.DiLoCo(0.7, 0.9), Cluster(1)
    options = {"communication_period": 6, "fragments": 3}
    got = simulated(rule, cluster, 60.0, overlap=overlap, **options)
    model, center = Quadratic(SIZE, 0), hooke.LocalCenter()
    optimizer = sgd()(model.parameters())
    with hooke.Worker(model, optimizer, rule, center=center, **options):
        for step in range(60):
            optimizer.zero_grad()
            bowl(model, minimum_of(0, step)).backward()
            optimizer.step()
        want = center.pull()[:SIZE].double().numpy()
    center.close()
    if overlap:
        assert_close(got, want, 1.0)  # subtracted one step later
        assert np.abs(got - want).max() > 0
    else:
        assert got.tobytes() == want.tobytes()


# Who comes and goes ----------------------------------------------------------------------------------------------

MORTAL = Cluster(
    4,
    [1.0, 1.2, 1.4, 1.9],
    jitter=0.1,
    drift=Drift(every=10.0, sigma=0.3),
    bandwidth=16 * 32 / 0.3,
    latency=0.05,
    failures=(Failure(1, 13.0), Failure(2, 9.0, back=20.5), Failure(2, 31.0, back=33.0), Failure(3, 0.0, back=7.0)),
    lost=0.1,
)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rule", [hooke.EASGD(), hooke.Downpour(), hooke.LocalSGD(), hooke.DiLoCo()], ids=repr)
def test_workers_die_and_fresh_ones_start_from_the_center(rule: Rule, overlap: bool) -> None:
    kinds = {event.kind for event in events_of(MORTAL, 60.0, overlap=overlap)}
    assert kinds == {"exchange", "missed", "died", "joined"}
    assert_close(simulated(rule, MORTAL, 60.0, overlap=overlap), expected(rule, MORTAL, 60.0, overlap=overlap))


def test_a_synchronous_ring_goes_on_without_the_dead_and_with_who_joins() -> None:
    """The worker that comes back counts its own steps from 0, and meets the others at each of its exchanges."""
    cluster = Cluster(3, [1.0, 1.1, 1.3], failures=(Failure(2, 10.0, back=20.0),))
    until = 60.0
    literal = Literal(hooke.LocalSGD(), 3, 0.0, minimum_of)
    events = events_of(cluster, until, synchronous=True)
    for _, group in itertools.groupby(events, key=lambda event: (event.kind == "exchange", event.absorbed)):
        together = list(group)
        if together[0].kind != "exchange":
            literal.happen(together[0])
            continue
        met = [event for event in together if event.step]
        for event in met:
            literal.walk(event.worker, event.step)
        if met:
            literal.center = literal.center + sum(
                (literal.x[event.worker] - literal.state[event.worker][0]) / event.workers for event in met
            )
        for event in met:
            literal.x[event.worker] = literal.center.clone()
            literal.state[event.worker] = (literal.center.clone(),)
    assert any(len({event.step for event in events if event.absorbed == e.absorbed}) > 1 for e in events if e.step)
    assert_close(simulated(hooke.LocalSGD(), cluster, until, synchronous=True), literal.center.numpy())


@pytest.mark.parametrize("order", ["jacobi", "gauss-seidel"])
def test_exchanges_keep_the_sum_of_center_and_workers(order: Any) -> None:
    """With constant gradients the sum moves by what the workers stepped, and by nothing else."""
    slopes = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0))
    with Simulation(
        Quadratic(SIZE, 0),
        lambda model, slope: model.x @ slope,
        lambda worker, step: slopes[worker],
        hooke.EASGD(order=order),
        optimizer=sgd(),
        cluster=MORTAL,
        communication_period=4,
    ) as simulation:

        def total() -> tuple[Tensor, Tensor]:
            members = simulation._members.values()
            x = torch.stack([member.worker.model.x.detach() for member in members]).double().sum(0)
            stepped = sum(member.calls * slopes[member.number].double() for member in members)
            return x + simulation.center[:SIZE].double(), stepped * ETA

        for began, ended in ((0.1, 6.5), (14.0, 20.0), (21.0, 30.0), (34.0, 80.0)):  # nobody comes or goes
            simulation.run(began)
            (before, gone), count = total(), simulation.exchanges
            simulation.run(ended)
            after, gone_since = total()
            assert simulation.exchanges > count
            torch.testing.assert_close(after, before - (gone_since - gone), rtol=0, atol=2e-5)
            assert (gone_since - gone).abs().max() > 0.05


@pytest.mark.parametrize("overlap", [False, True])
def test_a_worker_that_diverges_is_refused_and_nobody_else_suffers(overlap: bool) -> None:
    def batches(worker: int, step: int) -> Tensor:
        return torch.full((SIZE,), torch.nan) if worker == 1 and step >= 6 else minimum_of(worker, step)

    events = events_of(UNEVEN, 60.0, overlap=overlap)
    refused = sum(event.kind == "exchange" and event.worker == 1 and event.step > 6 for event in events)
    settings: dict[str, Any] = {"communication_period": 4, "overlap": overlap, "cluster": UNEVEN}
    with (
        warnings.catch_warnings(record=True) as seen,
        Simulation(Quadratic(SIZE, 0), bowl, batches, hooke.EASGD(), optimizer=sgd(), **settings) as simulation,
    ):
        warnings.simplefilter("always")
        simulation.run(60.0)
        assert_close(
            simulation.center[:SIZE].double().numpy(),
            expected(hooke.EASGD(), UNEVEN, 60.0, overlap=overlap, batches=batches),
        )
        assert simulation.refused == refused > 5
        assert simulation.exchanges == sum(event.kind == "exchange" for event in events) - refused
    assert all("Worker: an exchange was refused, training goes on." in str(one.message) for one in seen)
    assert refused - 1 <= len(seen) <= refused  # one may be under way


def test_a_refused_worker_holds_up_no_synchronous_exchange() -> None:
    def batches(worker: int, step: int) -> Tensor:
        return torch.full((SIZE,), torch.nan) if worker == 1 else minimum_of(worker)

    def gradient(worker: int, x: np.ndarray) -> np.ndarray:
        return A @ (x - minimum_of(2 * worker).double().numpy())

    with pytest.warns(RuntimeWarning, match="an exchange was refused"):
        got = simulated(hooke.EASGD(moving_rate=0.3), Cluster(3), 40.0, synchronous=True, batches=batches)
    want = reference.easgd_synchronous(BEGIN, gradient, p=2, eta=ETA, alpha=0.3, tau=4, steps=41)[1]
    assert_close(got, want)


def test_when_all_have_died_the_clock_runs_on() -> None:
    cluster = Cluster(2, failures=(Failure(0, 10.0), Failure(1, 12.0)))
    with Simulation(
        Quadratic(SIZE, 0), bowl, minimum_of, hooke.EASGD(), optimizer=sgd(), cluster=cluster
    ) as simulation:
        simulation.run(15.0)
        center = simulation.center
        simulation.run(1000.0)
        assert torch.equal(simulation.center, center)
        assert (simulation.steps, simulation.seconds) == (10 + 12, 1000.0)


# Same seed, same bytes --------------------------------------------------------------------------------------------


def classify(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def examples(worker: int, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 * worker + step)
    x = torch.randn(8, 5, generator=generator)
    return {"x": x, "y": torch.randint(0, 3, (8,), generator=generator)}


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def leave(folder: Path, stops: Iterable[float], seed: int = 0, **options: Any) -> dict[str, bytes]:
    """The bytes of the center, and of everything that the simulation of a net with dropout has written."""
    model = nn.Sequential(network(), nn.Dropout(0.3), nn.Linear(3, 3))
    settings = {"cluster": MORTAL, "communication_period": 3, "seed": seed, "rows": folder} | options
    with Simulation(model, classify, examples, hooke.EASGD(), optimizer=adamw, **settings) as simulation:
        for until in stops:
            simulation.run(until)
            with simulation.center_weights() as center, torch.no_grad():
                center(torch.ones(1, 5))  # whoever looks on changes nothing
        found = {"center": simulation.center.numpy().tobytes()}
    return found | {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json*"))}


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"stacked": True}, {"overlap": True, "stacked": True}])
def test_the_same_seed_gives_the_same_bytes_in_one_run_or_in_many(options: dict[str, bool], tmp_path: Path) -> None:
    once = leave(tmp_path / "once", [40.0], **options)
    assert leave(tmp_path / "again", [40.0], **options) == once
    assert leave(tmp_path / "pieces", np.linspace(0, 40, 14), **options) == once
    assert set(once) == {"center", "run.json", *(f"workers/{number}.jsonl" for number in range(4))}
    other = leave(tmp_path / "other", [40.0], seed=1, **options)
    assert all(other[name] != once[name] for name in once)


def test_another_seed_draws_other_dropout_at_the_same_times(tmp_path: Path) -> None:
    even = {"cluster": Cluster(2)}
    one, other = (leave(tmp_path / str(seed), [9.0], seed=seed, **even) for seed in (0, 1))
    assert one["center"] != other["center"]


def test_the_global_chances_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(5, 3))
    before, numpys = torch.random.get_rng_state(), np.random.get_state()[1].tobytes()
    with Simulation(model, classify, examples, hooke.EASGD(), optimizer=adamw) as simulation:
        simulation.run(3.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tobytes() == numpys


# Settings --------------------------------------------------------------------------------------------------------


def make(**options: Any) -> Simulation:
    settings = {"rule": hooke.EASGD(), "batches": minimum_of, "optimizer": sgd()} | options
    return Simulation(settings.pop("model", Quadratic(SIZE, 0)), bowl, **settings)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"overlap": True, "synchronous": True},
            "Simulation: overlap needs workers that exchange on their own. Got synchronous=True too. Drop one of them.",
        ),
        (
            {"communication_period": {0: 1, 9: 3}},
            "Simulation: communication_period must be one whole number of steps. Got {0: 1, 9: 3}. Use e.g. 10.",
        ),
        (
            {"communication_period": 0},
            "Worker: communication_period must be a whole number of steps, at least 1. Got 0. Use e.g. 10.",
        ),
        (
            {"communication_period": 10, "fragments": 4},
            "Simulation: fragments must divide communication_period. Got 4 fragments and a period of 10. "
            "Use e.g. fragments=2.",
        ),
        ({"fragments": 0}, "Worker: fragments must be a whole number, at least 1. Got 0. Use e.g. 4."),
        (
            {"communication_period": 30, "fragments": 15, "synchronous": True, "cluster": Cluster(2, lost=0.1)},
            "timeline: synchronous=True needs overlap=False, shards=1 and lost=0. Got overlap=False, shards=1, "
            "lost=0.1. A ring of workers has no center; drop synchronous or those.",
        ),
        ({"rule": hooke.EAMSGD(), "optimizer": adamw}, "Worker: EAMSGD needs torch.optim.SGD with nesterov=True. Got"),
        (
            {"optimizer": lambda parameters: None},
            "Simulation: optimizer must make one from parameters. Got None from it. Use e.g. lambda parameters: "
            "torch.optim.SGD(parameters, lr=0.1).",
        ),
        ({"model": nn.Tanh()}, "FlatParameters: model must have a trainable parameter. Got none."),
        ({"buffers": "none"}, "Worker: buffers must be one of ('average', 'local'). Got 'none'. Use 'average'."),
    ],
)
def test_a_bad_setting_gets_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**options)
    assert str(caught.value).startswith(sentence)


def test_time_does_not_turn_back_and_the_closed_stay_closed() -> None:
    simulation = make()
    simulation.run(5.0)
    simulation.run(5.0)
    sentence = r"^Simulation: until must be a time from the 5 seconds reached on\. Got 4\.0\. Use a later one\.$"
    with pytest.raises(ValueError, match=sentence):
        simulation.run(4.0)
    for never in (math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^Simulation: until must be"):
            simulation.run(never)
    with pytest.raises(ValueError, match=r"^Simulation: center_weights\(average=True\) needs a rule that keeps one\."):
        simulation.center_weights(average=True).__enter__()
    with pytest.raises(ValueError, match=r"^Record: name must be one of"):
        simulation.record(color=1.0)
    simulation.record(accuracy=0.5)
    simulation.close()
    simulation.close()
    assert (simulation.steps, simulation.exchanges) == (0, 4)  # each counted up to its last exchange, at step 0
    closed = (
        r"^Simulation: run\(\) needs one that is open\. Got one that was closed, or whose run has failed\. Make "
        r"another, and call it inside `with`\.$"
    )
    with pytest.raises(RuntimeError, match=closed):
        simulation.run(9.0)
    with pytest.raises(RuntimeError, match=r"^Simulation: record\(\) needs one that is open\."):
        simulation.record(accuracy=0.5)


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"synchronous": True}])
def test_a_run_that_fails_says_why_and_is_over(options: dict[str, bool]) -> None:
    def batches(worker: int, step: int) -> Tensor:
        if (worker, step) == (2, 11):
            raise FileNotFoundError("no batch 11")
        return minimum_of(worker, step)

    simulation = make(batches=batches, **options)
    with pytest.raises(FileNotFoundError, match="no batch 11"):
        simulation.run(60.0)
    with pytest.raises(RuntimeError, match="whose run has failed"):
        simulation.run(60.0)


def test_a_worker_that_fails_at_a_synchronous_exchange_leaves_nobody_waiting() -> None:
    class Moody(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise ArithmeticError("not today")

    made = iter([torch.optim.SGD, Moody, torch.optim.SGD])
    simulation = make(optimizer=lambda p: next(made)(p, lr=0.1), cluster=Cluster(3), synchronous=True)
    with pytest.raises(ArithmeticError, match="not today"):
        simulation.run(5.0)


def test_what_is_under_way_at_the_end_hangs_nobody() -> None:
    """Without `with`, too: no thread waits for a clock that has stopped."""
    simulation = make(overlap=True, communication_period=1, cluster=Cluster(2, bandwidth=16 * 32 / 2.5))
    simulation.run(20.0)
    moments = (20.0 + 0.1 * i for i in range(50))
    while not any(member.is_busy_after(member.calls) for member in simulation._members.values()):
        simulation.run(next(moments))


def test_a_scheduler_steps_with_the_optimizer() -> None:
    def slower(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)

    with make(scheduler=slower, cluster=Cluster(1), communication_period=5) as simulation:
        simulation.run(30.0)
        (member,) = simulation._members.values()
        assert member.calls == 31
        assert member.worker.optimizer.param_groups[0]["lr"] == pytest.approx(ETA * 1e-3)


def test_the_average_of_the_center_can_be_held() -> None:
    with make(rule=hooke.Averaged(hooke.EASGD(), 0.5)) as simulation:
        simulation.run(50.0)
        with simulation.center_weights() as model:
            center = model.x.clone()
        with simulation.center_weights(average=True) as model:
            average = model.x.clone()
        assert torch.equal(center, simulation.center[:SIZE])
        assert 0 < (average - center).norm() < (center - torch.tensor(BEGIN)).norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_models_with_buffers_are_simulated_too(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).to(dtype)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"].to(dtype)), batch["y"])

    with Simulation(model, loss, examples, hooke.LocalSGD(), optimizer=adamw, communication_period=3) as simulation:
        simulation.run(30.0)
        with simulation.center_weights() as center:
            assert all(p.dtype == dtype for p in center.parameters())
            assert 0 < center[1].running_mean.abs().max() < 1
            losses = [loss(net.eval(), examples(9, 9)).item() for net in (model, center)]
    assert losses[1] != losses[0]
    assert model[1].running_mean.abs().max() == 0  # the user's model stays as it is


def test_inside_hooke_run_it_leaves_no_rows_of_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hooke.Run(str(tmp_path), str(tmp_path / "center"), 0, 1, 0.0)
    for name, value in run.environment().items():
        monkeypatch.setenv(name, value)
    with make() as simulation:
        simulation.run(5.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("synchronous", [False, True])
def test_leaders_pull_the_others(synchronous: bool) -> None:
    """Worker 1's loss is always the lowest: the center is where it was at its last exchange, the others come nearer."""
    start = nn.Parameter(torch.zeros(3))

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(start.detach().clone())

    simulation = Simulation(
        Point(),
        lambda model, batch: ((model.x - batch) ** 2).sum() / 2 + 100 * (batch[0] < 1),
        lambda worker, step: torch.full((3,), float(worker)),
        hooke.LSGD(pull=0.5),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        cluster=Cluster(2),
        communication_period=5,
        synchronous=synchronous,
    )
    with simulation:
        simulation.run(36.0)
        leader = 1 - 0.9**35
        torch.testing.assert_close(simulation.center[:3], torch.full((3,), leader))
        follower = 0.0
        for exchange in range(7):
            follower = 0.9**5 * follower
            seen = 1 - 0.9 ** (5 * (exchange + (1 if synchronous else 0)))
            follower += 0.5 * (seen - follower) if exchange or synchronous else 0.0
        x = next(simulation._members[0].worker.model.parameters()).detach()
        torch.testing.assert_close(x, torch.full((3,), follower))
