"""GroupedCenter: real processes over gloo, two ranks a worker, equal to the bit; nobody hangs."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import network, on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hooke
from hooke.center import LocalCenter
from hooke.exchange import Overlapped
from hooke.grouped import GroupedCenter
from hooke.leader import LSGD
from hooke.ranks import Ranks, ranks_of
from hooke.record import read
from hooke.rule import EAMSGD, EASGD, LocalSGD, Rule
from hooke.run import Run
from hooke.spec import CenterSpec, Refused
from hooke.worker import Worker

LR, STEPS = 0.2, 20


class Gated(LocalCenter):
    """Lets an exchange through only when the test says so."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()

    def exchange(self, *args: Any, **kwargs: Any) -> Tensor:
        assert self.gate.wait(30)
        return super().exchange(*args, **kwargs)


def open_gate(worker: Worker) -> None:
    """Let the exchange under way come to its end, before the step in which its correction is to be subtracted."""
    own = ranks_of(worker.center)
    if own.speaks and isinstance(own.center, Gated) and (under_way := worker._exchange._under_way) is not None:
        own.center.gate.set()
        concurrent.futures.wait([under_way], 30)
        own.center.gate.clear()


def batches(worker: int, rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + 10 * worker + rank)
    return torch.randn(8, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def life(number: int, ranks: list[int], make: Callable[[nn.Module], nn.Module], center: Any, setting: dict) -> Iterator:
    """One worker's training, step by step, on the batches of these ranks; ends with its values."""
    model = make(network(number))  # another beginning for each worker
    setting = dict(setting)
    rule = setting.pop("rule")
    momentum = {"momentum": 0.9, "nesterov": True} if isinstance(rule, EAMSGD) else {}
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, **momentum)
    with Worker(model, optimizer, rule, center=center, **setting) as worker:
        for step in range(STEPS):
            drawn = [batches(number, rank, step) for rank in ranks]
            inputs, targets = (torch.cat(parts) for parts in zip(*drawn, strict=True))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            if setting.get("overlap") and step % 5 == 3:
                open_gate(worker)
            optimizer.step()
            yield None
        if setting.get("overlap"):
            open_gate(worker)
        with worker.center_weights():
            its_center = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    yield torch.cat([p.detach().reshape(-1) for p in model.parameters()]), its_center


def opened(path: str, setting: dict) -> LocalCenter:
    return Gated(path) if setting.get("overlap") else LocalCenter(path)


SETTINGS: list[dict[str, Any]] = [
    {"rule": EASGD(), "communication_period": 3},
    {"rule": EAMSGD(), "communication_period": 1},
    {"rule": LocalSGD(), "communication_period": 4, "fragments": 3},
    {"rule": EASGD(), "collect_period": 2, "delivery_period": 3},
    {"rule": LocalSGD(), "communication_period": 5, "overlap": True},
]


