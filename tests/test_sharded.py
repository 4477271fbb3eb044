"""ShardedCenter: several centers are one, to the bit; a part that fails costs itself alone."""

from __future__ import annotations

import re
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import RULES, RuleCase
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hooke
from hooke import center as center_module
from hooke.center import LocalCenter, blocks_of
from hooke.flat import Entry, FlatParameters
from hooke.leader import LSGD
from hooke.replicated import ReplicatedCenter
from hooke.rule import EASGD, LocalSGD, Rule
from hooke.sharded import ShardedCenter, _cuts
from hooke.spec import CenterSpec, Refused
from hooke.worker import Worker

BLOCK = 32
NUMEL, BORDER = 10 * BLOCK + 5, 7 * BLOCK + 9


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center_module, "BLOCK", BLOCK)


class Failing(LocalCenter):
    """Fails when told to."""

    failure: Exception | None = None

    def exchange(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.failure is not None:
            raise self.failure
        return super().exchange(*args, **kwargs)

    def exchange_(self, *args: Any, **kwargs: Any) -> None:
        if self.failure is not None:
            raise self.failure
        super().exchange_(*args, **kwargs)

    def distance(self, x: Tensor) -> float:
        if self.failure is not None:
            raise self.failure
        return super().distance(x)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def sharded(folder: Path, count: int) -> ShardedCenter:
    return ShardedCenter([Failing(folder / f"part{index}") for index in range(count)])


def values(numel: int, seed: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def joined(center: Any, rule: Rule, seed: int = 0) -> Any:
    initial = values(NUMEL, seed)
    return center.join(initial, CenterSpec((), NUMEL, BORDER, rule.center_memory), rule.init_center(initial))


# One center ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 11])
@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_parts_are_one_center_to_the_bit(case: RuleCase, count: int, folder: Path) -> None:
    """Two workers, in turns; whole vectors and fragments that cross parts; in place and not."""
    ends = []
    for kind in ("whole", "parts"):
        place = folder / kind
        place.mkdir()
        make = (
            (lambda place=place: LocalCenter(place / "center"))
            if kind == "whole"
            else (lambda place=place: sharded(place, count))
        )
        centers = [make(), make()]
        xs, states = [], []
        for index, center in enumerate(centers):
            told = joined(center, case.rule, seed=index)
            xs.append(told + values(NUMEL, 10 + index))
            states.append(case.rule.init(told))
        for turn in range(6):
            index = turn % 2
            center, x, state = centers[index], xs[index], states[index]
            if turn < 2:
                center.exchange_(x, case.rule, state)
            elif turn < 4:
                x -= center.exchange(x, case.rule, state)
            else:
                first, end = (0, 100) if turn == 4 else (90, NUMEL - 3)
                part = tuple(vector[first:end] for vector in state)
                center.exchange_(x[first:end], case.rule, part, start=first)
            x += values(NUMEL, 20 + turn)
        memory = [centers[0].pull_memory()[name] for name in sorted(centers[1].pull_memory())]
        ends.append([*xs, *(vector for state in states for vector in state), centers[1].pull(), *memory])
        assert centers[0].distance(xs[0]) == pytest.approx(float((xs[0] - centers[0].pull()).norm()), rel=1e-6)
        assert centers[0].num_workers == centers[1].counted_workers == 2
        for center in centers:
            center.close()
    for ours, theirs in zip(*ends, strict=True):
        assert torch.equal(ours, theirs)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 5), st.data())
@settings(max_examples=25, deadline=None)
def test_what_leaves_a_worker_enters_the_center(turns: list[int], count: int, data: st.DataObject) -> None:
    """Also where parts fail."""
    centers = [ShardedCenter([Failing() for _ in range(count)])]
    paths = [center.path for center in centers[0].centers]
    centers += [ShardedCenter([Failing(path) for path in paths]) for _ in range(2)]
    xs = [joined(center, EASGD()) + values(NUMEL, index) for index, center in enumerate(centers)]
    total = sum(x.double() for x in xs) + centers[0].pull().double()
    for turn in turns:
        broken = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
        for index, part in enumerate(centers[turn].centers):
            part.failure = ConnectionError("no link") if index in broken else None
        with pytest.warns(RuntimeWarning) if broken - failing(centers[turn]) else nullcontext():
            centers[turn].exchange_(xs[turn], EASGD())
    now = sum(x.double() for x in xs) + centers[0].pull().double()
    assert (now - total).abs().max() < 1e-5
    for center in centers[::-1]:
        center.close()


def failing(center: ShardedCenter) -> set[int]:
    return {index for index, shard in enumerate(center._shards) if shard.failing}


