"""Character language model on War and Peace, AdamW inside: DDP, Local SGD, DiLoCo, EASGD at equal examples and bytes.

HOOKE_DATA=FOLDER python benchmarks/language.py [--minutes M] [--jobs N]

Each trial is a run of p workers on the virtual clock of `hooke.simulate`, with real gradients. DDP is one worker whose
batch is the p batches joined, which is what averaging p gradients does. Finished trials are never run again.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import torch
from search import Search, main, ring_vectors, run_to
from torch import Tensor, nn
from torch.nn import functional as F

import hooke
from hooke.simulate import Cluster, Simulation
from papers import data
from papers.trial import Trials

HELD_OUT = 0.05
"""Share of the book that ends the training text and is for choosing, and share after it that is for testing."""

SHOWN = 512
"""Windows on which a loss is measured."""


@cache
def parts(source: str) -> tuple[list[Tensor], int]:
    """Training, validation and test text as character numbers, cut from the book in this order; how many characters.

    `"toy"` needs no file: words drawn at random.
    """
    text = data.war_and_peace() if source == "war-and-peace" else _toy()
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([known[character] for character in text])
    held = round(HELD_OUT * len(numbers))
    return list(numbers.split([len(numbers) - 2 * held, held, held])), len(known)


def _toy() -> str:
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), random.integers(2, 6))) for _ in range(20)]
    return " ".join(random.choice(words, 4000))


def drawn(source: str, context: int, batch: int, *seeds: int) -> Tensor:
    """`batch` windows of `context` + 1 characters of the training text; the same for the same seeds."""
    text = parts(source)[0][0]
    starts = np.random.default_rng(seeds).integers(0, len(text) - context, batch)
    return text.unfold(0, context + 1, 1)[torch.from_numpy(starts)]


def joined(source: str, context: int, batch: int, workers: int, seed: int, step: int) -> Tensor:
    """What the workers draw at a step, as one batch."""
    return torch.cat([drawn(source, context, batch, seed, worker, step) for worker in range(workers)])


class Block(nn.Module):
    """Causal attention and a perceptron, each behind its normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, context, width) to the same."""
        heads = self.attention(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixed(seen.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.before_perceptron(x))


class Transformer(nn.Module):
    """A decoder of characters; no dropout."""

    def __init__(self, characters: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, characters))

    def forward(self, text: Tensor) -> Tensor:
        """Logits (n, context, characters) of the next character after each of (n, context)."""
        return self.out(self.blocks(self.character(text) + self.place.weight))


def loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats."""
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def rule_of(method: str, setting: list[float]) -> hooke.Rule:
    """What a method exchanges; DDP needs none: its center is its one worker."""
    if method == "DiLoCo":
        return hooke.DiLoCo(outer_lr=setting[0], outer_momentum=setting[1])
    return hooke.EASGD(beta=setting[0]) if method == "EASGD" else hooke.LocalSGD()


def bytes_sent(method: str, workers: int, parameters: int, steps: float, exchanges: float) -> float:
    """What each worker sends, and receives, in float32: a ring all-reduce, or one vector to the center and one back.

    Args:
        method: DDP and the synchronous methods use a ring, EASGD a star.
        workers: p.
        parameters: n.
        steps: Of each worker.
        exchanges: Of each worker.
    """
    times = steps if method == "DDP" else exchanges
    return 4 * parameters * times * (1.0 if method == "EASGD" else ring_vectors(workers))


