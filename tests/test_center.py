"""LocalCenter: what enters it leaves a worker, who counts as a worker, and what it refuses."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cases import FORK, RULES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hooke.center import BLOCK, LocalCenter
from hooke.flat import FlatParameters
from hooke.outer import DiLoCo
from hooke.rule import EASGD, Downpour, LocalSGD, Rule, State
from hooke.spec import LARGEST, CenterSpec, Refused

SMALL = 7
"""A block for tests: every size has a border nearby."""


def spec(numel: int, border: int = -1) -> CenterSpec:
    return CenterSpec((), numel, border)


def values(numel: int, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


@contextmanager
def joined(count: int, numel: int, border: int = -1) -> Iterator[list[LocalCenter]]:
    """So many workers of one center that begins at 0."""
    first = LocalCenter()
    centers = [first, *(LocalCenter(first.path) for _ in range(count - 1))]
    try:
        for center in centers:
            center.join(torch.zeros(numel), spec(numel, border))
        yield centers
    finally:
        for center in reversed(centers):
            center.close()


@contextmanager
def another(center: LocalCenter) -> Iterator[LocalCenter]:
    """One more worker of the same center."""
    other = LocalCenter(center.path)
    try:
        other.join(torch.zeros(center.spec.numel), center.spec)
        yield other
    finally:
        other.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooke.center.BLOCK", SMALL)


# Conservation ----------------------------------------------------------------------------------------------------

SIZES = [0, 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL - 1, 3 * SMALL, 5 * SMALL + 3]
moves = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["in place", "out", "new", "out is x"]), st.floats(1e-3, 1.0)),
    max_size=12,
)


@given(numel=st.sampled_from(SIZES), share=st.floats(0, 1), moves=moves, by_beta=st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_exchanges_keep_the_sum_of_center_and_workers(numel: int, share: float, moves: list, by_beta: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hooke.center.BLOCK", SMALL)
        with joined(3, numel, border=round(share * numel)) as centers:
            workers = [10 * values(numel, seed) for seed in range(3)]
            total = sum(x.double() for x in workers)
            for index, how, rate in moves:
                rule = EASGD(beta=rate) if by_beta else EASGD(moving_rate=rate)
                center, x = centers[index], workers[index]
                before = x.clone()
                if how == "in place":
                    center.exchange_(x, rule)
                elif how == "out is x":
                    assert center.exchange(x, rule, out=x) is x
                    workers[index] = before - x
                else:
                    out = torch.full_like(x, torch.nan) if how == "out" else None
                    correction = center.exchange(x, rule, out=out)
                    assert out is None or correction is out
                    assert torch.equal(x, before)
                    x -= correction
            held = centers[0].pull()
            torch.testing.assert_close(sum(x.double() for x in workers) + held, total, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rule", [EASGD(moving_rate=0.3), EASGD(0.9), Downpour(), LocalSGD(), LocalSGD(3)], ids=repr)
@pytest.mark.parametrize("numel", SIZES)
def test_blocks_give_what_the_whole_vector_gives(small_blocks: None, rule: Rule, numel: int) -> None:
    """The rule applied to the whole vector at once, with the buffers' own rule behind the border."""
    border = numel // 2 + 1 if numel else 0
    with joined(2, numel, border) as (center, _):
        start = values(numel, 1)
        center.put(start)
        x, state = values(numel, 2), rule.init(values(numel, 3))
        expected_x, expected_center = x.clone(), start.clone()
        expected_state = tuple(memory.clone() for memory in state)
        for part, here in ((slice(0, border), rule), (slice(border, None), rule.buffer_rule())):
            memory = tuple(m[part] for m in expected_state) if here is rule else ()
            here.bind(2).exchange_(expected_x[part], expected_center[part], memory, None)
        correction = center.exchange(x, rule, state)
        torch.testing.assert_close(x - correction, expected_x)
        torch.testing.assert_close(center.pull(), expected_center)
        torch.testing.assert_close(state, expected_state)


CUTS = [[0, 40], [0, 1, 2, 40], [0, 6, 20, 33, 40], [0, 7, 14, 40], [0, 0, 40]]


@pytest.mark.parametrize("out", ["in place", "out", "out is x"])
@pytest.mark.parametrize("rule", [*(case.rule for case in RULES), DiLoCo(mixing=0.3)], ids=repr)
def test_fragments_give_what_the_whole_vector_gives_to_the_bit(small_blocks: None, rule: Rule, out: str) -> None:
    """Whatever blocks they cut, and across the border to the averaged buffers."""
    ends = []
    for borders in CUTS:
        with closing(LocalCenter()) as center:
            initial, x, state = values(40, 1), values(40, 2), rule.init(values(40, 3))
            center.join(initial, CenterSpec((), 40, 27, rule.center_memory), rule.init_center(initial))
            for start, stop in pairwise(borders):
                part, here = tuple(s[start:stop] for s in state), x[start:stop]
                place = {"start": start} if len(borders) > 2 else {}
                if out == "in place":
                    center.exchange_(here, rule, part, **place)
                else:
                    here = here.clone()
                    correction = center.exchange(here, rule, part, here if out == "out is x" else None, **place)
                    x[start:stop] -= correction
            assert (center.exchanges, center.bytes_sent) == (len(borders) - 1, 4 * 40)
            ends.append([x, *state, center.pull(), *center.pull_memory().values()])
    for end in ends[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(ends[0], end, strict=True))