def test_parts_are_whole_blocks_and_none_is_empty() -> None:
    for border in (0, 1, BORDER, NUMEL):
        spec = CenterSpec((), NUMEL, border)
        starts = {start for _, start, _ in blocks_of(spec)}
        for count in range(1, len(starts) + 1):
            cuts = _cuts(spec, count)
            assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])] and cuts[-1].stop == NUMEL
            assert {cut.start for cut in cuts} <= starts
            blocks = [len([start for start in starts if cut.start <= start < cut.stop]) for cut in cuts]
            assert min(blocks) >= 1 and max(blocks) - min(blocks) <= 1
            for cut in cuts:  # so that each part's own blocks are the whole vector's
                own = {cut.start + start for _, start, _ in blocks_of(spec.cut(cut.start, cut.stop, ""))}
                assert own == {start for start in starts if cut.start <= start < cut.stop}


def test_the_parts_run_at_the_same_time(folder: Path) -> None:
    """Each waits for the other: one after the other they would never end."""
    both = threading.Barrier(2)

    class Meeting(LocalCenter):
        def exchange_(self, *args: Any, **kwargs: Any) -> None:
            both.wait(20)
            super().exchange_(*args, **kwargs)

    center = ShardedCenter([Meeting(folder / "0"), Meeting(folder / "1")])
    x = joined(center, EASGD())
    center.exchange_(x, EASGD())
    assert center.exchanges == 1 and center.bytes_sent == 4 * NUMEL
    center.close()


def test_a_fragment_goes_only_to_the_parts_it_lies_in(folder: Path) -> None:
    center = sharded(folder, 3)
    x = joined(center, EASGD())
    first = center._shards[1].region
    center.exchange_(x[first.start + 3 : first.stop - 3], EASGD(), start=first.start + 3)
    assert [part.exchanges for part in center.centers] == [0, 1, 0]
    center.exchange_(x[: first.start + 1], EASGD(), start=0)
    assert [part.exchanges for part in center.centers] == [1, 2, 0]
    center.close()


def test_a_worker_trains_with_parts_as_with_one_center(folder: Path) -> None:
    ends = []
    for kind in ("one", "parts"):
        (folder / kind).mkdir()
        center = LocalCenter(folder / kind / "c") if kind == "one" else sharded(folder / kind, 2)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(9, 11), nn.BatchNorm1d(11), nn.Linear(11, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Worker(model, optimizer, LocalSGD(), center=center, communication_period=3, fragments=2) as worker:
            for _ in range(10):
                optimizer.zero_grad()
                model(torch.randn(6, 9)).square().mean().backward()
                optimizer.step()
            with worker.center_weights():
                ends.append([parameter.detach().clone() for parameter in model.parameters()])
            saved = center.pull()
            center.put(saved + 1)
            assert torch.equal(center.pull(), saved + 1)
        center.close()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends, strict=True))


def test_a_part_is_saved_and_loaded_by_its_own_names(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(9, 11), nn.Linear(11, 3))
    spec = CenterSpec.of(FlatParameters(model).entries)
    center = sharded(folder, 2)
    initial = torch.zeros(spec.numel)
    for entry in spec.entries:
        entry.view(initial).copy_(torch.randn(entry.shape))
    center.join(initial, spec)
    names = []
    for index, part in enumerate(center.centers):
        part.save(folder / f"saved{index}")
        loaded = LocalCenter(folder / f"loaded{index}")
        loaded.load(folder / f"saved{index}")
        assert torch.equal(loaded.pull(), part.pull()) and loaded.spec == part.spec
        names.append([entry.name for entry in loaded.spec.entries])
    assert names == [["0.weight[0:96]"], ["0.weight[96:99]", "0.bias", "1.weight", "1.bias"]]
    again = ShardedCenter([LocalCenter(folder / f"loaded{index}") for index in range(2)])
    assert torch.equal(again.join(torch.zeros(spec.numel), spec), initial)
    center.close()


def test_an_entry_that_is_cut_keeps_what_is_whole() -> None:
    entry = Entry("w", (4, 8), "float32", 16, (1, 0))
    assert entry.cut(16, 48) == Entry("w", (4, 8), "float32", 0, (1, 0))
    assert entry.cut(0, 32) == Entry("w[0:16]", (16,), "float32", 16, (0,))
    assert entry.cut(32, 64) == Entry("w[16:32]", (16,), "float32", 0, (0,))
    assert entry.cut(47, 64) == Entry("w[31:32]", (1,), "float32", 0, ())
    assert entry.cut(48, 64) is entry.cut(0, 16) is None
    assert CenterSpec.from_json((spec := CenterSpec((entry,), 48).cut(16, 48, "part 2 of 2")).to_json()) == spec


