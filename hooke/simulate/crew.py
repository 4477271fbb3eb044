"""The workers of a simulated run: who is there, and their gradients, computed when somebody needs them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hooke.rule import Rule
from hooke.simulate.center import Shared, VirtualCenter
from hooke.simulate.gradient import Gradients
from hooke.simulate.member import Member, Scheduler
from hooke.simulate.timeline import Event


@dataclass(frozen=True)
class Recipe:
    """How a worker is made.

    Attributes:
        model: What it copies.
        optimizer: Makes one from parameters.
        scheduler: Makes one for an optimizer.
        rule: What is exchanged.
        options: Of the `hooke.Worker`.
    """

    model: nn.Module
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], Scheduler] | None
    rule: Rule
    options: dict[str, Any]

    def member(self, number: int, shared: Shared) -> Member:
        """A fresh worker, which joins the center.

        Raises:
            ValueError: A setting that `hooke.Worker` refuses, or no optimizer.
        """
        model = copy.deepcopy(self.model)
        optimizer = self.optimizer(model.parameters())
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"Simulation: optimizer must make one from parameters. Got {optimizer!r} from it. Use e.g. "
                "lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
            )
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        center = VirtualCenter(shared, number)
        return Member(number, model, optimizer, scheduler, self.rule, center, self.options)


class Crew(dict[int, Member]):
    """The workers that are there, by number.

    Args:
        gradients: Computes them.
        batches: The batch of a worker's step.
        seed: Of what is random in a model.
        rule: What is exchanged.
        ahead: The event so many places ahead.
    """

    def __init__(
        self,
        gradients: Gradients,
        batches: Callable[[int, int], Any],
        seed: int,
        rule: Rule,
        ahead: Callable[[int], Event],
    ) -> None:
        super().__init__()
        self._gradients, self._batches, self._seed = gradients, batches, seed
        self._rule, self._ahead = rule, ahead

    def call_of(self, event: Event) -> int:
        """Which call of `optimizer.step()` carries the exchange: Gauss-Seidel exchanges end the step before."""
        return event.step - (0 if self._rule.order == "jacobi" else 1)

    def prepare(self, targets: dict[int, int]) -> None:
        """Bring these workers to their calls, gradient included; and, where it is faster, others toward theirs."""
        if self._gradients.stacked:
            targets = self._next_calls(set(targets)) | targets
        while pending := [self[number] for number, to in sorted(targets.items()) if not self[number].is_ready(to)]:
            for member in [member for member in pending if member.has_gradient]:
                member.step()
            self._compute([member for member in pending if not member.has_gradient])

    def _next_calls(self, known: set[int]) -> dict[int, int]:
        """The next exchange of each other worker, as far as it is near; none beyond a worker's death."""
        calls = {}
        for index in range(2 * len(self)):
            event = self._ahead(index)
            if event.worker not in known and event.worker in self:
                known.add(event.worker)
                if event.kind in ("exchange", "missed") and self.call_of(event) >= 0:
                    calls[event.worker] = self.call_of(event)
        return calls

    def _compute(self, members: list[Member]) -> None:
        if not members:
            return
        batches = [self._batches(member.number, member.calls) for member in members]
        seeds = [_seed(self._seed, member.number, member.calls) for member in members]
        losses = self._gradients.compute_([member.worker.model for member in members], batches, seeds)
        for member, loss, batch in zip(members, losses, batches, strict=True):
            member.computed(loss, batch)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
