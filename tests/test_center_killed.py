"""Killed for real: a worker that is sent SIGKILL, also inside an exchange, costs nobody else anything.

Whole numbers make the check exact. The victim goes up by 4 between two exchanges and adds its way to the center
(DOWNPOUR), so every element of the center says how many of the victim's exchanges it has absorbed; the survivors go up
and down by 1, so that they only ever fill the two lowest bits.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import FORK
from torch import nn

import hooke
from hooke.center import BLOCK, LocalCenter
from hooke.outer import AsyncDiLoCo
from hooke.rule import Downpour
from hooke.spec import CenterSpec

NUMEL = 8 * BLOCK
KILLS = 50
VICTIM, SURVIVORS = 0, (1, 2)
VICTIMS_STEP = 4

MARK = np.dtype([("begun", "<i8"), ("finished", "<i8"), ("longest_gap", "<f8"), ("stop", "<i8")])


class Marks:
    """What each process says of itself, in shared memory: true also of one that is dead."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(np.zeros(3, MARK).tobytes())
        self.rows = np.memmap(path, MARK, "r+")

    def __getitem__(self, index: int) -> np.void:
        return self.rows[index]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 seconds"
        time.sleep(0.0005)


def exchange_until_told(center_path: Path, marks_path: Path, index: int) -> None:
    """Exchange in a tight loop, saying so before and after each exchange."""
    torch.set_num_threads(1)
    center, mark = LocalCenter(center_path), Marks(marks_path)[index]
    x = center.join(torch.zeros(NUMEL), CenterSpec((), NUMEL))
    state = Downpour().init(x)
    step, ended = (VICTIMS_STEP, time.monotonic()) if index == VICTIM else (1, time.monotonic())
    while not (mark["stop"] and step != -1):
        x += step
        mark["begun"] += 1
        center.exchange_(x, Downpour(), state)
        mark["finished"] += 1
        now = time.monotonic()
        mark["longest_gap"], ended = max(mark["longest_gap"], now - ended), now
        step = VICTIMS_STEP if index == VICTIM else -step
    while not torch.equal(x, state[0]):  # a block was left out: its part is still owed
        center.exchange_(x, Downpour(), state)
    center.close()


@pytest.fixture
def marks_path(center: LocalCenter) -> Iterator[Path]:
    path = center.path.with_name("marks")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def start(center: LocalCenter, marks_path: Path) -> Iterator[Callable]:
    started: list = []

    def one(target: Callable, *args: object) -> multiprocessing.process.BaseProcess:
        process = FORK.Process(target=target, args=(center.path, marks_path, *args), daemon=True)
        process.start()
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.join()


def test_fifty_kills_leave_the_center_exact_and_stop_nobody(
    center: LocalCenter, marks_path: Path, start: Callable
) -> None:
    center.join(torch.zeros(NUMEL), CenterSpec((), NUMEL))
    marks, dice = Marks(marks_path), random.Random(1)
    survivors = [start(exchange_until_told, index) for index in SURVIVORS]
    wait_until(lambda: all(marks[index]["finished"] for index in SURVIVORS))
    inside = torn = 0
    counted = torch.zeros(NUMEL)  # exchanges of the victim that each element has absorbed
    mark = marks[VICTIM]
    for _ in range(KILLS):
        center.beat(0)
        mark["begun"] = mark["finished"] = 0
        victim = start(exchange_until_told, VICTIM)
        wait_until(lambda: mark["begun"] > 0)
        time.sleep(dice.uniform(0, 0.02))
        victim.kill()
        victim.join()
        finished, killed_inside = int(mark["finished"]), bool(mark["begun"] > mark["finished"])
        missed = sum(member.missed for member in center.members() if member.pid == victim.pid)
        now = (center.pull() / VICTIMS_STEP).floor()
        absorbed, counted = now - counted, now
        assert absorbed.min() >= finished - missed
        assert absorbed.max() <= finished + killed_inside
        inside += killed_inside
        torn += len(absorbed.unique()) > 1
        assert [member.alive for member in center.members() if member.pid == victim.pid] == [False]
        assert center.num_workers == 1 + len(SURVIVORS)

    assert inside >= KILLS // 5
    assert torn > 0
    assert len(center.members()) < 10  # 50 workers have lived in one slot after the other
    for index, survivor in zip(SURVIVORS, survivors, strict=True):
        marks[index]["stop"] = True
        survivor.join(timeout=30)
        assert survivor.exitcode == 0
        assert marks[index]["finished"] > KILLS
        assert marks[index]["longest_gap"] < 1
    assert torch.equal(center.pull(), VICTIMS_STEP * counted)  # and nothing of the survivors is lost or doubled