# What fails ----------------------------------------------------------------------------------------------------------


def test_a_part_that_fails_is_left_out_and_said_once(folder: Path) -> None:
    center = sharded(folder, 3)
    rule = LocalSGD()
    told = joined(center, rule)
    x, state = told + 1, rule.init(told)
    here = center._shards[1].region
    center.centers[1].failure = ConnectionError("connect: the link broke.")  # type: ignore[attr-defined]
    sentence = (
        "ShardedCenter: center 2 is left out of exchanges until it answers, training goes on. connect: the link broke."
    )
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(sentence)}$"):
        correction = center.exchange(x, rule, state, torch.full_like(x, torch.nan))
    assert not correction[here].any() and center.missed == 1
    center.exchange_(x, rule, state)  # said already
    assert center.missed == 2 and torch.equal(center.pull()[here], told[here]) and torch.equal(x[here], told[here] + 1)
    center.centers[1].failure = None  # type: ignore[attr-defined]
    center.exchange_(x, rule, state)
    assert torch.equal(center.pull()[here], told[here] + 1)  # nothing that was gone is lost
    center.centers[1].failure = TimeoutError("late")  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match="late"):
        center.exchange_(x, rule, state)
    center.close()


def test_where_all_parts_fail_the_exchange_does(folder: Path) -> None:
    center = sharded(folder, 2)
    x = joined(center, EASGD())
    for part in center.centers:
        part.failure = TimeoutError("connect: no answer.")  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError, match=r"^ShardedCenter: center 1: connect: no answer\.$"):
        center.exchange(x, EASGD())
    with pytest.raises(TimeoutError, match=r"^ShardedCenter: center 1: connect: no answer\.$"):
        center.distance(x)
    assert center.missed == 0
    center.centers[0].failure = RuntimeError("a bug")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        center.exchange(x, EASGD())
    center.close()


def test_what_is_not_finite_reaches_no_part(folder: Path) -> None:
    center = sharded(folder, 3)
    x = joined(center, EASGD())
    before = center.pull()
    x += 1
    x[-1] = torch.nan
    with pytest.raises(Refused, match=r"^center: x must be finite and below 1e\+30\. Got 1 of 325 values"):
        center.exchange_(x, EASGD())
    with pytest.raises(Refused):
        center.put(x)
    assert torch.equal(center.pull(), before) and center.exchanges == 0
    center.close()


def test_centers_in_another_order_are_refused_by_name(folder: Path) -> None:
    center = sharded(folder, 2)
    spec = CenterSpec((Entry("weight", (NUMEL,), "float32", 0, (0,)),), NUMEL)
    center.join(torch.zeros(NUMEL), spec)
    turned = ShardedCenter([LocalCenter(part.path) for part in reversed(center.centers)])  # type: ignore[attr-defined]
    sentence = (
        "ShardedCenter: center 1: center: a center must get the same part of the vector from every worker. Got part 1 "
        "of 2, it holds part 2 of 2. Name the same centers in the same order on every worker."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        turned.join(torch.zeros(NUMEL), spec)
    single = LocalCenter(center.centers[0].path)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"Got all, it holds part 1 of 2\. Name the same centers in the same order"):
        single.join(torch.zeros(NUMEL), spec)
    other = ShardedCenter([LocalCenter(part.path) for part in center.centers])  # type: ignore[attr-defined]
    entries = (Entry("bias", (NUMEL,), "float32", 0, (0,)),)
    with pytest.raises(ValueError, match=r"^ShardedCenter: center 1: .* bias\[0:192\] has name bias\[0:192\], in the"):
        other.join(torch.zeros(NUMEL), CenterSpec(entries, NUMEL))
    assert center.num_workers == 1  # those that were refused left again
    center.close()


def test_a_worker_waits_for_the_one_that_sets_the_parts(folder: Path) -> None:
    """Between two that begin at once, a center never starts as a patchwork of both."""
    first, second = sharded(folder, 3), sharded(folder, 3)
    spec = CenterSpec((), NUMEL, BORDER)
    began = [threading.Event(), threading.Event()]
    original = first.centers[1].join

    def slow(*args: Any) -> Tensor:
        began[0].set()
        assert began[1].wait(20)
        time.sleep(0.2)
        return original(*args)

    first.centers[1].join = slow  # type: ignore[method-assign]
    told: list[Tensor] = []
    threads = [threading.Thread(target=lambda: told.append(first.join(torch.ones(NUMEL), spec)))]
    threads[0].start()
    assert began[0].wait(20)
    threads.append(threading.Thread(target=lambda: told.append(second.join(torch.zeros(NUMEL), spec))))
    threads[1].start()
    began[1].set()
    for thread in threads:
        thread.join(30)
    assert len(told) == 2 and all(torch.equal(one, torch.ones(NUMEL)) for one in told)
    first.close()
    second.close()