def two_workers(rank: int, folder: str) -> list[tuple[Tensor, Tensor]]:
    """This rank's values after each setting; the workers take turns."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    number, inner = divmod(rank, 2)
    ends = []
    for index, setting in enumerate(SETTINGS):
        path = f"{folder}/center{index}"
        center = GroupedCenter(lambda path=path, setting=setting: opened(path, setting), groups[number])
        wrap = lambda model: DistributedDataParallel(model, process_group=groups[number])  # noqa: E731
        lives = life(number, [inner], wrap, center, setting)
        end = None
        for _ in range(STEPS + 1):
            for turn in (0, 1):
                if turn == number:
                    end = next(lives)
                dist.barrier()
        for _ in lives:
            pass
        ends.append(end)
    return ends


def expected(folder: Path, index: int) -> list[tuple[Tensor, Tensor]]:
    setting = SETTINGS[index]
    path = str(folder / f"expected{index}")
    lives = [life(n, [0, 1], lambda model: model, opened(path, setting), setting) for n in (0, 1)]
    for _ in range(STEPS):
        for one in lives:
            next(one)
    ends = [next(one) for one in lives]
    for one in lives:
        list(one)
    return ends


def test_two_workers_of_two_ranks_equal_two_processes_with_doubled_batches(tmp_path: Path) -> None:
    ranks = on_ranks(4, tmp_path, two_workers, str(tmp_path))
    for index, setting in enumerate(SETTINGS):
        ends = expected(tmp_path, index)
        for rank, got in enumerate(ranks):
            for ours, theirs in zip(got[index], ends[rank // 2], strict=True):
                assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), (setting, rank)
            assert torch.equal(got[index][0], ranks[rank // 2 * 2][index][0]), (setting, rank)
        moved = torch.cat([p.detach().reshape(-1) for p in network(0).parameters()]) - ends[0][1]
        assert moved.abs().max() > 0.01  # the center went somewhere


# What the ranks know -------------------------------------------------------------------------------------------------


class Told(LocalCenter):
    """Notes the losses it is told."""

    losses: list[float]

    def report(self, loss: float) -> None:
        self.losses = [*getattr(self, "losses", []), loss]
        super().report(loss)


def small(center: GroupedCenter, rule: Rule, model: nn.Module | None = None, **setting: Any) -> tuple[Worker, Any]:
    model = model or DistributedDataParallel(network(dist.get_rank()))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    return Worker(model, optimizer, rule, center=center, **setting), optimizer


def step_once(worker: Worker, optimizer: Any, rank: int) -> None:
    optimizer.zero_grad()
    inputs, targets = batches(0, rank, worker.steps)
    nn.functional.cross_entropy(worker.model(inputs), targets).backward()
    optimizer.step()


def vector_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def know_the_same(rank: int, path: str) -> tuple[Any, ...]:
    center = GroupedCenter(Told(path) if rank == 0 else None)
    rule = hooke.Averaged(LocalSGD())
    worker, optimizer = small(center, rule, communication_period=2)
    with worker:
        for _ in range(5):
            step_once(worker, optimizer, rank)
        numbers = (center.num_workers, center.counted_workers, center.exchanges)
        memory = {name: vector.tolist() for name, vector in center.pull_memory().items()}
        state = worker.state_dict()
        distance = center.distance(torch.zeros(center.pull().numel()))
        center.put(center.pull() * 0 + 2.0)
        put = float(center.pull().min())
        with pytest.raises(
            RuntimeError, match=r"^Worker: save\(\) needs a worker of one process\. Got one of 2 ranks\."
        ):
            worker.save()
        with pytest.raises(RuntimeError, match=r"^Worker: checkpoint_due needs a worker of one process\."):
            _ = worker.checkpoint_due
        names = sorted(entry.name for entry in worker._flat.entries)
        sent = center.bytes_sent
    remembered = [vector.tolist() for vector in state["memory"]]
    return numbers, memory, remembered, distance, put, names, sent > 0


def test_every_rank_knows_what_the_center_said(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, know_the_same, str(tmp_path / "center"))
    assert first[:-1] == second[:-1]
    assert first[-1] and not second[-1]  # rank 0 counts the bytes
    numbers, memory, remembered, distance, put, names, _ = first
    assert numbers == (1, 1, 2)
    assert set(memory) == {"average", "averaged"} and len(remembered) == 1
    assert distance > 0 and put == 2.0
    assert names == ["0.bias", "0.weight", "2.bias", "2.weight"]  # as without DistributedDataParallel


def tell_losses(rank: int, path: str) -> list[float]:
    told = Told(path) if rank == 0 else None
    worker, optimizer = small(GroupedCenter(told), LSGD(), communication_period=1)
    with worker:
        for step in range(3):
            worker.record(loss=1.0 + step + 2 * rank)
            step_once(worker, optimizer, rank)
    return told.losses if told is not None else []


def test_a_leader_is_judged_by_the_mean_of_its_ranks(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, tell_losses, str(tmp_path / "center"))[0] == [2.0, 3.0, 4.0]


def write_rows(rank: int, folder: str) -> bool:
    os.environ |= Run(f"{folder}/run", f"{folder}/center", worker=0, num_workers=1, started=0.0).environment()
    center = GroupedCenter()
    normed = DistributedDataParallel(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)))
    worker, optimizer = small(center, EASGD(), normed, communication_period=1, overlap=True)
    with worker:
        worker._exchange.measure_always()
        for _ in range(6):
            step_once(worker, optimizer, rank)
    other = vector_of(worker.model)
    dist.broadcast(other, 1)
    del os.environ["HOOKE_RUN"]
    return torch.equal(other, vector_of(worker.model))


def test_rank_0_alone_writes_rows_and_measures(tmp_path: Path) -> None:
    (tmp_path / "run" / "workers").mkdir(parents=True)
    assert on_ranks(2, tmp_path, write_rows, str(tmp_path)) == [True, True]
    rows = list(read(tmp_path / "run" / "workers" / "0.jsonl"))
    steps = [row["step"] for row in rows if row["name"] == "exchange_seconds"]
    missed = [row["step"] for row in rows if row["name"] == "missed"]
    assert len(steps) + len(missed) == 6  # and not twice as many
    assert [row for row in rows if row["name"] == "center_distance"]


def wrapped_late(rank: int, path: str) -> tuple[list[str], bool]:
    """DistributedDataParallel may be put around a model that has become a view of one vector already."""
    model = network(rank)
    center = GroupedCenter(lambda: LocalCenter(path))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with Worker(model, optimizer, EASGD(), center=center, communication_period=2) as worker:
        worker.model = DistributedDataParallel(model)
        for _ in range(6):
            step_once(worker, optimizer, rank)
        names = [entry.name for entry in worker._flat.entries]
        in_vector = torch.equal(
            torch.cat([worker._flat.entries[i].view(worker._flat.vector).reshape(-1) for i in range(4)]),
            vector_of(model),
        )
    theirs = vector_of(model)
    dist.broadcast(theirs, 1)
    return names, in_vector and torch.equal(theirs, vector_of(model)) and center.exchanges == 3


def test_the_wrapper_may_come_after_the_worker(tmp_path: Path) -> None:
    for names, good in on_ranks(2, tmp_path, wrapped_late, str(tmp_path / "center")):
        assert names == ["0.weight", "0.bias", "2.weight", "2.bias"] and good


# Bad input: every rank gets a sentence, none hangs -------------------------------------------------------------------


def spoiled(rank: int, path: str, bad: list[int], overlap: bool) -> tuple[list[str], bytes, bool]:
    """NaNs in the parameters of these ranks at step 3, set back at step 6."""
    center = GroupedCenter(lambda: LocalCenter(path))
    model = network()
    worker, optimizer = small(center, EASGD(), model, communication_period=1, overlap=overlap)
    with warnings.catch_warnings(record=True) as seen, worker:
        warnings.simplefilter("always")
        for step in range(10):
            if step == 3 and rank in bad:
                model[0].weight.data[0] = torch.nan
            if step == 6:
                worker._flat.set_(center.pull())
            optimizer.zero_grad()
            sum(parameter.nan_to_num().square().sum() for parameter in model.parameters()).backward()
            optimizer.step()
            if overlap:
                worker._exchange.finish()
    words = [str(one.message) for one in seen]
    return words, vector_of(model).numpy().tobytes(), bool(vector_of(model).isfinite().all())


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("bad", [[0], [1], [0, 1]])
def test_values_that_are_not_finite_are_refused_on_every_rank(bad: list[int], overlap: bool, tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, spoiled, str(tmp_path / "center"), bad, overlap)
    assert first == second and first[2]
    words = first[0]
    assert len(words) == 3  # steps 3, 4, 5
    sentence = (
        "center: x must be finite and below 1e+30. Got 5 of"
        if bad == [0, 1]
        else "GroupedCenter: ranks of one worker must have equal parameters. Got others than rank 0's on rank(s) 1. "
        "Train a DistributedDataParallel of the model."
    )
    assert all(word.startswith(f"Worker: an exchange was refused, training goes on. {sentence}") for word in words)


def without_ddp(rank: int, path: str) -> list[str]:
    model = network()
    worker, optimizer = small(GroupedCenter(lambda: LocalCenter(path)), EASGD(), model, communication_period=2)
    with warnings.catch_warnings(record=True) as seen, worker:
        warnings.simplefilter("always")
        for _ in range(3):
            step_once(worker, optimizer, rank)
    return [str(one.message) for one in seen]


def test_ranks_that_train_apart_are_told_so(tmp_path: Path) -> None:
    for words in on_ranks(2, tmp_path, without_ddp, str(tmp_path / "center")):
        assert len(words) == 1 and "Train a DistributedDataParallel of the model." in words[0]


def lose_center(rank: int, folder: str, overlap: bool) -> tuple[list[str], bool, int]:
    """The center is served by rank 0's own process and dies at step 5."""
    server = hooke.serve(LocalCenter(f"{folder}/center")) if rank == 0 else None
    center = GroupedCenter(lambda: hooke.connect(server.url, timeout=5.0))  # type: ignore[union-attr]
    rule = LocalSGD()
    worker, optimizer = small(center, rule, communication_period=1, overlap=overlap)
    failures = []
    with worker:
        note = worker._exchange._done
        worker._exchange._done = lambda outcome: (failures.append(str(type(outcome.failure).__name__)), note(outcome))
        for step in range(10):
            if step == 5 and server is not None:
                worker_thread_may_end(worker)
                server.close()
            dist.barrier()
            step_once(worker, optimizer, rank)
            if overlap:
                worker._exchange.finish()
        try:
            center.pull()
        except OSError as error:
            failures.append(f"pull: {type(error).__name__}")
    theirs = vector_of(worker.model)
    dist.broadcast(theirs, 1)
    return failures, torch.equal(theirs, vector_of(worker.model)), worker.steps