def trial(
    method: str,
    period: int,
    lr: float,
    setting: list[float],
    seed: int,
    source: str,
    workers: int,
    width: int,
    depth: int,
    context: int,
    batch: int,
    steps: int,
    warmup: int,
    points: int,
) -> dict[str, Any]:
    """Train p workers for `steps` each; the center's test loss at `points` moments, its validation loss at the end."""
    torch.manual_seed(seed)
    (_, validation, test), characters = parts(source)
    model = Transformer(characters, context, width, depth, heads=max(1, width // 32))
    simulation = simulation_of(model, method, period, lr, setting, seed, source, workers, context, batch, warmup)
    parameters, share = sum(p.numel() for p in model.parameters()), workers if method != "DDP" else 1
    result: dict[str, Any] = {"taken": [], "bytes": [], "loss": []}
    with simulation:
        for point in range(1, points + 1):
            run_to(simulation, share * steps * point // points)
            taken, exchanges = simulation.steps / share, simulation.exchanges / share
            result["taken"].append(taken)
            result["bytes"].append(bytes_sent(method, workers, parameters, taken, exchanges))
            result["loss"].append(measured(simulation, test, context))
        return {**result, "validation": measured(simulation, validation, context), "parameters": parameters}


def simulation_of(
    model: nn.Module,
    method: str,
    period: int,
    lr: float,
    setting: list[float],
    seed: int,
    source: str,
    workers: int,
    context: int,
    batch: int,
    warmup: int,
) -> Simulation:
    """The run of a trial; a step takes one virtual second. Workers of a star have a jitter, so that they take turns."""
    alone, star = method == "DDP", method == "EASGD"
    return Simulation(
        model,
        loss,
        (lambda _, step: joined(source, context, batch, workers, seed, step))
        if alone
        else (lambda worker, step: drawn(source, context, batch, seed, worker, step)),
        rule_of(method, setting),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr, betas=(0.9, 0.95), fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warmup)
        ),
        cluster=Cluster(1 if alone else workers, 1.0, jitter=0.1 if star else 0.0),
        communication_period=period,
        synchronous=not star,
        stacked=False,
        seed=seed,
    )


@torch.no_grad()
def measured(simulation: Simulation, text: Tensor, context: int) -> float:
    """The center's mean loss on windows at even distances, in nats a character."""
    starts = torch.linspace(0, len(text) - context - 1, SHOWN).long()
    windows = text.unfold(0, context + 1, 1)[starts]
    with simulation.center_weights() as model:
        return float(np.mean([float(loss(model, part)) for part in windows.split(64)]))


def _setups(periods: dict[str, list[int]]) -> list[dict[str, Any]]:
    return [{"method": method, "period": period} for method, all_of_it in periods.items() for period in all_of_it]


SETTINGS = {
    "DDP": [[]],
    "Local SGD": [[]],
    "DiLoCo": [[0.7, 0.9], [0.7, 0.5], [1.0, 0.5]],  # outer rate and momentum
    "EASGD": [[0.9], [0.45], [1.8]],  # beta
}

FULL = Search(
    setups=_setups({"DDP": [100], "Local SGD": [10, 50], "EASGD": [10, 50], "DiLoCo": [10, 50, 100]}),
    rates=[0.01, 0.003, 0.03],
    settings=SETTINGS,
    cell={
        "source": "war-and-peace",
        "workers": 4,
        "width": 64,
        "depth": 2,
        "context": 32,
        "batch": 8,
        "steps": 1000,
        "warmup": 100,
        "points": 10,
    },
    seeds=[0, 1, 2, 3, 4],
)
"""DDP's period only says how often its center is refreshed, for the points."""

SMOKE = Search(
    setups=_setups({"DDP": [4], "Local SGD": [2], "EASGD": [2], "DiLoCo": [2]}),
    rates=[0.01, 0.03],
    settings={method: values[:2] for method, values in SETTINGS.items()},
    cell=dict(FULL.cell)
    | {"source": "toy", "width": 8, "depth": 1, "context": 8, "batch": 2, "steps": 20, "warmup": 2, "points": 2},
    seeds=[0, 1],
)
"""Sizes that take seconds and need no file."""

BEGINNING = "beginning of DDP"


def run(record: Trials) -> None:
    """Run what the record does not hold, and read the first steps of DDP more finely: it spends its bytes there."""
    search = SMOKE if record.smoke else FULL
    if search.run(record, trial):
        ddp = next(setup for setup in search.setups if setup["method"] == "DDP")
        shown = [row["settings"] for row in search.shown(record.table, ddp)]
        first = search.cell["steps"] // search.cell["points"] // 10
        record.study(BEGINNING, trial, [one | {"period": first, "steps": 9 * first, "points": 9} for one in shown])


if __name__ == "__main__":
    sys.exit(main("language", (__doc__ or "").splitlines()[0], run))