# Vectors beside the center -----------------------------------------------------------------------------------------

PART = 2**20
COUNTING = AsyncDiLoCo(outer_lr=1.0, outer_momentum=0.0, delay=PART)
"""A way of PART adds 1 to the center, 1 to its momentum and 1 to its count of arrivals."""


def count_until_killed(center_path: Path, marks_path: Path) -> None:
    torch.set_num_threads(1)
    center, mark = LocalCenter(center_path), Marks(marks_path)[VICTIM]
    zeros = torch.zeros(NUMEL)
    made = CenterSpec((), NUMEL, memory=COUNTING.center_memory)
    x = center.join(zeros, made, COUNTING.init_center(zeros)).mul_(PART)
    state = COUNTING.init(x)
    while True:
        x += PART
        mark["begun"] += 1
        center.exchange(x, COUNTING, state)
        mark["finished"] += 1
        state[0].copy_(x)  # not from the center, as the rule would: the way stays PART, whatever a kill has torn


def test_killed_inside_an_exchange_each_element_beside_the_center_has_moved_or_not(
    center: LocalCenter, marks_path: Path, start: Callable
) -> None:
    zeros, dice = torch.zeros(NUMEL), random.Random(2)
    center.join(zeros, CenterSpec((), NUMEL, memory=COUNTING.center_memory), COUNTING.init_center(zeros))
    mark, inside = Marks(marks_path)[VICTIM], 0
    for _ in range(15):
        center.put(zeros, dict.fromkeys(COUNTING.center_memory, zeros))
        mark["begun"] = mark["finished"] = 0
        victim = start(count_until_killed)
        wait_until(lambda: mark["finished"] > 0)
        time.sleep(dice.uniform(0, 0.02))
        victim.kill()
        victim.join()
        finished, begun = int(mark["finished"]), int(mark["begun"])
        for vector in (center.pull(), *center.pull_memory().values()):
            assert finished <= vector.min() <= vector.max() <= begun
            assert torch.equal(vector, vector.round())
        inside += begun > finished
        center.exchange(zeros, COUNTING, COUNTING.init(zeros))  # nobody holds a lock
    assert inside >= 5
    assert [member.missed for member in center.members()] == [0] * len(center.members())


# Through the Worker ----------------------------------------------------------------------------------------------


class Toward(nn.Module):
    """|x - 1|^2 / 2, from 0: every x, and so the center, stays between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(2 * BLOCK + 9))

    def forward(self) -> torch.Tensor:
        return (self.x - 1).square().sum() / 2


def train_until_told(center_path: Path, marks_path: Path, index: int) -> None:
    torch.set_num_threads(1)
    model, mark, rule = Toward(), Marks(marks_path)[index], hooke.EASGD(moving_rate=0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    with hooke.Worker(model, optimizer, rule, center=LocalCenter(center_path), communication_period=1):
        mark["begun"] = int(1e9 * model.x.detach().min())  # where it starts from
        while not mark["stop"]:
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
            mark["finished"] += 1


def test_a_killed_worker_comes_back_to_the_center_and_trains_on(
    center: LocalCenter, marks_path: Path, start: Callable
) -> None:
    """At a moving rate below 1/2 no worker falls behind the center, so the center only ever rises."""
    marks, dice = Marks(marks_path), random.Random(2)
    survivor = start(train_until_told, 1)
    wait_until(lambda: marks[1]["finished"] > 20)
    (x,) = center.spec.entries
    for _ in range(10):
        marks[VICTIM]["finished"] = 0
        before = x.view(center.pull())
        victim = start(train_until_told, VICTIM)
        wait_until(lambda: marks[VICTIM]["finished"] > 3)
        time.sleep(dice.uniform(0, 0.02))
        victim.kill()
        victim.join()
        now = x.view(center.pull())
        assert marks[VICTIM]["begun"] / 1e9 >= before.min() - 1e-8  # it went on from the center, not from 0
        assert (now > before).all()
        assert now.max() < 1
        assert center.num_workers == 1
    marks[1]["stop"] = True
    survivor.join(timeout=30)
    assert survivor.exitcode == 0
    assert center.num_workers == 0
