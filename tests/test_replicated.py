"""ReplicatedCenter: real processes over gloo, one copy of the center each, equal to the bit."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from cases import ETA, SYNCHRONOUS, Quadratic, RuleCase, flat, fragments_of, on_ranks
from torch import Tensor, nn

from hooke.averaged import Averaged
from hooke.outer import AsyncDiLoCo, DiLoCo
from hooke.replicated import ReplicatedCenter
from hooke.rule import EASGD, Downpour, LocalSGD, Rule
from hooke.spec import CenterSpec, Refused
from hooke.worker import Worker

STEPS = 100


def values(numel: int, seed: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def joined(numel: int, border: int = -1, seed: int = 0, rule: Rule = EASGD()) -> ReplicatedCenter:  # noqa: B008
    center = ReplicatedCenter()
    initial = values(numel, seed)
    center.join(initial, CenterSpec((), numel, border, rule.center_memory), rule.init_center(initial))
    return center


# Against the references ------------------------------------------------------------------------------------------


def train(
    rank: int, rule: Rule, tau: Any, steps: int, fragments: int = 1, momentum: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Through the public Worker; this rank's x and its copy of the center."""
    model = Quadratic(11, rank)
    center = ReplicatedCenter()
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA, momentum=momentum)
    with Worker(model, optimizer, rule, center=center, communication_period=tau, fragments=fragments):
        for _ in range(steps):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        return flat(model), center.pull()[:11].double().numpy()


def gradient(worker: int, x: np.ndarray) -> np.ndarray:
    problem = Quadratic(11, worker, torch.float64)
    return problem.A.numpy() @ (x - problem.b.numpy())


@pytest.mark.parametrize(("world", "tau"), [(2, 1), (3, 4)])
@pytest.mark.parametrize("case", SYNCHRONOUS, ids=lambda case: case.name)
def test_training_equals_the_synchronous_reference(case: RuleCase, world: int, tau: int, tmp_path: Path) -> None:
    got = on_ranks(world, tmp_path, train, case.rule, tau, STEPS)
    expected, center = case.expected(flat(Quadratic(11, 0)), gradient, p=world, tau=tau, steps=STEPS)
    for (x, its_center), its_expected in zip(got, expected, strict=True):
        assert np.abs(x - its_expected).max() <= 1e-5 * np.abs(its_expected).max()
        assert np.abs(its_center - center).max() <= 1e-5 * np.abs(center).max()
        assert its_center.tobytes() == got[0][1].tobytes()


STREAMING = [
    {"tau": tau, "fragments": fragments, "mixing": mixing}
    for tau, fragments in [(4, 3), (11, 11)]
    for mixing in (0, 0.4)
]
SWITCHES = [{"tau": 4, "switch": 10}, {"tau": 7, "switch": 0}, {"tau": 5, "switch": 33}]