def worker_thread_may_end(worker: Worker) -> None:
    if isinstance(worker._exchange, Overlapped) and (under_way := worker._exchange._under_way) is not None:
        concurrent.futures.wait([under_way], 30)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_dead_center_hangs_nobody(overlap: bool, tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, lose_center, str(tmp_path), overlap)
    assert first == second
    failures, equal, steps = first
    assert equal and steps == 10
    assert failures == ["NoneType"] * 5 + ["ConnectionError"] * 5 + ["pull: ConnectionError"]


def bring(rank: int, what: str) -> tuple[str, str]:
    def broken() -> LocalCenter:
        raise ConnectionRefusedError("connect: nobody listens.")

    choices: dict[str, Any] = {"nothing": None, "broken": broken, "synchronous": hooke.ReplicatedCenter}
    try:
        GroupedCenter(choices[what])
    except (OSError, ValueError) as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize(
    ("what", "kinds", "sentence"),
    [
        (
            "nothing",
            ("ValueError", "ValueError"),
            "Worker: needs a center. Got none: this script was not started by `hooke run`. Start it with `hooke run "
            "--workers 4 SCRIPT`, or pass center=hooke.LocalCenter() to train alone.",
        ),
        ("broken", ("ConnectionRefusedError", "ConnectionError"), "connect: nobody listens."),
        (
            "synchronous",
            ("ValueError", "ValueError"),
            "GroupedCenter: rank 0's center must be one where each worker exchanges on its own. Got ReplicatedCenter. "
            "Use hooke.connect(url) or hooke.LocalCenter(path).",
        ),
    ],
)
def test_what_rank_0_cannot_bring_is_said_on_every_rank(
    what: str, kinds: tuple[str, str], sentence: str, tmp_path: Path
) -> None:
    assert on_ranks(2, tmp_path, bring, what) == [(kind, sentence) for kind in kinds]


