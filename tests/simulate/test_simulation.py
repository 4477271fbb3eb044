"""Real workers on a virtual clock, against a literal loop over the events of the timeline."""

from __future__ import annotations

import itertools
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import ETA, RULES, SYNCHRONOUS, Quadratic, RuleCase
from literal import BEGIN, MORTAL, SIZE, A, Literal, assert_close, bowl, events_of, expected, minimum_of, sgd, simulated
from torch import Tensor, nn

import hooke
from hooke.rule import Rule
from hooke.simulate import Cluster, Failure, Simulation
from hooke.simulate.center import Shared, VirtualCenter
from hooke.spec import CenterSpec, Refused

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


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rule", [hooke.EASGD(), hooke.Downpour(), hooke.LocalSGD(), hooke.DiLoCo()], ids=repr)
def test_workers_die_and_fresh_ones_start_from_the_center(rule: Rule, overlap: bool) -> None:
    kinds = {event.kind for event in events_of(MORTAL, 60.0, overlap=overlap)}
    assert kinds == {"exchange", "missed", "died", "joined"}
    assert_close(simulated(rule, MORTAL, 60.0, overlap=overlap), expected(rule, MORTAL, 60.0, overlap=overlap))


def test_an_exchange_that_a_death_cuts_short_never_happens() -> None:
    """Also where others came due meanwhile, which were missed: the center has nothing from it."""
    deaths = tuple(Failure(1, at, back=at + 0.5) for at in (7.3, 12.1, 19.6, 30.2, 44.4))
    cluster = Cluster(3, [1.0, 0.7, 1.1], bandwidth=16 * 32 / 1.5, failures=deaths)
    events = events_of(cluster, 60.0, 1, overlap=True)
    settled, cut_short = 0.0, 0
    for event in events:
        if event.worker == 1:
            settled = event.settled if event.kind in ("exchange", "joined") else settled
            cut_short += event.kind == "missed" and event.begun >= settled
    assert cut_short > 0
    for order in ("jacobi", "gauss-seidel"):
        rule = hooke.EASGD(order=order)
        got = simulated(rule, cluster, 60.0, overlap=True, communication_period=1)
        assert_close(got, expected(rule, cluster, 60.0, overlap=True, period=1))


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


def test_a_worker_that_is_refused_leads_nobody() -> None:
    """The lowest loss is worker 0's, whose values are not finite: as with `ReplicatedCenter`, worker 1 leads."""
    flat = hooke.FlatParameters(nn.Linear(1, 1))
    shared = Shared(synchronous=True)
    ends = [VirtualCenter(shared, worker) for worker in range(3)]
    for loss, end in zip((0.1, 0.5, 0.9), ends, strict=True):
        end.join(torch.zeros_like(flat.vector), CenterSpec.of(flat.entries, (), ""))
        end.report(loss)
    shared.workers = shared.expected = 3
    xs = [torch.full_like(flat.vector, value) for value in (math.inf, 1.0, 3.0)]
    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(end.exchange_, x, hooke.LSGD(0.1)) for end, x in zip(ends, xs, strict=True)]
    assert [type(one.exception()) for one in done] == [Refused, type(None), type(None)]
    assert shared.vector is not None
    assert (shared.vector[0].item(), xs[1][0].item()) == (1.0, 1.0)
    assert xs[2][0].item() == pytest.approx(3 - 0.1 * 2)