def test_a_fragment_leaves_the_rest_alone(small_blocks: None) -> None:
    with joined(1, 40) as (center,):
        center.exchange(torch.ones(9), EASGD(moving_rate=0.5), start=12)
        assert center.pull().nonzero().flatten().tolist() == list(range(12, 21))


@pytest.mark.parametrize("start", [-1, 32, 40])
def test_a_fragment_that_reaches_out_gets_a_sentence(start: int) -> None:
    sentence = (
        f"center: a fragment must lie inside the vector of 40 elements. Got 9 from {start} on. Send x[start:stop] and "
        "its start."
    )
    with joined(1, 40) as (center,), pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        center.exchange(torch.ones(9), EASGD(), start=start)


def test_a_fragment_that_is_not_finite_is_refused_as_a_whole() -> None:
    with joined(1, 40) as (center,):
        with pytest.raises(Refused, match=r"^center: x must be finite and below 1e\+30\. Got 1 of 9 values"):
            center.exchange(torch.tensor([1.0] * 8 + [torch.nan]), EASGD(), start=12)
        assert not center.pull().any()
        assert center.members()[0].refused == 1


def processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=FORK, initializer=torch.set_num_threads, initargs=(1,))


def count_up(path: Path, times: int) -> None:
    """Go up by 1 and add that to the center, so often."""
    center = LocalCenter(path)
    x = center.join(torch.zeros(center.spec.numel), center.spec)
    state = Downpour().init(x)
    for _ in range(times):
        x += 1
        center.exchange_(x, Downpour(), state)
    while not torch.equal(x, state[0]):  # a block was left out: its part is still owed
        center.exchange_(x, Downpour(), state)
    center.close()


def test_processes_that_exchange_at_once_lose_nothing(center: LocalCenter) -> None:
    """Whole numbers, so every element must be exact: one lost or doubled block would show."""
    numel, times, count = 3 * BLOCK + 5, 500, 3
    center.join(torch.zeros(numel), spec(numel))
    with processes(count) as pool:
        list(pool.map(count_up, [center.path] * count, [times] * count))
    assert center.pull().unique().tolist() == [count * times]
    assert center.num_workers == 1


def test_threads_that_exchange_at_once_lose_nothing(center: LocalCenter) -> None:
    """Record locks do not keep threads of one process apart; the center must."""
    numel, times, count = 2 * BLOCK + 5, 100, 3
    center.join(torch.zeros(numel), spec(numel))
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(count_up, [center.path] * count, [times] * count))
    assert center.pull().unique().tolist() == [count * times]


def pull_elastically(path: Path, times: int, seed: int) -> tuple[list[float], list[float]]:
    """Exchange a random x so often; x at the start and at the end, as a few sums."""
    center = LocalCenter(path)
    center.join(torch.zeros(center.spec.numel), center.spec)
    x = values(center.spec.numel, seed)
    before = [part.double().sum().item() for part in x.tensor_split(50)]
    for _ in range(times):
        center.exchange_(x, EASGD())
    center.close()
    return before, [part.double().sum().item() for part in x.tensor_split(50)]


def test_processes_that_exchange_at_once_keep_the_sum(center: LocalCenter) -> None:
    numel, count = 3 * BLOCK + 5, 3
    center.join(torch.zeros(numel), spec(numel))
    with processes(count) as pool:
        pairs = list(pool.map(pull_elastically, [center.path] * count, [200] * count, range(count)))
    before, after = (torch.tensor([pair[k] for pair in pairs], dtype=torch.float64).sum(0) for k in (0, 1))
    held = torch.stack([part.double().sum() for part in center.pull().tensor_split(50)])
    torch.testing.assert_close(held + after, before, rtol=0, atol=1e-2)
    assert held.abs().max() > 10  # the center has really moved


# Processes that stop ---------------------------------------------------------------------------------------------


