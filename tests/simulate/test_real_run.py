"""A simulation against real processes that are driven in the order of the timeline's events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import FORK, network
from test_replicated import bits, on_ranks
from torch import Tensor, nn

import hooke
from hooke.rule import Rule
from hooke.simulate import Cluster, Simulation, timeline

UNTIL, PERIOD = 30.0, 3


def batch_of(worker: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * worker + step)
    return torch.randn(8, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Setup:
    """What a simulation and real processes have in common; plain data, so that it travels."""

    name: str
    rule: Rule
    optimizer: str = "sgd"
    normalized: bool = False

    def model(self) -> nn.Module:
        model = network()
        if self.normalized:
            model.insert(1, nn.BatchNorm1d(7))  # pyright: ignore[reportCallIssue]
        return model

    def optimizer_of(self, parameters: Any) -> torch.optim.Optimizer:
        return {
            "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
            "decay": lambda: torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01),
            "nesterov": lambda: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
            "adamw": lambda: torch.optim.AdamW(parameters, lr=0.01),
        }[self.optimizer]()


SETUPS = (
    Setup("easgd", hooke.EASGD()),
    Setup("easgd-gs-adamw", hooke.EASGD(order="gauss-seidel"), "adamw"),
    Setup("easgd-decay-batchnorm", hooke.EASGD(), "decay", normalized=True),
    Setup("eamsgd", hooke.EAMSGD(), "nesterov"),
    Setup("eamsgd-gs", hooke.EAMSGD(order="gauss-seidel"), "nesterov"),
    Setup("downpour", hooke.Downpour(), "decay"),
    Setup("diloco-adamw-batchnorm", hooke.DiLoCo(), "adamw", normalized=True),
    Setup("lsgd-batchnorm", hooke.LSGD(), normalized=True),
    Setup("averaged-async-diloco", hooke.Averaged(hooke.AsyncDiLoCo()), "adamw"),
)


def work(number: int, pipe: Connection) -> None:
    """A worker's process: for each setup that comes, join the center and step as far as it is told."""
    torch.set_num_threads(1)
    for setup, path in iter(pipe.recv, None):
        model = setup.model()
        optimizer = setup.optimizer_of(model.parameters())
        center = hooke.LocalCenter(path)
        with hooke.Worker(model, optimizer, setup.rule, center=center, communication_period=PERIOD) as worker:
            pipe.send("joined")
            for target in iter(pipe.recv, None):
                while worker.steps < target:
                    optimizer.zero_grad()
                    value = loss(model, batch_of(number, worker.steps))
                    worker.record(loss=value.item())  # some rule may want to know
                    value.backward()
                    optimizer.step()
                pipe.send(state_of(model))
            memory = b"".join(bits(vector) for vector in center.pull_memory().values())
            pipe.send((bits(center.pull()), memory, center.exchanges))
            assert pipe.recv() == "leave"
        center.close()
        pipe.send("left")


def state_of(model: nn.Module) -> bytes:
    return b"".join(tensor.detach().numpy().tobytes() for tensor in model.state_dict().values())


@pytest.fixture(scope="module")
def crew() -> Iterator[list[Connection]]:
    """Three processes that wait for a setup."""
    pipes = [FORK.Pipe() for _ in range(3)]
    processes = [FORK.Process(target=work, args=(number, theirs)) for number, (_, theirs) in enumerate(pipes)]
    for process in processes:
        process.start()
    yield [ours for ours, _ in pipes]
    for ours, _ in pipes:
        ours.send(None)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def answer(pipe: Connection) -> Any:
    assert pipe.poll(100), "a worker's process hangs"
    return pipe.recv()


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
@pytest.mark.parametrize("p", [2, 3])
def test_a_simulation_equals_real_processes_to_the_bit(
    setup: Setup, p: int, crew: list[Connection], tmp_path: Path
) -> None:
    """Center, what lies beside it, and every worker's parameters and buffers."""
    cluster = Cluster(p, [1.0, 1.3, 2.1][:p], jitter=0.3, bandwidth=5e3, latency=0.05)
    with Simulation(
        setup.model(),
        loss,
        batch_of,
        setup.rule,
        optimizer=setup.optimizer_of,
        cluster=cluster,
        communication_period=PERIOD,
        seed=4,
    ) as simulation:
        simulation.run(UNTIL)
        members = [simulation._members[number] for number in range(p)]
        states = {member.number: state_of(member.worker.model) for member in members}
        memory = b"".join(bits(vector) for vector in members[0].center.pull_memory().values())
        simulated = bits(simulation.center), memory, simulation.exchanges
        values = len(simulation.center)
    for pipe in crew[:p]:
        pipe.send((setup, tmp_path / "center"))
        assert answer(pipe) == "joined"
    found: dict[int, bytes] = {}
    events = timeline(cluster, values=values, communication_period=PERIOD, steps=10**9, seed=4)
    for event in itertools.takewhile(lambda event: event.absorbed <= UNTIL, events):
        crew[event.worker].send(event.step + (setup.rule.order == "jacobi"))  # Jacobi exchanges inside the next step
        found[event.worker] = answer(crew[event.worker])
    for pipe in crew[:p]:
        pipe.send(None)
        assert answer(pipe) == simulated
    for pipe in crew[:p]:
        pipe.send("leave")
        assert answer(pipe) == "left"
    assert found == states


RANKED = (
    Setup("easgd", hooke.EASGD()),
    Setup("diloco-adamw-batchnorm", hooke.DiLoCo(), "adamw", normalized=True),
)


def train(rank: int, setup: Setup, steps: int) -> tuple[np.ndarray, bytes]:
    model, center = setup.model(), hooke.ReplicatedCenter()
    optimizer = setup.optimizer_of(model.parameters())
    with hooke.Worker(model, optimizer, setup.rule, center=center, communication_period=PERIOD):
        for step in range(steps):
            optimizer.zero_grad()
            loss(model, batch_of(rank, step)).backward()
            optimizer.step()
        return center.pull().numpy(), state_of(model)


@pytest.mark.parametrize("setup", RANKED, ids=lambda setup: setup.name)
def test_a_synchronous_simulation_equals_real_ranks_to_the_bit(setup: Setup, tmp_path: Path) -> None:
    cluster = Cluster(2, [1.0, 1.4], jitter=0.3, bandwidth=1e4, latency=0.05)
    with Simulation(
        setup.model(),
        loss,
        batch_of,
        setup.rule,
        optimizer=setup.optimizer_of,
        cluster=cluster,
        communication_period=PERIOD,
        synchronous=True,
    ) as simulation:
        simulation.run(UNTIL)
        members = [simulation._members[rank] for rank in range(2)]
        states = [state_of(member.worker.model) for member in members]
        center, steps = simulation.center.numpy(), members[0].calls
    assert steps >= 5 * PERIOD
    for (its_center, its_state), state in zip(on_ranks(2, tmp_path, train, setup, steps), states, strict=True):
        assert its_center.tobytes() == center.tobytes()
        assert its_state == state