def out_of_order(rank: int, path: str, overlap: bool) -> list[str]:
    center = GroupedCenter(lambda: LocalCenter(path))
    worker, optimizer = small(center, EASGD(), communication_period=2, overlap=overlap)
    said = []
    with worker:
        step_once(worker, optimizer, rank)  # exchanges at step 0
        if overlap:
            worker._exchange.finish()
        step_once(worker, optimizer, rank)
        try:
            if rank == 0:
                center.pull()
            else:
                worker.exchange()
        except RuntimeError as error:
            said.append(str(error))
        worker.exchange()  # the ranks can still speak to each other
        step_once(worker, optimizer, rank)
    return said


@pytest.mark.parametrize("overlap", [False, True])
def test_what_rank_0_does_alone_is_said_on_every_rank(overlap: bool, tmp_path: Path) -> None:
    for said in on_ranks(2, tmp_path, out_of_order, str(tmp_path / "center"), overlap):
        assert said == [
            "GroupedCenter: every rank of a worker must do the same in the same order. Got pull on rank 0, exchange on "
            "rank 1. Call center_weights(), exchange(), state_dict() and what pulls or puts on every rank, not on rank "
            "0 alone."
        ]


def one_goes(rank: int, path: str) -> str:
    center = GroupedCenter(lambda: LocalCenter(path), timeout=3.0)
    initial = torch.zeros(4)
    center.join(initial, CenterSpec((), 4))
    if rank == 1:
        center.leave()
        return ""
    try:
        center.exchange(initial, EASGD())
    except RuntimeError as error:
        return str(error)
    return "exchanged"