def test_a_part_that_is_never_set_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooke.sharded.SET_SECONDS", 0.1)
    first, second = sharded(folder, 2), sharded(folder, 2)
    spec = CenterSpec((), NUMEL)
    cut = _cuts(spec, 2)[0]
    first.centers[0].join(torch.ones(cut.stop), spec.cut(0, cut.stop, "part 1 of 2"))
    with pytest.raises(TimeoutError, match=r"center 2 must be set by the worker that set the parts before it\. Got an"):
        second.join(torch.zeros(NUMEL), spec)
    assert second.num_workers == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ShardedCenter([]), "ShardedCenter: needs a center for each part. Got none."),
        (
            lambda: ShardedCenter([object.__new__(ReplicatedCenter)]),
            "ShardedCenter: parts must be centers where each worker exchanges on its own. Got ReplicatedCenter.",
        ),
        (
            lambda: joined(ShardedCenter([LocalCenter() for _ in range(12)]), EASGD()),
            "ShardedCenter: needs at least one block of the vector for each center. Got 11 blocks and 12 centers. Use",
        ),
        (lambda: ShardedCenter([LocalCenter()]).pull(), "ShardedCenter: join comes first. Got an object without a"),
    ],
)
def test_what_cannot_be_is_said(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        make()


def test_a_rule_with_a_leader_is_refused(folder: Path) -> None:
    center = sharded(folder, 2)
    x = joined(center, LSGD())
    with pytest.raises(ValueError, match=r"^ShardedCenter: needs a rule without a leader\. Got LSGD\(pull=0\.1\)"):
        center.exchange(x, LSGD())
    with pytest.raises(ValueError, match=r"^ShardedCenter: one object serves one worker\. Got a second join\."):
        joined(center, LSGD())
    center.report(1.0)
    center.beat(3)
    assert [part.member.step for part in center.centers] == [3, 3]  # type: ignore[attr-defined]
    center.close()


# Over the network ----------------------------------------------------------------------------------------------------


def test_several_addresses_are_one_center(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = [hooke.serve(LocalCenter(folder / f"served{index}")) for index in range(2)]
    urls = [server.url for server in servers]
    center = hooke.connect(urls, codec="int8")
    assert isinstance(center, ShardedCenter)
    x = joined(center, EASGD())
    total = x.double() + center.pull()
    x += 1
    center.exchange_(x, EASGD(moving_rate=0.5))
    held = torch.cat([server.center.pull() for server in servers])
    assert (x.double() + held - total - 1).abs().max() < 1e-5  # what a codec rounds stays in x
    assert center.num_workers == 1 and center.bytes_sent > 0
    monkeypatch.setenv("HOOKE_CENTER", ",".join(reversed(urls)))
    turned = hooke.connect()
    with pytest.raises(ValueError, match=rf"^ShardedCenter: center 1 \({re.escape(urls[1])}\): .* Got part 1 of 2, it"):
        joined(turned, EASGD())
    turned.close()
    servers[1].close()
    with pytest.warns(RuntimeWarning, match=rf"^ShardedCenter: center 2 \({re.escape(urls[1])}\) is left out of"):
        center.exchange_(x, EASGD(moving_rate=0.5))
    assert center.missed == 1
    with pytest.raises(OSError, match=rf"^ShardedCenter: center 2 \({re.escape(urls[1])}\): "):
        center.pull()
    center.close()
    servers[0].close()
    with pytest.raises(
        ValueError, match=r"^connect: each part of the vector needs a center of its own\. Got an address"
    ):
        hooke.connect([urls[0], urls[0]])
    monkeypatch.delenv("HOOKE_CENTER")
    with pytest.raises(ValueError, match=r"^connect: needs the center's address\. Got none\."):
        hooke.connect([])


def test_a_part_of_averaged_buffers_alone_is_served_too(folder: Path) -> None:
    servers = [hooke.serve(LocalCenter(folder / f"served{index}")) for index in range(2)]
    center = hooke.connect([server.url for server in servers])
    initial = values(2 * BLOCK, 0)
    center.join(initial, CenterSpec((), 2 * BLOCK, BLOCK))
    assert torch.equal(servers[1].center.pull(), initial[BLOCK:])
    center.close()
    for server in servers:
        server.close()