def train_in_phases(rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Streaming DiLoCo at each of its settings, then post-local SGD at each of its own."""
    ends = []
    for one in STREAMING:
        rule = DiLoCo(0.6, 0.8, mixing=one["mixing"])
        ends.append(train(rank, rule, one["tau"], STEPS, fragments=one["fragments"]))
    for one in SWITCHES:
        phases = {0: 1, one["switch"]: one["tau"]} if one["switch"] else {0: one["tau"]}
        ends.append(train(rank, LocalSGD(), phases, STEPS))
    return ends


def test_streaming_and_post_local_sgd_equal_their_references(tmp_path: Path) -> None:
    x0 = flat(Quadratic(11, 0))
    common: dict[str, Any] = {"p": 2, "eta": ETA, "steps": STEPS}
    streaming = [one | {"fragments": fragments_of(Quadratic(11, 0), one["fragments"])} for one in STREAMING]
    expected = [reference.streaming_diloco(x0, gradient, **common, lr=0.6, momentum=0.8, **one) for one in streaming]
    expected += [reference.post_local_sgd(x0, gradient, **common, **one) for one in SWITCHES]
    got = on_ranks(2, tmp_path, train_in_phases)
    for rank, ends in enumerate(got):
        for (x, its_center), (workers, center) in zip(ends, expected, strict=True):
            assert np.abs(x - workers[rank]).max() <= 1e-5 * np.abs(workers[rank]).max()
            assert np.abs(its_center - center).max() <= 1e-5 * np.abs(center).max()


PROBABILITY, MIXING_RATE = 0.3, 2.0
DRAWS = np.random.default_rng(5).random((STEPS, 2))


def train_with_pulls(rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = []
    for tau in (4, 7):
        model, center = Quadratic(11, rank), ReplicatedCenter()
        optimizer = torch.optim.SGD(model.parameters(), lr=ETA / (1 - PROBABILITY))
        with Worker(model, optimizer, LocalSGD(), center=center, communication_period=tau) as worker:
            for draw in DRAWS[:, rank]:
                if draw < PROBABILITY:
                    worker.pull_(ETA * MIXING_RATE / PROBABILITY)
                    continue
                optimizer.zero_grad()
                model().backward()
                optimizer.step()
            assert worker.steps == STEPS
            ends.append((flat(model), center.pull()[:11].double().numpy()))
    return ends


def test_pulls_between_exchanges_are_palsgd(tmp_path: Path) -> None:
    got = on_ranks(2, tmp_path, train_with_pulls)
    for index, tau in enumerate((4, 7)):
        workers, mean = reference.palsgd(
            flat(Quadratic(11, 0)), gradient, p=2, alpha=ETA, tau=tau, steps=STEPS, probability=PROBABILITY,
            eta=MIXING_RATE, draws=DRAWS,
        )  # fmt: skip
        for rank, ends in enumerate(got):
            assert np.abs(ends[index][0] - workers[rank]).max() <= 1e-5 * np.abs(workers[rank]).max()
            assert np.abs(ends[index][1] - mean).max() <= 1e-5 * np.abs(mean).max()


def by_torch(rank: int, warmup: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """x by torch's own post-local SGD, and by ours; torch's first mean comes a step after its warm-up."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    model = Quadratic(11, rank)
    sgd = torch.optim.SGD(model.parameters(), lr=ETA, momentum=0.5)
    optimizer = PostLocalSGDOptimizer(sgd, PeriodicModelAverager(period=period, warmup_steps=warmup))
    for step in range(STEPS):
        optimizer.zero_grad()
        model().backward()
        if step < warmup:  # as DistributedDataParallel does
            dist.all_reduce(model.x.grad)
            model.x.grad.div_(dist.get_world_size())
        optimizer.step()
    phases = {0: 1, warmup + 1: period}
    return flat(model), train(rank, LocalSGD(), phases, STEPS, momentum=0.5)[0]


@pytest.mark.parametrize("warmup", [0, 30])
def test_phases_are_the_post_local_sgd_of_torch(warmup: int, tmp_path: Path) -> None:
    for theirs, ours in on_ranks(2, tmp_path, by_torch, warmup, 6):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


# Equal to the bit ------------------------------------------------------------------------------------------------


def exchange_often(rank: int, rule: Rule, numel: int, border: int, times: int) -> tuple[bytes, Tensor, Tensor]:
    center = joined(numel, border, seed=rank, rule=rule)
    x = center.pull() + values(numel, 10 + rank)
    total = x.double()
    state = rule.init(center.pull())
    for step in range(times):
        if step % 2:
            center.exchange_(x, rule, state)
        else:
            x -= center.exchange(x, rule, state, out=torch.full_like(x, torch.nan))
    dist.all_reduce(total)
    now = x.double()
    dist.all_reduce(now)
    assert center.exchanges == times * dist.get_world_size()
    assert center.bytes_sent == center.bytes_received == 4 * numel * times
    kept = b"".join(bits(vector) for vector in center.pull_memory().values())
    return bits(center.pull()) + kept, total + values(numel, 0).double(), now + center.pull().double()


def exchange_in_parts(rank: int, cuts: list[list[int]]) -> None:
    for rule in (DiLoCo(mixing=0.3), EASGD(), Averaged(Downpour())):
        ends = []
        for borders in cuts:
            center = joined(40, 27, seed=1, rule=rule)
            x, state = values(40, 10 + rank), rule.init(center.pull())
            for start, stop in pairwise(borders):
                place = {"start": start} if len(borders) > 2 else {}
                center.exchange_(x[start:stop], rule, tuple(s[start:stop] for s in state), **place)
            assert center.bytes_sent == 4 * 40
            ends.append([x, *state, center.pull(), *center.pull_memory().values()])
        for end in ends[1:]:
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(ends[0], end, strict=True))


def test_fragments_give_what_the_whole_vector_gives_to_the_bit(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, exchange_in_parts, [[0, 40], [0, 13, 40], [0, 30, 40], [0, 9, 27, 40]])


KEEPING = [DiLoCo(), AsyncDiLoCo(), Averaged(EASGD()), Averaged(DiLoCo(), 0.1)]


@pytest.mark.parametrize("rule", [EASGD(), EASGD(moving_rate=0.3), Downpour(), LocalSGD(), *KEEPING], ids=repr)
@pytest.mark.parametrize("world", [2, 3])
def test_the_center_is_equal_to_the_bit_on_every_rank(rule: Rule, world: int, tmp_path: Path) -> None:
    ranks = on_ranks(world, tmp_path, exchange_often, rule, 1001, 990, 50)
    assert len({center for center, _, _ in ranks}) == 1
    if isinstance(rule, EASGD):
        for _, before, after in ranks:
            torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("numel", [0, 1])
