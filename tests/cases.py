"""The one table: every rule with its literal reference, the problems they are run on, and how tests start processes."""

from __future__ import annotations

import datetime
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
import torch.distributed as dist
from torch import nn

from hooke.averaged import Averaged
from hooke.flat import FlatParameters
from hooke.outer import AsyncDiLoCo, DiLoCo, Lookahead, MDownpour, SlowMo
from hooke.rule import EAMSGD, EASGD, Downpour, LocalSGD, Rule

ETA, ALPHA, DELTA = 0.05, 0.2, 0.9

FORK = multiprocessing.get_context("forkserver")
"""Starts real processes from one that has torch loaded already: in a tenth of a second instead of two."""
FORK.set_forkserver_preload(
    ["hooke.worker", "hooke.replicated", "hooke.grouped", "torch._dynamo", "pytest", "hypothesis"]
)


def run_rank(rank: int, world: int, store: str, function: Callable, args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout)
    try:
        return function(rank, *args)
    finally:
        dist.destroy_process_group()


def on_ranks(world: int, folder: Path, function: Callable, *args: Any) -> list[Any]:
    """What `function(rank, *args)` gives in each of `world` processes of one group."""
    with ProcessPoolExecutor(world, mp_context=FORK) as pool:
        started = [pool.submit(run_rank, rank, world, str(folder / "store"), function, args) for rank in range(world)]
        return [one.result(timeout=100) for one in started]


@dataclass(frozen=True)
class RuleCase:
    """A rule, and the reference that it must equal."""

    name: str
    rule: Rule
    reference: Callable[..., Any]
    settings: dict[str, float]
    momentum: float = 0.0

    def expected(self, x0: np.ndarray, g: reference.Gradient, *, p: int, tau: int, steps: int) -> Any:
        return self.reference(x0, g, p=p, eta=ETA, tau=tau, steps=steps, **self.settings)


_ELASTIC = {"alpha": ALPHA}
RULES = (
    RuleCase("easgd", EASGD(moving_rate=ALPHA), reference.easgd_jacobi, _ELASTIC),
    RuleCase("easgd-gs", EASGD(moving_rate=ALPHA, order="gauss-seidel"), reference.easgd_gauss_seidel, _ELASTIC),
    RuleCase("eamsgd", EAMSGD(moving_rate=ALPHA), reference.eamsgd, {**_ELASTIC, "delta": DELTA}, DELTA),
    RuleCase(
        "eamsgd-gs",
        EAMSGD(moving_rate=ALPHA, order="gauss-seidel"),
        reference.eamsgd_gauss_seidel,
        {**_ELASTIC, "delta": DELTA},
        DELTA,
    ),
    RuleCase("eamsgd-0", EAMSGD(moving_rate=ALPHA), reference.easgd_jacobi, _ELASTIC),
    RuleCase("downpour", Downpour(), reference.downpour, {}),
    RuleCase("local-sgd", LocalSGD(), reference.local_sgd_asynchronous, {}),
    RuleCase("lookahead", Lookahead(alpha=0.3), reference.lookahead, {"alpha": 0.3}),
    RuleCase("slowmo", SlowMo(0.6, slow_lr=0.8), reference.slowmo_asynchronous, {"beta": 0.6, "alpha": 0.8}),
    RuleCase("diloco", DiLoCo(0.6, 0.8), reference.diloco_asynchronous, {"lr": 0.6, "momentum": 0.8}),
    RuleCase("async-diloco", AsyncDiLoCo(0.6, 0.8), reference.delayed_nesterov, {"lr": 0.6, "beta": 0.8}),
    RuleCase("async-diloco-3", AsyncDiLoCo(delay=3), reference.delayed_nesterov, {"lr": 0.7, "beta": 0.9, "n": 3}),
    RuleCase("mdownpour", MDownpour(momentum=0.5), reference.mdownpour, {"delta": 0.5}),
    RuleCase(
        "averaged-eamsgd", Averaged(EAMSGD(moving_rate=ALPHA)), reference.eamsgd, {**_ELASTIC, "delta": DELTA}, DELTA
    ),
    RuleCase("averaged-diloco", Averaged(DiLoCo(), 0.1), reference.diloco_asynchronous, {"lr": 0.7, "momentum": 0.9}),
)
"""Each worker exchanges on its own, one after the other."""

SYNCHRONOUS = (
    RuleCase("easgd", EASGD(moving_rate=ALPHA), reference.easgd_synchronous, _ELASTIC),
    RuleCase("local-sgd", LocalSGD(), reference.local_sgd, {}),
    RuleCase("slowmo", SlowMo(0.6, slow_lr=0.8), reference.slowmo, {"beta": 0.6, "alpha": 0.8}),
    RuleCase("diloco", DiLoCo(), reference.diloco, {"lr": 0.7, "momentum": 0.9}),
)
"""All workers exchange at once."""


class Quadratic(nn.Module):
    """mean over workers' noise aside, f_i(x) = (x - b_i)' A (x - b_i) / 2 with a random positive A."""

    def __init__(self, size: int, worker: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        random = np.random.default_rng(7)
        root = random.normal(size=(size, size)) / size**0.5
        self.register_buffer("A", torch.tensor(root @ root.T + 0.1 * np.eye(size), dtype=dtype), persistent=False)
        b = np.random.default_rng(100 + worker).normal(size=size)
        self.register_buffer("b", torch.tensor(b, dtype=dtype), persistent=False)
        self.x = nn.Parameter(torch.tensor(random.normal(size=size), dtype=dtype))

    def forward(self) -> torch.Tensor:
        away = self.x - self.b
        return away @ self.A @ away / 2


def network_loss(model: nn.Module, worker: int) -> torch.Tensor:
    """A small network's loss on this worker's own batch."""
    generator = torch.Generator().manual_seed(worker)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(8, 5, generator=generator).to(dtype)
    targets = torch.randint(0, 3, (8,), generator=generator)
    return nn.functional.cross_entropy(model(inputs), targets)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()]).numpy()


def fragments_of(model: nn.Module, count: int) -> list[np.ndarray]:
    """Which elements of `flat(model)` are in each of `count` equal parts of its vector, which has gaps."""
    held = FlatParameters(model)
    place = np.concatenate([entry.offset + np.arange(np.prod(entry.shape)) for entry in held.entries])
    borders = [held.vector.numel() * part // count for part in range(count + 1)]
    held.release()
    return [np.flatnonzero((place >= start) & (place < stop)) for start, stop in pairwise(borders)]
