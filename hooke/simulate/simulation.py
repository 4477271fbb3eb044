"""Workers of one process on a virtual clock: the real `hooke.Worker`s, around a center that the clock drives."""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hooke.flat import FlatParameters
from hooke.record import Record
from hooke.rule import Rule
from hooke.simulate.center import Abandoned, Shared
from hooke.simulate.cluster import Cluster
from hooke.simulate.crew import Crew, Recipe
from hooke.simulate.gradient import Gradients, Loss
from hooke.simulate.member import Member, Scheduler
from hooke.simulate.pace import Leg
from hooke.simulate.rows import Exchanged, Rows
from hooke.simulate.settings import check_callables, check_schedule, check_seed, check_type, check_until
from hooke.simulate.timeline import Event, timeline
from hooke.worker import DEFAULT_PERIOD

_ENDLESS = 1 << 60
"""Steps of a worker that nobody will ever see the end of."""

_Buffers = Mapping[str, Tensor | None]
"""Of one module."""

_NOTHING = Event("left", -1, 0, math.inf, math.inf, math.inf, 0, 0, Leg(0, ()))
"""What comes after everything: all workers have died and none will be back."""


class Simulation:
    """A run of many workers in one process, with real gradients, on a virtual clock.

    Each worker is a copy of the model under a `hooke.Worker` of its own, with an optimizer of its own. When workers
    step, who reaches the center first, what waits in a link, who dies and who comes back is what `cluster` says, in
    virtual seconds. What a worker computes between two exchanges depends on nobody else, so it is computed when its
    exchange comes. The trajectory is that of real processes which exchange in the same order, and the same seed gives
    the same bytes.

    Args:
        model: The model; it stays as it is. Each worker starts from a copy.
        loss: `loss(model, batch)`, the mean loss of a batch, a scalar.
        batches: `batches(worker, step)`, the batch of a worker's step (both from 0). It must depend on nothing else. A
            worker that came back after its death counts from 0 again.
        rule: What is exchanged.
        optimizer: Makes a worker's optimizer from its parameters: `lambda p: torch.optim.SGD(p, lr=0.1)`.
        cluster: How many workers there are, their speeds, links and failures. Default: 4 equal workers, free links.
        communication_period: tau, in steps of a worker.
        fragments: As in `hooke.Worker`; it must divide the period.
        overlap: Whether exchanges run beside the steps.
        synchronous: Whether all workers exchange at once, as with `hooke.ReplicatedCenter`.
        buffers: As in `hooke.Worker`.
        scheduler: Makes a learning-rate scheduler of an optimizer; it steps with it.
        stacked: Whether gradients of several workers are computed at once (`torch.func`). Default: on an accelerator,
            if the model allows; on a CPU one after the other is faster.
        seed: Of the clock's chances and of what is random inside the model (dropout). The global random states stay as
            they are.
        rows: A run directory in which to leave `run.json` and the rows that a real run leaves, in virtual seconds;
            `hooke report` draws them.

    Attributes:
        cluster: Where the run is simulated.
        rule: What is exchanged.
        seconds: The virtual time that has been reached.

    Raises:
        ValueError: A setting that `hooke.Worker` or the cluster refuses.

    Example:
        >>> from hooke.rule import EASGD
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> with Simulation(
        ...     model,
        ...     loss=lambda model, x: model(x).square().mean() / 2,
        ...     batches=lambda worker, step: torch.ones(1, 1),
        ...     rule=EASGD(),
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ...     cluster=Cluster(num_workers=2),
        ...     communication_period=4,
        ... ) as simulation:
        ...     simulation.run(until=20.0)  # virtual seconds; a step takes one
        ...     with simulation.center_weights() as center:
        ...         print(round(center.weight.item(), 3), simulation.exchanges)
        0.272 12
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Callable[[int, int], Any],
        rule: Rule,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        cluster: Cluster | None = None,
        communication_period: int = DEFAULT_PERIOD,
        fragments: int = 1,
        overlap: bool = False,
        synchronous: bool = False,
        buffers: Literal["average", "local"] = "average",
        scheduler: Callable[[torch.optim.Optimizer], Scheduler] | None = None,
        stacked: bool | None = None,
        seed: int = 0,
        rows: str | Path | None = None,
    ) -> None:
        check_type("model", model, nn.Module, "e.g. torch.nn.Linear(4, 1)")
        check_callables(loss=loss, batches=batches, optimizer=optimizer, scheduler=scheduler)
        if isinstance(loss, nn.Module):  # torch's own would take the model for an input
            raise ValueError(
                f"Simulation: loss must be a function of model and batch. Got {loss!r}. Use lambda model, batch: "
                "criterion(model(batch[0]), batch[1])."
            )
        self.cluster = Cluster(num_workers=4) if cluster is None else cluster
        check_type("cluster", self.cluster, Cluster, "e.g. hooke.Cluster(num_workers=4)")
        check_seed(seed)
        self.rule, self.seconds = rule, 0.0
        self._closed = False
        self._view = copy.deepcopy(model)
        self._view_flat = FlatParameters(self._view, buffers=buffers == "average")
        self._fragments = fragments
        options: dict[str, Any] = {
            "communication_period": communication_period,
            "fragments": fragments,
            "overlap": overlap,
            "buffers": buffers,
        }
        check_schedule(communication_period, fragments, overlap, synchronous)
        self._recipe = Recipe(copy.deepcopy(model), optimizer, scheduler, rule, options)
        gradients = Gradients(loss, stacked, self._view_flat.vector.device)
        self._members = Crew(gradients, batches, seed, rule, self._ahead)
        self._shared = Shared(synchronous=synchronous, measures_distance=rows is not None)
        self._steps_before = 0  # of workers that died
        self._last_buffers: list[_Buffers] = []
        self._has_warned = False
        for number in range(self.cluster.num_workers):
            self._members[number] = self._recipe.member(number, self._shared)
        self._events = timeline(
            self.cluster,
            values=math.ceil(self._shared.spec.numel / fragments),
            communication_period=communication_period // fragments,
            steps=_ENDLESS,
            overlap=overlap,
            synchronous=synchronous,
            seed=seed,
        )
        self._upcoming: deque[Event] = deque()
        settings = {**options, "synchronous": synchronous, "seed": seed}
        self._rows = None if rows is None else Rows(Path(rows), rule, self.cluster, settings)

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
        """Optimizer steps of all workers, each counted up to its last exchange, or its death."""
        return self._steps_before + sum(member.reached for member in self._members.values())

    @property
    def center(self) -> Tensor:
        """A copy of the center variable, `Float32[n]`, laid out as in `hooke.FlatParameters`."""
        assert self._shared.vector is not None
        return self._shared.vector.clone()

    @contextmanager
    def center_weights(self, *, average: bool = False, worker: int | None = None) -> Iterator[nn.Module]:
        """A copy of the model with the center's parameters (and averaged buffers): evaluate it.

        Args:
            average: Whether to take the running average that `hooke.Averaged` keeps.
            worker: Whose buffers to take where the center has none: all of them with `buffers="local"`, else counts
                and the like. They are as of its last exchange. Default: the live worker of the lowest number, or the
                last that was there.

        Raises:
            ValueError: The rule keeps no average, or the worker is not there.
        """
        local = self._buffers_of(worker)
        names = self._shared.spec.memory
        if average and "average" not in names:
            raise ValueError(
                f"Simulation: center_weights(average=True) needs a rule that keeps one. Got {self.rule!r}. Use "
                "hooke.Averaged(rule)."
            )
        values = self._shared.memory[names.index("average")] if average else self._shared.vector
        assert values is not None
        modules = list(self._view.modules())
        before = [dict(module._buffers) for module in modules]
        _put_buffers(modules, local)
        try:
            with self._view_flat.holding(values):
                yield self._view
        finally:
            for module, buffers in zip(modules, before, strict=True):
                module._buffers.update(buffers)

    def _buffers_of(self, worker: int | None) -> list[_Buffers]:
        if worker is None and not self._members:
            return self._last_buffers
        number = min(self._members) if worker is None else worker
        if number not in self._members:
            raise ValueError(
                f"Simulation: center_weights(worker=...) needs one that is there. Got {worker}, there are "
                f"{sorted(self._members)}. Use one of them, or leave it out."
            )
        return [module._buffers for module in self._members[number].worker.model.modules()]

    def record(self, **values: float) -> None:
        """Add rows about the center at the virtual time that has been reached.

        Without `rows` the names are checked and the values dropped.

        Args:
            values: By name: `test_loss`, `accuracy`.

        Raises:
            ValueError: A name that is not one of `hooke.record.NAMES`.
            RuntimeError: The simulation was closed.
        """
        self._check_open("record()")
        for name in values:
            Record.check(name)
        if self._rows is not None:
            for name, value in values.items():
                self._rows.center(name, value, self.seconds)
            self._rows.flush(self.seconds)

    # The clock --------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Let the virtual clock run on until `until` seconds: every exchange that the center absorbs by then.

        In one call or in several, the result is the same to the bit.

        Raises:
            ValueError: `until` is no number, lies before the time reached, or is infinite.
            RuntimeError: The simulation was closed, or has failed.
        """
        self._check_open("run()")
        check_until(until, self.seconds)
        try:
            with self._own_chances():
                while self._ahead(0).absorbed <= until:
                    self._process(self._upcoming.popleft())
        except BaseException:  # in the middle of an event: nobody can go on from here
            self.close()
            raise
        self.seconds = until
        if self._rows is not None:
            self._rows.flush(until)

    def close(self) -> None:
        """End the workers and the files of rows; `with` calls this. What can be seen stays."""
        if self._closed:
            return
        self._closed = True
        self._last_buffers = self._buffers_of(None)
        for number in list(self._members):
            self._steps_before += self._members[number].reached
            self._members.pop(number).end()
        if self._rows is not None:
            self._rows.close()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self, verb: str) -> None:
        if self._closed:
            raise RuntimeError(
                f"Simulation: {verb} needs one that is open. Got one that was closed, or whose run has failed. Make "
                "another, and call it inside `with`."
            )

    @contextmanager
    def _own_chances(self) -> Iterator[None]:
        """What is drawn inside leaves the global random states as they are."""
        kind = self._view_flat.vector.device.type
        count = 0 if kind == "cpu" else torch.get_device_module(kind).device_count()
        with torch.random.fork_rng(range(count), device_type=kind if count else "cuda"):
            yield

    def _ahead(self, index: int) -> Event:
        while len(self._upcoming) <= index:
            self._upcoming.append(next(self._events, _NOTHING))
        return self._upcoming[index]

    def _process(self, event: Event) -> None:
        self._shared.workers = max(1, event.workers)
        if event.kind == "died":
            self._die(event)
        elif event.kind == "joined":
            self._members[event.worker] = self._recipe.member(event.worker, self._shared)
            if self._rows is not None:
                self._rows.joined(event)
        elif self._shared.synchronous:
            self._meet(event)
        else:
            self._exchange(event)

    def _die(self, event: Event) -> None:
        if len(self._members) == 1:
            self._last_buffers = self._buffers_of(None)
        self._members.pop(event.worker).end()
        self._steps_before += event.step
        if self._rows is not None:
            self._rows.died(event)

    # Exchanges --------------------------------------------------------------------------------------------------

    def _exchange(self, event: Event) -> None:
        member, call = self._members[event.worker], self._members.call_of(event)
        if call < 0:  # before the first step there is nothing to exchange between steps
            return
        before = self.exchanges
        self._members.prepare({event.worker: call})
        member.center.lost = lost = event.kind == "missed" and not member.is_busy_after(event.step)
        member.step()
        if member.is_waiting and (lost or event.kind == "exchange"):
            member.absorb(event.settled_step)
        self._note(event, member, others=before - member.seen, lost=lost)

    def _meet(self, first: Event) -> None:
        """A synchronous exchange: each worker steps in a thread of its own, and all meet at the center."""
        events = [first, *self._upcoming_with(first)]
        calls = {event.worker: self._members.call_of(event) for event in events}
        events = [event for event in events if calls[event.worker] >= 0]
        if not events:
            return
        self._members.prepare({event.worker: calls[event.worker] for event in events})
        before, self._shared.expected = self.exchanges, len(events)
        with ThreadPoolExecutor(len(events)) as threads:
            done = [threads.submit(self._step_or_abandon, self._members[event.worker]) for event in events]
        _raise_cause(done)
        for event in events:
            member = self._members[event.worker]
            self._note(event, member, others=before - member.seen, lost=False)

    def _upcoming_with(self, first: Event) -> Iterator[Event]:
        """The exchanges that belong to the same meeting; they are taken out of what is to come."""
        index = 0
        while self._ahead(index).absorbed == first.absorbed:
            if self._ahead(index).kind == "exchange":
                event = self._upcoming[index]
                del self._upcoming[index]
                yield event
            else:
                index += 1

    def _step_or_abandon(self, member: Member) -> None:
        try:
            member.step()
        except BaseException:
            self._shared.abandon()
            raise

    def _note(self, event: Event, member: Member, *, others: int, lost: bool) -> None:
        member.seen, member.reached = self.exchanges, max(member.reached, event.step)
        divergence, losses = member.take_divergence(), member.take_losses()
        if divergence is not None and not self._has_warned:  # the others are about to say the same
            self._has_warned = True
            warnings.warn(divergence[1], RuntimeWarning, stacklevel=5)  # whoever called run()
        if self._rows is None:
            return
        self._rows.trained(event, losses, member.examples)
        if divergence is not None:
            self._rows.diverging(event, *divergence)
        if event.kind == "missed":
            why = str(member.center.failure) if lost else "the exchange before is still under way"
            self._rows.missed(event, why)
            return
        moved = 4 * math.ceil(self._shared.spec.numel / self._fragments)
        center = member.center
        self._rows.exchanged(event, Exchanged(others, moved, center.measured, center.failure))


def _raise_cause(done: list[Future[None]]) -> None:
    errors = [error for future in done if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Abandoned))[:1]:
        raise error


def _put_buffers(modules: list[nn.Module], buffers: list[_Buffers]) -> None:
    for module, its in zip(modules, buffers, strict=True):
        for name, buffer in its.items():
            module._buffers[name] = None if buffer is None else buffer.detach().clone()