def test_the_smallest_centers_work_too(numel: int, tmp_path: Path) -> None:
    ranks = on_ranks(2, tmp_path, exchange_often, EASGD(), numel, -1, 3)
    assert len({center for center, _, _ in ranks}) == 1


def buffers_beside(rank: int, rule: Rule) -> tuple[list[float], list[float]]:
    center = ReplicatedCenter()
    center.join(torch.zeros(4), CenterSpec((), 4, 2))
    x = torch.full((4,), float(1 + rank))
    center.exchange_(x, rule, rule.init(torch.zeros(4)))
    return center.pull().tolist(), x.tolist()


def test_buffers_are_averaged_where_parameters_are_added_up(tmp_path: Path) -> None:
    """DOWNPOUR adds 1 and 2; behind the border the center is their mean, and every rank goes on from it."""
    for center, x in on_ranks(2, tmp_path, buffers_beside, Downpour()):
        assert center == pytest.approx([3, 3, 1.5, 1.5])
        assert x == pytest.approx([3, 3, 1.5, 1.5])


def all_the_rest(rank: int) -> tuple[int, float, list[float]]:
    center = joined(3, seed=rank)
    center.beat(5)
    out = torch.zeros(3)
    assert center.pull(out) is out
    center.put(torch.ones(3))
    distance = center.distance(torch.zeros(3))
    pulled = center.pull().tolist()
    center.leave()
    with pytest.raises(ValueError, match=r"^ReplicatedCenter: join comes first\. Got an object without a center\."):
        center.pull()
    assert torch.equal(out, values(3, 0))  # rank 0's
    return center.num_workers, distance, pulled


def test_every_rank_is_a_worker_and_begins_with_rank_0s_values(tmp_path: Path) -> None:
    for num_workers, distance, pulled in on_ranks(2, tmp_path, all_the_rest):
        assert (num_workers, pulled) == (2, [1, 1, 1])
        assert distance == pytest.approx(3**0.5)


def momentum_beside(rank: int) -> list[list[float]]:
    center = ReplicatedCenter()
    initial = torch.full((3,), float(rank))
    rule = DiLoCo(outer_lr=1.0, outer_momentum=0.5)
    center.join(initial, CenterSpec((), 3, 2, rule.center_memory), (torch.full((3,), 8.0 + rank),))
    steps = [list(center.pull_memory()), center.pull_memory()["momentum"].tolist()]
    state = rule.init(center.pull())
    center.exchange_(torch.full((3,), float(1 + rank)), rule, state)
    steps += [center.pull_memory()["momentum"].tolist(), center.pull().tolist()]
    center.put(torch.zeros(3))
    steps += [center.pull_memory()["momentum"].tolist()]
    center.put(torch.zeros(3), {"momentum": torch.ones(3)})
    return [*steps, center.pull_memory()["momentum"].tolist()]


def test_momentum_lives_beside_each_copy_of_the_center(tmp_path: Path) -> None:
    """Rank 0's to begin with; the mean way is 1.5, buffers are averaged and have no momentum."""
    for seen in on_ranks(2, tmp_path, momentum_beside):
        names, begun, moved, center, after_put, put = seen
        assert names == ["momentum"]
        assert begun == [8, 8, 8]
        assert moved == after_put == [5.5, 5.5, 8]
        assert center == [0 + 1.5 + 2.75, 0 + 1.5 + 2.75, 1.5]
        assert put == [1, 1, 1]


# Bad input: every rank gets a sentence, none hangs ---------------------------------------------------------------


def join_with(rank: int, sizes: list[int]) -> str:
    model = nn.Linear(2, sizes[rank])
    worker = Worker(model, torch.optim.SGD(model.parameters()), EASGD(), center=ReplicatedCenter())
    try:
        worker.start()
    except ValueError as error:
        return str(error)
    return "joined"


def test_another_model_on_one_rank_is_refused_on_every_rank(tmp_path: Path) -> None:
    first, second, third = on_ranks(3, tmp_path, join_with, [3, 3, 4])
    assert first == second
    assert first == (
        "ReplicatedCenter: every rank must bring rank 0's model, rule and periods. Got others on 1 rank(s). Build the "
        "same Worker on every rank."
    )
    assert third == (
        "center: every worker must bring the same model. weight has shape (4, 2), in the center it is (3, 2) (weight). "
        "Build the same model, in the same dtype and memory format, on every worker."
    )


