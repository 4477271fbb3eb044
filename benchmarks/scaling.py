"""How much of two processors two workers use, against peers, in one run.

    python benchmarks/scaling.py [--seconds 4] [--repeats 7] [--period 10]

Two processes, one thread each, a convolutional network of 0.86 million parameters, batch 64, random data. In each
round every way trains for some seconds: one process alone (the other waits), two that never talk (the limit), hooke,
torch's DistributedDataParallel and PeriodicModelAverager. The figure is examples/s over twice the lone process's.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import machine
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel

import hooke

BATCH = 64
Step = Callable[[], None]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 778), nn.ReLU(), nn.Linear(778, 10),
    )  # fmt: skip


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, after: Step = lambda: None) -> Step:
    images, labels = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        after()

    return step


@contextmanager
def alone(rank: int, period: int) -> Iterator[Step]:
    model = network()
    yield step_of(model, sgd(model))


@contextmanager
def with_hooke(rule: hooke.Rule, rank: int, period: int, *, overlap: bool = False) -> Iterator[Step]:
    model = network()
    optimizer = sgd(model)
    path = os.environ["HOOKE_BENCHMARK_CENTER"]
    with ExitStack() as stack:
        center = hooke.LocalCenter(path)
        stack.enter_context(
            hooke.Worker(model, optimizer, rule, center=center, communication_period=period, overlap=overlap)
        )
        yield step_of(model, optimizer)


@contextmanager
def ddp(rank: int, period: int) -> Iterator[Step]:
    model = DistributedDataParallel(network())
    yield step_of(model, sgd(model))


@contextmanager
def averager(rank: int, period: int) -> Iterator[Step]:
    model = network()
    optimizer = sgd(model)
    periodic = PeriodicModelAverager(period=period, warmup_steps=0)
    yield step_of(model, optimizer, lambda: periodic.average_parameters(model.parameters()))


def examples_per_second(step: Step, seconds: float, synchronous: bool) -> float:
    """Examples/s of this process; synchronous ways take a number of steps fixed beforehand, so that nobody hangs."""
    for _ in range(10):
        step()
    began = time.perf_counter()
    for _ in range(10):
        step()
    count = torch.tensor([seconds / ((time.perf_counter() - began) / 10)])
    if synchronous:
        dist.broadcast(count, 0)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(int(count)):
        step()
    return int(count) * BATCH / (time.perf_counter() - began)


WAYS = {
    "one process": (alone, False),
    "two that never talk": (alone, False),
    "hooke, EASGD": (lambda *a: with_hooke(hooke.EASGD(), *a), False),
    "hooke, EAMSGD": (lambda *a: with_hooke(hooke.EAMSGD(), *a), False),
    "hooke, EASGD, overlap": (lambda *a: with_hooke(hooke.EASGD(), *a, overlap=True), False),
    "PeriodicModelAverager": (averager, True),
    "DistributedDataParallel": (ddp, True),
}


def total(name: str, rank: int, arguments: argparse.Namespace) -> float:
    """Examples/s of both processes together."""
    way, synchronous = WAYS[name]
    mine = torch.zeros(1)
    if name == "one process":
        if rank == 0:
            with way(rank, arguments.period) as step:
                for _ in range(20):
                    step()
                began, steps = time.perf_counter(), 0
                while time.perf_counter() - began < arguments.seconds:
                    step()
                    steps += 1
                mine[0] = steps * BATCH / (time.perf_counter() - began)
    else:
        with way(rank, arguments.period) as step:
            dist.barrier()
            mine[0] = examples_per_second(step, arguments.seconds, synchronous)
            dist.barrier()
    dist.all_reduce(mine)
    return mine.item()


def process(rank: int, port: int, arguments: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    figures: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(arguments.repeats):
        for name in WAYS:
            figures[name].append(total(name, rank, arguments))
    if rank == 0:
        report(figures, arguments)
    dist.destroy_process_group()


def report(figures: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    rows = []
    for name, mine in figures.items():
        shares = sorted(one / (2 * lone) for one, lone in zip(mine, figures["one process"], strict=True))
        row = {
            "what": name,
            "examples_per_second": statistics.median(mine),
            "share_of_twice_one_process": statistics.median(shares),
            "range": [shares[0], shares[-1]],
        }
        rows.append(row)
        print(f"{name:26} {row['examples_per_second']:8.0f} examples/s   {statistics.median(shares):.3f} of twice one")
    settings = {"period": arguments.period, "batch": BATCH, "seconds": arguments.seconds, "repeats": arguments.repeats}
    parameters = sum(p.numel() for p in network().parameters())
    machine.append("scaling", {**settings, "parameters": parameters, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--period", type=int, default=10)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    center = hooke.LocalCenter()
    os.environ["HOOKE_BENCHMARK_CENTER"] = str(center.path)
    context = mp.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, port, arguments)) for rank in range(2)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    center.close()


if __name__ == "__main__":
    main()
