"""Workers of one process on a virtual clock: the real `hooke.Worker`s, around a center that the clock drives."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hooke.flat import FlatParameters
from hooke.rule import Rule
from hooke.simulate.center import Shared, VirtualCenter
from hooke.simulate.cluster import Cluster
from hooke.simulate.gradient import Loss, gradients_, stacked_gradients_
from hooke.simulate.rows import Rows
from hooke.simulate.timeline import Event, timeline
from hooke.worker import DEFAULT_PERIOD, Worker

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


_ENDLESS = 1 << 60
"""Steps of a worker that nobody will ever see the end of."""


class Simulation:
    """A run of many workers in one process, with real gradients, on a virtual clock.

    Each worker is a copy of the model under a `hooke.Worker` of its own. When workers step, who reaches the center
    first, what waits in a link, who dies and who comes back is what `cluster` says, in virtual seconds. Gradients between two
    exchanges of a worker depend on nobody else, so they are computed when they are needed, those of several workers
    together where that is faster. The same seed gives the same bytes.

    Args:
        model: The model; it stays as it is. Each worker starts from a copy.
        loss: `loss(model, batch)`, the mean loss of a batch, a scalar.
        batches: `batches(worker, step)`, the batch of a worker's step (both from 0). It must depend on nothing else.
        rule: What is exchanged.
        optimizer: Makes a worker's optimizer from its parameters: `lambda p: torch.optim.SGD(p, lr=0.1)`.
        cluster: How many workers there are, their speeds, links and failures. Default: 4 equal workers, free links.
        communication_period: tau, in steps of a worker.
        overlap: Whether exchanges run beside the steps.
        synchronous: Whether all workers exchange at once, as with `hooke.ReplicatedCenter`.
        buffers: As in `hooke.Worker`.
        scheduler: Makes a learning-rate scheduler of an optimizer; it steps with it.
        stacked: Whether gradients of several workers are computed at once (`torch.func`). Default: on accelerators; on
            a CPU one after the other is faster.
        seed: Of the clock's chances and of what is random inside the model (dropout).
        rows: A run directory in which to leave the rows that a real run leaves, in virtual seconds; `hooke report` draws them.

    Attributes:
        seconds: The virtual time that has been reached.

    Raises:
        ValueError: A setting that `hooke.Worker` or the cluster refuses.

    Example:
        >>> from hooke.rule import EASGD
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> simulation = Simulation(
        ...     model,
        ...     loss=lambda model, x: model(x).square().mean() / 2,
        ...     batches=lambda worker, step: torch.ones(1, 1),
        ...     rule=EASGD(),
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ...     cluster=Cluster(num_workers=2),
        ...     communication_period=4,
        ... )
        >>> simulation.run(until=20.0)  # virtual seconds; a step takes one
        >>> with simulation.center_weights() as center:
        ...     print(round(center.weight.item(), 3), simulation.exchanges)
        0.266 12
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Callable[[int, int], Any],
        rule: Rule,
        *,
        optimizer: Optimizer,
        cluster: Cluster | None = None,
        communication_period: int = DEFAULT_PERIOD,
        overlap: bool = False,
        synchronous: bool = False,
        buffers: Literal["average", "local"] = "average",
        scheduler: Scheduler | None = None,
        stacked: bool | None = None,
        seed: int = 0,
        rows: str | Path | None = None,
    ) -> None:
        self.cluster = Cluster(num_workers=4) if cluster is None else cluster
        self.rule, self.seconds = rule, 0.0
        self._seed, self._overlap, self._period = seed, overlap, communication_period
        self._initial = copy.deepcopy(model)
        self._loss, self._batches, self._optimizer, self._scheduler = loss, batches, optimizer, scheduler
        on_accelerator = next(model.parameters()).device.type != "cpu"
        self._gradients_ = stacked_gradients_ if stacked or (stacked is None and on_accelerator) else gradients_
        self._options: dict[str, Any] = {
            "communication_period": communication_period,
            "overlap": overlap,
            "buffers": buffers,
        }
        self._shared = Shared(synchronous=synchronous)
        self._workers: dict[int, _Simulated] = {}
        self._steps_of_others = 0
        for number in range(self.cluster.num_workers):
            self._join(number)
        self._view = copy.deepcopy(model)
        self._view_flat = FlatParameters(self._view, buffers=buffers == "average")
        self._rows = None if rows is None else Rows(Path(rows), rule, self.cluster, self._options, seed)
        self._events = timeline(
            self.cluster,
            values=self._shared.spec.numel,
            communication_period=communication_period,
            steps=_ENDLESS,
            overlap=overlap,
            synchronous=synchronous,
            seed=seed,
        )
        self._upcoming: deque[Event] = deque()

    # What can be seen -------------------------------------------------------------------------------------------

    @property
    def exchanges(self) -> int:
        """Exchanges that the center has absorbed."""
        return self._shared.exchanges

    @property
    def refused(self) -> int:
        """Exchanges that the center has refused: a worker has diverged."""
        return self._shared.refused

    @property
    def steps(self) -> int:
        """Optimizer steps of all workers, those that died included, each counted until it last reached the center."""
        return self._steps_of_others + sum(worker.reached for worker in self._workers.values())

    @property
    def center(self) -> Tensor:
        """A copy of the center variable, `Float32[n]`; parameters first, then averaged buffers."""
        assert self._shared.vector is not None
        return self._shared.vector.clone()

    @contextmanager
    def center_weights(self, *, average: bool = False) -> Iterator[nn.Module]:
        """A copy of the model with the center's parameters (and averaged buffers): evaluate it.

        Args:
            average: Whether to take the running average that `hooke.Averaged` keeps.

        Raises:
            ValueError: The rule keeps no average.
        """
        names = self._shared.spec.memory
        if average and "average" not in names:
            raise ValueError(
                f"Simulation: center_weights(average=True) needs a rule that keeps one. Got {self.rule!r}. Use "
                "hooke.Averaged(rule)."
            )
        values = self._shared.memory[names.index("average")] if average else self._shared.vector
        assert values is not None
        self._view_flat.set_(values)
        yield self._view

    # The clock --------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Let the virtual clock run on until `until` seconds: every exchange that the center absorbs by then."""
        if not until >= self.seconds:
            raise ValueError(
                f"Simulation: until must not be before the {self.seconds:g} seconds reached. Got {until}. Use a later one."
            )
        devices = {parameter.device for parameter in self._view.parameters() if parameter.device.type != "cpu"}
        with torch.random.fork_rng(devices):
            while self._ahead(0).absorbed <= until:
                self._process(self._upcoming.popleft())
        self.seconds = until
        if self._rows is not None:
            self._rows.flush()

    def close(self) -> None:
        """End the workers; `with` calls this."""
        for number in list(self._workers):
            self._leave(number)
        if self._rows is not None:
            self._rows.close()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ahead(self, index: int) -> Event:
        while len(self._upcoming) <= index:
            self._upcoming.append(next(self._events))
        return self._upcoming[index]

    def _process(self, event: Event) -> None:
        self._shared.workers = max(1, event.workers)
        if event.kind == "died":
            self._leave(event.worker)
        elif event.kind == "joined":
            self._join(event.worker)
        elif self._shared.synchronous:
            self._meet(event)
        else:
            self._exchange(event)
        if self._rows is not None and event.kind in ("died", "joined"):
            self._rows.membership(event)

    def _exchange(self, event: Event) -> None:
        worker = self._workers[event.worker]
        call = self._call_of(event)
        if call < 0:  # before the first step there is nothing to exchange between steps
            return
        before = self.exchanges
        if worker.calls <= call:
            self._prepare(event, call)
            worker.center.lost = event.kind == "missed" and not worker.is_under_way
            worker.step()
        # else it began before one that came due meanwhile was missed, and reaches the center only now
        if worker.is_waiting:
            worker.center.absorb()
            worker.back_at = max(event.settled_step - 1, worker.calls)
        self._note(event, worker, others=before - worker.seen, missed=event.kind == "missed")

    def _meet(self, first: Event) -> None:
        """A synchronous exchange: each worker steps in a thread of its own, and all meet at the center."""
        events = [first]
        while self._ahead(0).kind == "exchange" and self._ahead(0).absorbed == first.absorbed:
            events.append(self._upcoming.popleft())
        if (call := self._call_of(first)) < 0:
            return
        for event in events:
            self._prepare(event, call)
        self._shared.expected = len(events)
        with ThreadPoolExecutor(len(events)) as threads:
            for done in [threads.submit(self._workers[event.worker].step) for event in events]:
                done.result()
        for event in events:
            self._note(event, self._workers[event.worker], others=0, missed=False)

    def _call_of(self, event: Event) -> int:
        """Which call of `optimizer.step()` carries the exchange: Gauss-Seidel exchanges end the step before."""
        return event.step - (0 if self.rule.order == "jacobi" else 1)

    def _note(self, event: Event, worker: _Simulated, *, others: int, missed: bool) -> None:
        worker.seen, worker.reached = self.exchanges, worker.calls
        if self._rows is not None:
            self._rows.exchange(event, worker.take_losses(), worker.examples, max(0, others), self._sent(), missed)

    def _sent(self) -> int:
        return 4 * self._shared.spec.numel

    # Workers ----------------------------------------------------------------------------------------------------

    def _join(self, number: int) -> None:
        center = VirtualCenter(self._shared, number, gated=self._overlap)
        model = copy.deepcopy(self._initial)
        optimizer = self._optimizer(model.parameters())
        scheduler = None if self._scheduler is None else self._scheduler(optimizer)
        worker = Worker(model, optimizer, self.rule, center=center, **self._options)
        worker.run = None  # a simulation leaves rows of its own, in virtual seconds
        self._workers[number] = _Simulated(number, worker.start(), center, scheduler, self.exchanges)

    def _leave(self, number: int) -> None:
        worker = self._workers.pop(number)
        self._steps_of_others += worker.reached
        worker.end()

    def _prepare(self, event: Event, call: int) -> None:
        """Bring the worker to its call number `call`, gradient included; and others toward theirs, beside it.

        What a worker computes before its next exchange depends on nobody else.
        """
        targets = {event.worker: call}
        if self._gradients_ is stacked_gradients_:
            targets |= self._next_calls(targets)
        while pending := [self._workers[n] for n, to in sorted(targets.items()) if not self._workers[n].is_ready(to)]:
            for worker in [worker for worker in pending if worker.has_gradient]:
                worker.step()
            due = [worker for worker in pending if not worker.has_gradient]
            self._compute(due)

    def _next_calls(self, known: dict[int, int]) -> dict[int, int]:
        """The next exchange of each other worker, as far as it is near; none beyond a worker's death."""
        calls, seen = {}, set(known)
        for index in range(2 * len(self._workers)):
            event = self._ahead(index)
            if event.worker in seen:
                continue
            seen.add(event.worker)
            if event.worker in self._workers and event.kind in ("exchange", "missed"):
                calls[event.worker] = max(0, self._call_of(event))
        return calls

    def _compute(self, workers: Sequence[_Simulated]) -> None:
        if not workers:
            return
        batches = [self._batches(worker.number, worker.calls) for worker in workers]
        seeds = [_seed(self._seed, worker.number, worker.calls) for worker in workers]
        losses = self._gradients_([worker.worker.model for worker in workers], self._loss, batches, seeds)
        for worker, loss, batch in zip(workers, losses, batches, strict=True):
            worker.computed(loss, batch)