def join_with_schedule(rank: int, schedules: list[dict[str, Any]]) -> str:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters())
    worker = Worker(model, optimizer, LocalSGD(), center=ReplicatedCenter(), **schedules[rank])
    try:
        worker.start()
    except ValueError as error:
        return str(error)
    return "joined"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"fragments": 2}, "period 10, 2 fragments"),
        ({"communication_period": {0: 1, 5: 10}}, "period 1 from step 0, 10 from step 5, 1 fragment"),
    ],
)
def test_another_schedule_on_one_rank_is_refused_instead_of_a_hang(other: dict, words: str, tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, join_with_schedule, [{}, other])
    assert first.startswith(
        "ReplicatedCenter: every rank must bring rank 0's model, rule and periods. Got others on 1 "
    )
    assert second == (
        "center: ranks that exchange at once must bring the same communication_period and fragments. Got "
        f"{words}, rank 0 has period 10, 1 fragment. Use the same on every rank."
    )


def exchange_spoiled(rank: int, spoiled: Tensor, rule: Rule) -> tuple[str, list[float], list[float]]:
    center = ReplicatedCenter()
    center.join(torch.zeros(4), CenterSpec((), 4))
    state = rule.init(torch.zeros(4))
    x = spoiled if rank == 1 else torch.ones(4)
    message = ""
    try:
        x = x - center.exchange(x, rule, state)
    except Refused as refused:
        message = str(refused)
        assert not any(memory.any() for memory in state)
    return message, center.pull().tolist(), x.tolist()


@pytest.mark.parametrize(
    ("spoiled", "sentence"),
    [
        (
            torch.tensor([1.0, torch.nan, 1.0, 1.0]),
            "center: x must be finite and below 1e+30. Got 1 of 4 values that are not.",
        ),
        (torch.full((4,), torch.inf), "center: x must be finite and below 1e+30. Got 4 of 4 values that are not."),
        (torch.ones(5), "center: x must be 4 float32 values on cpu. Got torch.float32 of shape (5,) on cpu."),
        (torch.ones(4).double(), "center: x must be 4 float32 values on cpu. Got torch.float64 of shape (4,) on cpu."),
    ],
)
@pytest.mark.parametrize("rule", [EASGD(moving_rate=0.5), LocalSGD()], ids=repr)
def test_a_rank_that_cannot_be_taken_contributes_nothing_and_the_others_go_on(
    rule: Rule, spoiled: Tensor, sentence: str, tmp_path: Path
) -> None:
    good, bad = on_ranks(2, tmp_path, exchange_spoiled, spoiled, rule)
    assert good == ("", [0.5] * 4, [0.5] * 4)
    assert bad[0].startswith(sentence)
    assert bad[1] == [0.5] * 4


def diverge(rank: int) -> tuple[int, list[str], bytes, bool]:
    """Rank 1 turns NaN at step 5 and is set back to the center at step 10, as its user would do."""
    import warnings

    model, center = Quadratic(11, rank), ReplicatedCenter()
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    with (
        warnings.catch_warnings(record=True) as seen,
        Worker(model, optimizer, EASGD(), center=center, communication_period=1) as worker,
    ):
        warnings.simplefilter("always")
        for step in range(20):
            if rank == 1 and step == 5:
                model.x.data[0] = torch.nan
            if rank == 1 and step == 10:
                model.x.data.copy_(center.pull()[:11])
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        words = [str(one.message) for one in seen]
        return worker.steps, words, bits(center.pull()), bool(model.x.isfinite().all())


def test_a_rank_that_turns_nan_stops_nobody(tmp_path: Path) -> None:
    good, bad = on_ranks(2, tmp_path, diverge)
    assert (good[0], bad[0]) == (20, 20)
    assert good[1] == []
    assert len(bad[1]) == 5
    assert all("an exchange was refused, training goes on." in word for word in bad[1])
    assert good[2] == bad[2]
    assert np.isfinite(np.frombuffer(good[2], np.float32)).all()
    assert good[3] and bad[3]


def begin_with_nan(rank: int) -> str:
    center = ReplicatedCenter()
    try:
        center.join(torch.full((3,), torch.nan if rank == 0 else 1.0), CenterSpec((), 3))
    except Refused as refused:
        return str(refused)
    return "joined"


def test_a_center_does_not_begin_with_what_it_would_refuse(tmp_path: Path) -> None:
    for message in on_ranks(2, tmp_path, begin_with_nan):
        assert message.startswith("center: x must be finite and below 1e+30. Got 3 of 3 values that are not.")


def test_without_a_process_group_there_is_a_sentence() -> None:
    sentence = (
        "ReplicatedCenter: torch.distributed must be initialized. Got a process without a group. Call "
        'torch.distributed.init_process_group("gloo") first, and start the script with torchrun.'
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        ReplicatedCenter()