def test_a_rank_that_has_gone_is_no_riddle(tmp_path: Path) -> None:
    said, _ = on_ranks(2, tmp_path, one_goes, str(tmp_path / "center"))
    assert said.startswith("GroupedCenter: every rank of the worker must come to exchange within 3 seconds. Got: ")
    assert said.endswith("Look at the rank that ended or waits; start the worker's ranks again.")


def raise_inside(rank: int, path: str) -> str:
    """A user's error on one rank, with an exchange under way, ends that rank at once."""
    worker, optimizer = small(GroupedCenter(lambda: LocalCenter(path)), EASGD(), communication_period=1, overlap=True)
    try:
        with worker:
            step_once(worker, optimizer, rank)
            raise KeyError("the user's own")
    except KeyError as error:
        return str(error)


def test_an_error_in_the_block_waits_for_no_rank(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, raise_inside, str(tmp_path / "center")) == ['"the user\'s own"'] * 2


def other_model(rank: int, path: str) -> str:
    model = nn.Linear(2, 3 + rank)
    try:
        small(GroupedCenter(lambda: LocalCenter(path)), EASGD(), model)[0].start()
    except ValueError as error:
        return str(error)
    return "joined"


def test_another_model_on_one_rank_is_refused_on_every_rank(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, other_model, str(tmp_path / "center"))
    assert first.startswith("GroupedCenter: every rank must bring rank 0's model, rule and periods.")
    assert "weight has shape (4, 2), in the center it is (3, 2)" in second


# Without any ranks ---------------------------------------------------------------------------------------------------


def test_one_process_is_a_group_of_one(center: LocalCenter) -> None:
    alone = ranks_of(center)
    assert type(alone) is Ranks and alone.center is center and (alone.size, alone.speaks) == (1, True)
    assert alone.agree(True) and not alone.agree(False)
    with pytest.raises(Refused):
        alone.share(Refused("no"))


def test_without_a_process_group_there_is_a_sentence() -> None:
    with pytest.raises(RuntimeError, match=r"^GroupedCenter: torch\.distributed must be initialized\. Got a process"):
        GroupedCenter()


@pytest.mark.gpu
def test_parameters_on_an_accelerator_stay_equal(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, on_accelerator, str(tmp_path / "center")) == [True, True]


def on_accelerator(rank: int, path: str) -> bool:
    """Over gloo, so that two ranks may share one accelerator."""
    equal = True
    for overlap in (False, True):
        model = DistributedDataParallel(network(rank).cuda())
        center = GroupedCenter(lambda overlap=overlap: LocalCenter(f"{path}{overlap}"))
        worker, optimizer = small(center, LocalSGD(), model, communication_period=2, overlap=overlap)
        with worker:
            for _ in range(10):
                optimizer.zero_grad()
                inputs, targets = (part.cuda() for part in batches(0, rank, worker.steps))
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            worker._exchange.finish()
            theirs = vector_of(model)
            dist.broadcast(theirs, 1)
            equal &= torch.equal(theirs, vector_of(model)) and center.exchanges > 0
    return equal