class _Simulated:
    """One worker, and how far it has come."""

    def __init__(
        self,
        number: int,
        worker: Worker,
        center: VirtualCenter,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None,
        seen: int,
    ) -> None:
        self.number, self.worker, self.center, self._scheduler = number, worker, center, scheduler
        self.calls = self.reached = self.examples = 0
        self.seen = seen
        self.back_at: int | None = None  # the call before which an absorbed exchange comes back
        self.has_gradient = False
        self._losses: list[float] = []

    @property
    def is_under_way(self) -> bool:
        """Whether an exchange beside the steps has begun and its correction is not subtracted yet."""
        return self.worker._exchange.is_under_way

    @property
    def is_waiting(self) -> bool:
        """Whether an exchange beside the steps has begun and has not reached the center yet."""
        return self.center.is_gated and self.is_under_way and self.back_at is None

    def is_ready(self, call: int) -> bool:
        """Whether the next call of `optimizer.step()` is number `call`, and its gradient is there."""
        return self.calls >= call and self.has_gradient

    def computed(self, loss: float, batch: Any) -> None:
        """Its gradient is there."""
        self.has_gradient = True
        self._losses.append(loss)
        first = next((leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
        self.examples += 0 if first is None or first.dim() == 0 else first.shape[0]

    def step(self) -> None:
        """Call `optimizer.step()`, a correction that arrives before its end included."""
        if self.back_at is not None and self.calls >= self.back_at:
            self._deliver()
        self.worker.optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        self.calls += 1
        self.has_gradient = False

    def _deliver(self) -> None:
        self.center.deliver()
        self.worker._exchange.wait()
        self.back_at = None

    def take_losses(self) -> list[float]:
        """The losses since the last call."""
        losses, self._losses = self._losses, []
        return losses

    def end(self) -> None:
        """The worker dies, or the simulation ends; an exchange that has not reached the center never does."""
        if self.is_waiting:
            self.center.lost = True
            self.center.absorb()
            self.back_at = 0
        if self.back_at is not None:
            self._deliver()
        self.worker.stop(finished=False)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