class StopInside(EASGD):
    """Stops its process in the third block it comes to, while it holds that block's lock."""

    def bind(self, num_workers: int) -> Rule:
        return self

    def exchange_(self, *args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        super().exchange_(*args, **kwargs)  # type: ignore[arg-type]


calls: list[object] = []


def stop_inside(path: Path) -> None:
    torch.set_num_threads(1)
    center = LocalCenter(path)
    center.join(torch.zeros(center.spec.numel), center.spec)
    center.exchange_(torch.zeros(center.spec.numel), StopInside(moving_rate=0.5))
    center.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 seconds"
        time.sleep(0.005)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def stopped(center: LocalCenter) -> Iterator[multiprocessing.Process]:
    """A process stopped inside an exchange, with the lock of the block in the middle, number 2 of 5."""
    numel = 5 * BLOCK
    center.join(torch.zeros(numel), spec(numel))
    process = FORK.Process(target=stop_inside, args=(center.path,), daemon=True)
    process.start()
    wait_until(lambda: is_stopped(process.pid))
    yield process
    process.kill()
    process.join()


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks /proc whether a process is stopped")
def test_a_stopped_process_costs_others_its_block_only(center: LocalCenter, stopped: multiprocessing.Process) -> None:
    numel = 5 * BLOCK
    x = torch.ones(numel)
    out = torch.full((numel,), torch.nan)
    correction = center.exchange(x, EASGD(moving_rate=0.5), out=out)
    expected = torch.full((5, BLOCK), 0.5)
    expected[2] = 0  # blocks are visited from the end backward: the third is number 2
    assert torch.equal(correction, expected.view(-1))
    assert torch.equal(center.pull(), expected.view(-1))
    mine = next(member for member in center.members() if member.pid == os.getpid())
    assert (mine.missed, mine.exchanges) == (1, 1)
    center.exchange_(x, EASGD(moving_rate=0.5))
    assert torch.equal(center.pull() + x, torch.ones(numel) + 0.5 * (expected.view(-1) > 0))
    assert torch.equal(x.view(5, BLOCK)[2], torch.ones(BLOCK))

    os.kill(stopped.pid, signal.SIGCONT)
    stopped.join(timeout=30)
    assert stopped.exitcode == 0
    center.exchange_(x, EASGD(moving_rate=0.5))
    assert torch.equal(x.view(5, BLOCK)[2], torch.full((BLOCK,), 0.5))


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks /proc whether a process is stopped")
def test_a_reader_never_waits_for_a_writer(
    center: LocalCenter, stopped: multiprocessing.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: object) -> bool:
        raise AssertionError("a reader asked for a lock")

    for name in ("take_block", "everything"):
        monkeypatch.setattr(f"hooke.shared_memory.Locks.{name}", no_locks)
    assert not center.pull().any()
    assert center.distance(torch.ones(5 * BLOCK)) == pytest.approx((5 * BLOCK) ** 0.5)
    LocalCenter(center.path).save(center.path.with_name("saved"))
    center.path.with_name("saved").unlink()


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks /proc whether a process is stopped")
def test_a_killed_process_frees_its_block_and_its_slot(center: LocalCenter, stopped: multiprocessing.Process) -> None:
    assert center.num_workers == 2
    stopped.kill()
    stopped.join()
    assert center.num_workers == 1
    assert [member.alive for member in center.members()] == [True, False]
    x = torch.ones(5 * BLOCK)
    center.exchange_(x, EASGD(moving_rate=0.5))
    assert x.unique().tolist() == [0.5]
    with another(center) as other:
        assert [member.pid for member in other.members()] == [os.getpid()] * 2


# Membership ------------------------------------------------------------------------------------------------------


def test_the_first_worker_sets_the_center_and_later_ones_get_it(center: LocalCenter) -> None:
    assert not center.ready
    assert (center.num_workers, center.members(), center.exchanges) == (0, (), 0)
    initial = values(5)
    got = center.join(initial, spec(5))
    assert torch.equal(got, initial)
    assert got.data_ptr() != initial.data_ptr()
    with another(center) as other:
        assert torch.equal(other.pull(), initial)
        assert other.ready
        assert (center.num_workers, other.num_workers) == (2, 2)


def test_alpha_follows_the_workers_that_are_there(center: LocalCenter) -> None:
    def moved() -> float:
        center.put(torch.zeros(3))
        return center.exchange(torch.ones(3), EASGD(beta=0.8))[0].item()

    center.join(torch.zeros(3), spec(3))
    assert moved() == pytest.approx(0.8)
    with another(center), another(center), another(center):
        assert moved() == pytest.approx(0.2)
    assert moved() == pytest.approx(0.8)


def test_who_has_finished_still_counts_in_the_rates_of_the_others(center: LocalCenter) -> None:
    """Otherwise the center would end as a copy of the worker that happens to finish last."""
    center.join(torch.zeros(3), spec(3))
    other = LocalCenter(center.path)
    for finished, alpha in ((True, 0.4), (False, 0.8), (True, 0.4)):
        other.join(torch.zeros(3), spec(3))
        assert center.counted_workers == 2
        other.leave(finished=finished)
        assert (center.num_workers, center.counted_workers) == (1, 1 + finished)
        center.put(torch.zeros(3))
        assert center.exchange(torch.ones(3), EASGD(beta=0.8)).tolist() == pytest.approx([alpha] * 3)
    with another(center):  # it is back, or replaced: no more to count than before
        assert (center.num_workers, center.counted_workers) == (2, 2)
    other.close()


def test_the_marks_of_a_finished_run_end_when_another_begins(center: LocalCenter) -> None:
    for _ in range(3):
        handles = [LocalCenter(center.path) for _ in range(2)]
        for handle in handles:
            handle.join(torch.zeros(3), spec(3))
        assert [handle.counted_workers for handle in handles] == [2, 2]
        for handle in handles:
            handle.leave(finished=True)
            handle.close()


def test_a_worker_that_comes_back_after_a_crash_takes_its_own_place(center: LocalCenter) -> None:
    """And not that of one that has finished: then the rates would count one worker too few."""
    center.join(torch.zeros(3), spec(3))
    with another(center) as finisher:
        crashed = FORK.Process(target=join_and_die, args=(center.path,))
        crashed.start()
        crashed.join()
        finisher.leave(finished=True)
        with another(center):
            assert (center.num_workers, center.counted_workers) == (2, 3)


def test_a_forked_child_does_not_take_its_parents_place_away(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    child = os.fork()
    if not child:
        center.leave()
        os._exit(0)
    os.waitpid(child, 0)
    assert center.num_workers == 1


def test_another_name_of_the_same_file_is_the_same_center(center: LocalCenter, tmp_path: Path) -> None:
    """Two descriptors of one lock file would free each other's locks."""
    for name in ("", ".lock"):
        (tmp_path / f"link{name}").symlink_to(f"{center.path}{name}")
    center.join(torch.zeros(3), spec(3))
    other = LocalCenter(tmp_path / "link")
    other.join(torch.zeros(3), spec(3))
    assert (center.num_workers, other.num_workers) == (2, 2)
    other.close()
    assert center.num_workers == 1


def test_a_private_center_that_nobody_holds_is_removed() -> None:
    lost = LocalCenter()
    folder = lost.path.parent
    lost.join(torch.zeros(3), spec(3))
    assert folder.exists()
    del lost
    gc.collect()
    assert not folder.exists()


def test_the_folder_of_a_center_is_made(tmp_path: Path) -> None:
    made = LocalCenter(tmp_path / "my run" / "center")
    made.join(torch.zeros(3), spec(3))
    assert made.path.exists()
    made.close()


def test_a_worker_can_leave_and_join_again(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    center.exchange(torch.ones(3), EASGD(moving_rate=0.5))
    center.leave()
    center.leave()
    assert (center.num_workers, center.exchanges) == (0, 1)
    assert center.join(torch.zeros(3), spec(3)).tolist() == [0.5] * 3
    assert center.num_workers == 1


def test_a_worker_says_which_step_it_has_reached(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    center.beat(17)
    center.exchange(torch.ones(3), EASGD())
    with pytest.raises(Refused):
        center.exchange(torch.full((3,), torch.nan), EASGD())
    (member,) = center.members()
    assert (member.pid, member.alive, member.step) == (os.getpid(), True, 17)
    assert (member.exchanges, member.refused, member.missed) == (1, 1, 0)
    assert 0 <= member.heartbeat_age < 30


def test_who_takes_a_place_does_not_inherit_its_counts(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    with another(center) as other:
        other.exchange(torch.ones(3), EASGD())
        with pytest.raises(Refused):
            other.exchange(torch.ones(4), EASGD())
    with another(center) as other:
        _, newcomer = other.members()
        assert (newcomer.exchanges, newcomer.refused) == (0, 0)
        assert center.exchanges == 1  # over all who ever were there


def test_a_worker_without_a_sign_of_life_does_not_count(center: LocalCenter, monkeypatch: pytest.MonkeyPatch) -> None:
    center.join(torch.zeros(3), spec(3))
    with another(center) as other:
        monkeypatch.setattr("hooke.center.HEARTBEAT_SECONDS", 0.05)
        time.sleep(0.1)
        assert [member.alive for member in center.members()] == [False, False]
        other.beat(1)
        assert center.num_workers == 1
        monkeypatch.setattr("hooke.center.HEARTBEAT_SECONDS", 0.0)
        assert center.num_workers == 0
        assert center.exchange(torch.ones(3), EASGD(beta=0.8)).tolist() == pytest.approx([0.8] * 3)


def test_an_exchange_is_a_sign_of_life(center: LocalCenter, monkeypatch: pytest.MonkeyPatch) -> None:
    center.join(torch.zeros(3), spec(3))
    monkeypatch.setattr("hooke.center.HEARTBEAT_SECONDS", 0.5)
    time.sleep(0.6)
    assert center.num_workers == 0
    center.exchange(torch.ones(3), EASGD())
    assert center.num_workers == 1


def test_one_object_serves_one_worker(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    sentence = (
        "LocalCenter: one object serves one worker. Got a second join. Give each worker its own: "
        "LocalCenter(center.path)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        center.join(torch.zeros(3), spec(3))
    assert center.num_workers == 1


def test_only_a_worker_may_exchange(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    onlooker = LocalCenter(center.path)
    sentence = "LocalCenter: only a worker may do this. Got an object that only looks on. Call join."
    for verb in (lambda: onlooker.exchange(torch.ones(3), EASGD()), lambda: onlooker.beat(1)):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            verb()
    assert not onlooker.pull().any()
    assert onlooker.num_workers == 1
    onlooker.close()


def test_an_empty_center_gets_a_sentence(center: LocalCenter) -> None:
    sentence = f"LocalCenter: {center.path} must have been set. Got an empty center. Let a worker join."
    for verb in (center.pull, lambda: center.spec, lambda: center.put(torch.ones(1)), lambda: center.save("nowhere")):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            verb()


def test_more_workers_than_places_get_a_sentence(center: LocalCenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooke.center.MAX_WORKERS", 2)
    center.join(torch.zeros(3), spec(3))
    with another(center):
        sentence = "LocalCenter: at most 2 workers share one machine's center. Got one more."
        third = LocalCenter(center.path)
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            third.join(torch.zeros(3), spec(3))
        third.close()
        assert center.num_workers == 2


def test_asking_who_is_alive_does_not_free_a_place_that_is_being_taken(
    center: LocalCenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask is to lock for a moment; a thread of this process that joins in that moment must keep its place."""
    center.join(torch.zeros(3), spec(3))
    asked, lockf = threading.Event(), fcntl.lockf

    def ask_slowly(descriptor: int, how: int, length: int, byte: int) -> None:
        lockf(descriptor, how, length, byte)
        if threading.current_thread() is asking and not asked.is_set():
            asked.set()
            time.sleep(0.2)

    asking = threading.Thread(target=center._locks.slot_is_held, args=(1,))
    monkeypatch.setattr(fcntl, "lockf", ask_slowly)
    asking.start()
    assert asked.wait(30)
    with another(center), processes(1) as pool:
        asking.join()
        assert pool.submit(place_is_held, center.path, 1).result()


def place_is_held(path: Path, index: int) -> bool:
    center = LocalCenter(path)
    held = center._locks.slot_is_held(index)
    center.close()
    return held


def ask_without_end(path: Path, asking: Any) -> None:
    center = LocalCenter(path)
    while True:
        center.members()
        asking.set()


def test_two_who_ask_at_once_take_nobody_for_alive(center: LocalCenter) -> None:
    """Whoever asks holds the slot's lock for a moment; to the other that must not look like a worker."""
    center.join(torch.zeros(3), spec(3))
    with processes(1) as pool:
        pool.submit(join_and_die, center.path)
        with pytest.raises(BrokenProcessPool):
            pool.submit(os.getpid).result()
    assert len(center.members()) == 2
    asking = FORK.Event()
    other = FORK.Process(target=ask_without_end, args=(center.path, asking), daemon=True)
    other.start()
    try:
        assert asking.wait(30)
        counts = {center.num_workers for _ in range(20_000)}
    finally:
        other.kill()
        other.join()
    assert counts == {1}


def join_and_die(path: Path) -> None:
    LocalCenter(path).join(torch.zeros(3), spec(3))
    os.kill(os.getpid(), signal.SIGKILL)


# Refusals --------------------------------------------------------------------------------------------------------


def poisoned(value: float) -> Tensor:
    x = torch.ones(4 * SMALL)
    x[2 * SMALL] = value
    return x


STRANGE = "center: x must be 28 float32 values on cpu. Got {}. Send the vector that the worker joined with."
NOT_FINITE = (
    "center: x must be finite and below 1e+30. Got {} of 28 values that are not. Lower the learning rate, or start "
    "the worker again from the center."
)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (poisoned(torch.nan), NOT_FINITE.format(1)),
        (poisoned(torch.inf), NOT_FINITE.format(1)),
        (poisoned(-torch.inf), NOT_FINITE.format(1)),
        (torch.full((28,), torch.nan), NOT_FINITE.format(28)),
        (torch.ones(27), STRANGE.format("torch.float32 of shape (27,) on cpu")),
        (torch.ones(29), STRANGE.format("torch.float32 of shape (29,) on cpu")),
        (torch.ones(4, 7), STRANGE.format("torch.float32 of shape (4, 7) on cpu")),
        (torch.ones(28, dtype=torch.float64), STRANGE.format("torch.float64 of shape (28,) on cpu")),
        (torch.ones(28, dtype=torch.bfloat16), STRANGE.format("torch.bfloat16 of shape (28,) on cpu")),
        (torch.ones(28, device="meta"), STRANGE.format("torch.float32 of shape (28,) on meta")),
    ],
)
@pytest.mark.parametrize("rule", [EASGD(), Downpour()], ids=repr)
def test_what_cannot_be_parameters_is_refused_and_counted_and_changes_nothing(
    small_blocks: None, center: LocalCenter, x: Tensor, sentence: str, rule: Rule
) -> None:
    start = values(28)
    center.join(start, spec(28))
    state: State = rule.init(torch.zeros(28))
    for verb in (center.exchange, center.exchange_):
        before = None if x.is_meta else x.clone()
        with pytest.raises(Refused, match=f"^{re.escape(sentence)}$"):
            verb(x, rule, state)
        assert before is None or torch.equal(x.nan_to_num(), before.nan_to_num())
    assert torch.equal(center.pull(), start)
    assert not any(memory.any() for memory in state)
    (member,) = center.members()
    assert (member.refused, member.exchanges, center.bytes_sent) == (2, 0, 0)


def test_large_values_are_accepted_though_their_sum_is_larger(center: LocalCenter) -> None:
    x = torch.full((8,), LARGEST)
    assert x.sum() > LARGEST
    center.join(torch.zeros(8), spec(8))
    center.exchange(x, EASGD(moving_rate=0.5))
    assert torch.equal(center.pull(), x / 2)


def test_values_that_could_overflow_in_the_center_are_refused(center: LocalCenter) -> None:
    center.join(torch.zeros(8), spec(8))
    with pytest.raises(Refused, match="1 of 8 values"):
        center.exchange(torch.tensor([3e38] + [0.0] * 7), EASGD(moving_rate=0.5))
    assert not center.pull().any()


@pytest.mark.parametrize("bad", [torch.full((3,), torch.nan), torch.zeros(4), torch.zeros(3).double()])
def test_a_center_does_not_begin_with_what_it_would_refuse(center: LocalCenter, bad: Tensor) -> None:
    with pytest.raises(Refused):
        center.join(bad, spec(3))
    assert not center.ready
    assert not center.path.exists()
    center.join(torch.zeros(3), spec(3))
    with pytest.raises(Refused):
        center.put(bad)
    assert not center.pull().any()


# Pull, put and bytes ---------------------------------------------------------------------------------------------


def test_pull_writes_where_it_is_told(center: LocalCenter) -> None:
    center.join(values(5), spec(5))
    out = torch.zeros(5)
    assert center.pull(out) is out
    assert torch.equal(out, values(5))
    assert center.distance(torch.zeros(5)) == pytest.approx(values(5).norm().item())


def test_bytes_are_what_crossed_between_worker_and_center(center: LocalCenter) -> None:
    center.join(torch.zeros(5), spec(5))
    assert (center.bytes_sent, center.bytes_received) == (0, 20)
    center.exchange(torch.ones(5), EASGD())
    assert (center.bytes_sent, center.bytes_received) == (20, 40)


# Files -----------------------------------------------------------------------------------------------------------


def test_the_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        center = LocalCenter(tmp_path / "center")
        center.join(torch.zeros(3), spec(3))
    finally:
        os.umask(umask)
    for name in ("center", "center.lock"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["center", "center.lock"]
    center.close()
    assert (tmp_path / "center").exists()
    center.unlink()
    assert not list(tmp_path.iterdir())


def test_a_center_without_a_path_is_private_and_removed_when_closed() -> None:
    center = LocalCenter()
    center.join(torch.zeros(3), spec(3))
    folder = center.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    center.close()
    assert not folder.exists()
    center.close()


def test_closing_twice_leaves_another_handle_its_locks(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    other = LocalCenter(center.path)
    other.close()
    other.close()
    assert center.exchange(torch.ones(3), EASGD(moving_rate=0.5)).tolist() == [0.5] * 3
    with processes(1) as pool:
        assert pool.submit(place_is_held, center.path, 0).result()


def test_workers_that_hold_an_unlinked_center_go_on(tmp_path: Path) -> None:
    center = LocalCenter(tmp_path / "center")
    center.join(torch.zeros(3), spec(3))
    center.unlink()
    center.exchange(torch.ones(3), EASGD(moving_rate=0.5))
    assert center.pull().tolist() == [0.5] * 3
    center.close()


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100_000, "cut", "grown"])
def test_another_file_in_its_place_gets_a_sentence(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "center"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        whole = LocalCenter(path)
        whole.join(torch.zeros(3), spec(3))
        whole.close()
        content = path.read_bytes()[:-4] if content == "cut" else path.read_bytes() + b"\0"
        path.write_bytes(content)
    sentence = f"LocalCenter: {path} must be a center's file. Got something else. Use another path, or remove it."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        LocalCenter(path)
    assert path.read_bytes() == content


# Checkpoints -----------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)


def test_a_checkpoint_has_each_tensor_by_its_name_and_a_new_center_goes_on_from_it(
    center: LocalCenter, tmp_path: Path
) -> None:
    flat = FlatParameters(network(), buffers=True)
    made = CenterSpec.of(flat.entries)
    center.join(flat.gather_(), made)
    center.exchange(flat.vector + 1, EASGD(moving_rate=0.5))
    center.save(tmp_path / "deep" / "center.safetensors")

    saved = safetensors.torch.load_file(tmp_path / "deep" / "center.safetensors")
    model = network()
    model.load_state_dict(saved, strict=False)
    assert torch.equal(model[0].weight, made.entries[0].view(center.pull()))

    fresh = LocalCenter()
    fresh.load(tmp_path / "deep" / "center.safetensors")
    assert (fresh.spec, fresh.num_workers) == (made, 0)
    used = torch.zeros(made.numel, dtype=torch.bool)
    for entry in made.entries:
        entry.view(used).fill_(True)
    assert torch.equal(fresh.join(torch.zeros(made.numel), made)[used], center.pull()[used])
    fresh.close()


@pytest.mark.parametrize("numel", [0, 5])
def test_a_center_without_names_is_saved_too(center: LocalCenter, tmp_path: Path, numel: int) -> None:
    center.join(values(numel), spec(numel))
    center.save(tmp_path / "saved")
    fresh = LocalCenter()
    fresh.load(tmp_path / "saved")
    assert torch.equal(fresh.pull(), values(numel))
    sentence = "LocalCenter: load needs an empty center. Got one that is set. Use put(values)."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        fresh.load(tmp_path / "saved")
    fresh.close()


def missing(path: Path, whole: bytes) -> None:
    pass


def half_written(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[: len(whole) // 2])


def not_a_checkpoint(path: Path, whole: bytes) -> None:
    path.write_bytes(b"weights")


def a_folder(path: Path, whole: bytes) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [missing, half_written, not_a_checkpoint, a_folder])
def test_an_unreadable_checkpoint_gets_a_sentence(center: LocalCenter, tmp_path: Path, spoil: Callable) -> None:
    center.join(values(500), spec(500))
    center.save(tmp_path / "whole")
    path = tmp_path / "spoiled"
    spoil(path, (tmp_path / "whole").read_bytes())
    fresh = LocalCenter()
    with pytest.raises(ValueError, match=rf"^checkpoint: {path} must be a readable safetensors file\. Got: .+\. Point"):
        fresh.load(path)
    assert not fresh.ready
    fresh.close()


def test_a_checkpoint_of_something_else_gets_a_sentence(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    fresh = LocalCenter()
    sentence = (
        f"checkpoint: {tmp_path / 'model.safetensors'} must come from a center. Got a file without its spec. Use "
        "another."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        fresh.load(tmp_path / "model.safetensors")
    fresh.close()


def test_a_worker_that_has_finished_still_counts_in_the_rate_and_one_that_left_does_not(center: LocalCenter) -> None:
    """Else the center would end as a copy of the worker that happens to finish last."""
    spec = CenterSpec((), 1)
    other = LocalCenter(center.path)
    center.join(torch.zeros(1), spec)
    other.join(torch.zeros(1), spec)
    x, rule = torch.ones(1), EASGD(beta=0.9)
    other.leave(finished=True)
    assert center.num_workers == 1
    assert center.exchange(x, rule).item() == pytest.approx(0.45)
    other.join(torch.zeros(1), spec)
    other.leave()
    center.put(torch.zeros(1))
    assert center.exchange(x, rule).item() == pytest.approx(0.9)
    other.close()


# Vectors beside the center ---------------------------------------------------------------------------------------

MOMENTUM = DiLoCo(outer_lr=1.0, outer_momentum=0.5, num_workers=1)


def with_momentum(center: LocalCenter, numel: int, border: int = -1) -> State:
    """Join with a rule that keeps momentum beside the center; what its worker remembers."""
    initial = torch.zeros(numel)
    made = CenterSpec((), numel, border, MOMENTUM.center_memory)
    return MOMENTUM.init(center.join(initial, made, MOMENTUM.init_center(initial)))


@pytest.mark.parametrize("numel", [1, 1023, 1024, 2 * BLOCK + 5])
def test_momentum_lives_beside_the_center_for_all_its_handles(center: LocalCenter, numel: int) -> None:
    state, other = with_momentum(center, numel), LocalCenter(center.path)
    x = torch.full((numel,), 2.0)
    center.exchange_(x, MOMENTUM, state)
    assert torch.equal(other.pull(), torch.full((numel,), 3.0))
    assert torch.equal(other.pull_memory()["momentum"], torch.full((numel,), 2.0))
    theirs = with_momentum(other, numel)
    other.exchange_(torch.full((numel,), 5.0), MOMENTUM, theirs)  # a way of 2 again: momentum 3, 3 + 2 + 1.5
    assert torch.equal(center.pull(), torch.full((numel,), 6.5))
    assert torch.equal(center.pull_memory()["momentum"], torch.full((numel,), 3.0))
    other.close()


def test_buffers_have_no_momentum(center: LocalCenter) -> None:
    state = with_momentum(center, 4, border=2)
    center.exchange_(torch.full((4,), 2.0), MOMENTUM, state)
    assert center.pull().tolist() == [3, 3, 2, 2]
    assert center.pull_memory()["momentum"].tolist() == [2, 2, 0, 0]


def test_what_is_pulled_is_a_copy_and_what_is_put_is_kept(center: LocalCenter) -> None:
    state = with_momentum(center, 2)
    center.pull_memory()["momentum"].fill_(9)
    assert not center.pull_memory()["momentum"].any()
    center.exchange_(torch.ones(2), MOMENTUM, state)
    center.put(torch.zeros(2))
    assert center.pull_memory()["momentum"].tolist() == [1, 1]
    center.put(torch.zeros(2), {"momentum": torch.full((2,), 7.0)})
    assert center.pull_memory()["momentum"].tolist() == [7, 7]


def test_most_rules_keep_nothing_beside_the_center(center: LocalCenter) -> None:
    center.join(torch.zeros(5), spec(5))
    size = center.path.stat().st_size
    assert center.pull_memory() == {}
    kept = LocalCenter()
    with_momentum(kept, 5)
    assert size < kept.path.stat().st_size
    kept.close()


def test_a_checkpoint_holds_what_is_beside_the_center(center: LocalCenter, tmp_path: Path) -> None:
    state = with_momentum(center, 3)
    center.exchange_(torch.tensor([1.0, 2.0, 3.0]), MOMENTUM, state)
    center.save(tmp_path / "saved")
    assert set(safetensors.torch.load_file(tmp_path / "saved")) == {"center", "center_memory/momentum"}
    fresh = LocalCenter()
    fresh.load(tmp_path / "saved")
    assert (fresh.spec, fresh.pull().tolist()) == (center.spec, center.pull().tolist())
    with_momentum(fresh, 3)  # a worker that joins changes nothing
    assert fresh.pull_memory()["momentum"].tolist() == [1, 2, 3]
    fresh.close()


def test_a_checkpoint_that_lacks_the_momentum_gets_a_sentence(center: LocalCenter, tmp_path: Path) -> None:
    made = CenterSpec((), 2, memory=("momentum",))
    metadata = {"spec": made.to_json(), "exchanges": "0"}
    safetensors.torch.save_file({"center": torch.ones(2)}, tmp_path / "cut", metadata)
    with pytest.raises(ValueError, match=r"Got a file whose 'center_memory/momentum' is missing or damaged\."):
        center.load(tmp_path / "cut")
    assert not center.ready


def test_an_exchange_by_a_rule_of_another_memory_gets_a_sentence_and_changes_nothing(center: LocalCenter) -> None:
    state = with_momentum(center, 2)
    sentence = (
        "center: an exchange needs the rule that the center was made for. Got one that keeps nothing beside the "
        "center, which keeps momentum. Join with CenterSpec.of(entries, rule.center_memory) and "
        "rule.init_center(initial)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        center.exchange_(torch.ones(2), Downpour(), state)
    assert not center.pull().any()
    assert center.exchanges == 0


def test_a_center_is_not_made_without_its_memory(center: LocalCenter) -> None:
    sentence = "center: join needs one vector for each of momentum. Got 0. Pass rule.init_center(initial)."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        center.join(torch.zeros(2), CenterSpec((), 2, memory=("momentum",)))
    with pytest.raises(
        Refused, match=r"^center: x must be 2 float32 values on cpu\. Got torch.float32 of shape \(3,\)"
    ):
        center.join(torch.zeros(2), CenterSpec((), 2, memory=("momentum",)), (torch.zeros(3),))
    assert not center.ready


@pytest.mark.parametrize(
    ("memory", "sentence"),
    [
        (
            {},
            "center: memory must be that of the same rule. Got nothing, the center keeps momentum. Pass what "
            "pull_memory() of a center of this rule gave.",
        ),
        ({"momentum": torch.ones(3)}, "center: x must be 2 float32 values on cpu. Got torch.float32 of shape (3,)"),
        ({"momentum": torch.full((2,), torch.nan)}, "center: x must be finite and below 1e+30. Got 2 of 2 values"),
    ],
)
def test_a_memory_that_does_not_fit_is_not_put(center: LocalCenter, memory: dict, sentence: str) -> None:
    with_momentum(center, 2)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        center.put(torch.ones(2), memory)
    assert not center.pull().any()
