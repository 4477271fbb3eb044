"""The center of a simulated run: in this process, on the workers' device, and told by the simulation when to act."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.rule import Rule, State
from hooke.spec import CenterSpec, Refused, check_finite, extent, length

_Part = tuple[slice, slice, Rule, bool]
"""Where it lies in x and in the center, the rule that acts on it, and whether that rule remembers anything."""


class Abandoned(RuntimeError):
    """A worker failed that others were to meet."""


@dataclass(frozen=True)
class _Guest:
    """One worker at a synchronous exchange."""

    worker: int
    x: Tensor
    rule: Rule
    state: State
    out: Tensor
    region: slice


class Shared:
    """What all workers of a simulated run share: the center variable, what its rule keeps beside it, and counts.

    Args:
        synchronous: Whether an exchange waits for all workers.
        measures_distance: Whether each exchange measures how far the worker is from the center.

    Attributes:
        workers: How many rates count; the simulation sets it before each exchange.
        expected: How many meet at the next synchronous exchange.
        exchanges: Exchanges absorbed so far.
        refused: Exchanges refused so far.
        losses: Of each live worker the loss that it reported last.
    """

    def __init__(self, *, synchronous: bool, measures_distance: bool = False) -> None:
        self.synchronous, self.measures_distance = synchronous, measures_distance
        self.workers = self.expected = 1
        self.exchanges = self.refused = 0
        self.vector: Tensor | None = None
        self.spec = CenterSpec((), 0)
        self.memory: State = ()
        self.losses: dict[int, float] = {}
        self._meeting: dict[int, _Guest | None] = {}
        self._all_here = threading.Condition()
        self._met = 0
        self._abandoned = False

    def alone(self, worker: int, x: Tensor, rule: Rule, state: State, out: Tensor | None, region: slice) -> None:
        """One worker's exchange, in place."""
        assert self.vector is not None
        for in_x, in_center, bound, remembers in self._parts(rule, region):
            here = self._led(bound, worker, self.losses)
            own = tuple(vector[in_x] for vector in state) if remembers else ()
            beside = self._beside(here, in_center)
            here.exchange_(x[in_x], self.vector[in_center], own, None if out is None else out[in_x], memory=beside)
        self.exchanges += 1

    def together(self, worker: int, guest: _Guest | None) -> None:
        """Wait for all workers; the last to come lets the center take in the sum of their deltas.

        `None` is a worker that was refused: the others do not wait for it.

        Raises:
            Abandoned: Another worker failed before it came.
        """
        with self._all_here:
            meeting = self._met
            self._meeting[worker] = guest
            if len(self._meeting) == self.expected:
                guests = [self._meeting[one] for one in sorted(self._meeting)]
                self._exchange_all([guest for guest in guests if guest is not None])
                self._meeting, self._met = {}, meeting + 1
                self._all_here.notify_all()
            self._all_here.wait_for(lambda: self._met > meeting or self._abandoned)
            if self._met == meeting:
                raise Abandoned("another worker failed before it came to the synchronous exchange")

    def abandon(self) -> None:
        """A worker will not come: nobody waits for it."""
        with self._all_here:
            self._abandoned = True
            self._all_here.notify_all()

    def _parts(self, rule: Rule, region: slice) -> list[_Part]:
        border = min(max(0, self.spec.parameters_end - region.start), region.stop - region.start)
        middle = region.start + border
        return [
            (slice(0, border), slice(region.start, middle), rule.bind(self.workers), True),
            (slice(border, None), slice(middle, region.stop), rule.buffer_rule().bind(self.workers), False),
        ]

    def _led(self, rule: Rule, worker: int, others: Iterable[int]) -> Rule:
        """The rule for this worker, where it matters who of them leads: the lowest loss, the first of equals."""
        if not rule.follows_leader:
            return rule
        there = sorted(one for one in others if one in self.losses)
        leader = min(there, key=lambda one: self.losses[one], default=None)
        leads = leader == worker and math.isfinite(self.losses[worker])
        return rule.leading(leads)  # type: ignore[attr-defined]

    def _beside(self, rule: Rule, part: slice) -> State:
        return tuple(vector[part] for vector in self.memory) if rule.center_memory else ()

    def _exchange_all(self, guests: list[_Guest]) -> None:
        for part in self._parts(guests[0].rule, guests[0].region) if guests else ():
            self._exchange_part(guests, *part)
        self.exchanges += len(guests)

    def _exchange_part(self, guests: list[_Guest], in_x: slice, in_center: slice, rule: Rule, remembers: bool) -> None:
        assert self.vector is not None
        center = self.vector[in_center]
        states = [tuple(vector[in_x] for vector in guest.state) if remembers else () for guest in guests]
        there = [guest.worker for guest in guests]  # a worker that was refused leads nobody
        rules = [self._led(rule, worker, there) for worker in there]
        deltas = [
            here.delta(guest.x[in_x], center, state) for here, guest, state in zip(rules, guests, states, strict=True)
        ]
        rule.absorb_(center, torch.stack(deltas).sum(0), self._beside(rule, in_center))
        for here, guest, delta, state in zip(rules, guests, deltas, states, strict=True):
            x = guest.x[in_x]
            correction = here.settle(x, delta, center, state)
            for old, new in zip(state, here.remembered(x - correction, center), strict=True):
                old.copy_(new)
            guest.out[in_x] = correction


class VirtualCenter:
    """One worker's end of `Shared`; a `hooke.Center`.

    Args:
        shared: The center.
        worker: The worker's number.

    Attributes:
        lost: Whether the next exchange does not reach the center.
        failure: Why the last exchange did not happen, or `None`.
        measured: Euclidean distance of the worker from the center just before the last exchange, where it was measured.
    """

    on_host: bool = False

    def __init__(self, shared: Shared, worker: int) -> None:
        self._shared, self._worker = shared, worker
        self.lost = False
        self.failure: Exception | None = None
        self.measured: float | None = None
        self.bytes_sent = self.bytes_received = 0

    @property
    def is_synchronous(self) -> bool:
        """Whether an exchange waits for all workers."""
        return self._shared.synchronous

    @property
    def num_workers(self) -> int:
        """Live workers, as the simulation says."""
        return self._shared.workers

    @property
    def counted_workers(self) -> int:
        """The same: a simulated worker never finishes."""
        return self._shared.workers

    @property
    def exchanges(self) -> int:
        """Exchanges the center has absorbed, of all workers."""
        return self._shared.exchanges

    def join(self, initial: Float[Tensor, " n"], spec: CenterSpec, memory: State = ()) -> Float[Tensor, " n"]:
        """Become a worker: the first sets the center, every one gets it."""
        shared = self._shared
        if shared.vector is None:
            spec.check_memory(memory)
            check_finite(initial, spec.numel, initial.device.type)
            shared.vector, shared.spec = initial.clone(), spec
            shared.memory = tuple(vector.clone() for vector in memory)
        shared.spec.check_same(spec)
        return self.pull()

    def exchange(
        self,
        x: Float[Tensor, " m"],
        rule: Rule,
        state: State = (),
        out: Float[Tensor, " m"] | None = None,
        *,
        start: int | None = None,
    ) -> Float[Tensor, " m"]:
        """Let the center absorb; the correction to subtract from x.

        Raises:
            Refused: x is not finite.
            ConnectionError: The exchange was lost.
        """
        out = torch.empty_like(x) if out is None else out
        self._exchange(x, rule, state, out, start)
        return out

    def exchange_(self, x: Float[Tensor, " m"], rule: Rule, state: State = (), *, start: int | None = None) -> None:
        """As `exchange`, and subtract the correction from x at once."""
        if self.is_synchronous:
            x.sub_(self.exchange(x, rule, state, start=start))
        else:
            self._exchange(x, rule, state, None, start)

    def _exchange(self, x: Tensor, rule: Rule, state: State, out: Tensor | None, start: int | None) -> None:
        self.failure = self.measured = None
        if self.lost:
            self.lost = False
            self.failure = ConnectionError("the exchange was lost on its way")
            raise self.failure
        shared = self._shared
        shared.spec.check_rule(rule.center_memory)
        region = extent(x, start, shared.spec.numel)
        self.failure = refusal = _refusal(x, region)
        if shared.measures_distance and start is None and refusal is None:
            self.measured = self.distance(x)
        if shared.synchronous:
            assert out is not None
            guest = _Guest(self._worker, x, rule, state, out, region)
            shared.together(self._worker, guest if refusal is None else None)
        elif refusal is None:
            shared.alone(self._worker, x, rule, state, out, region)
        if refusal is not None:
            shared.refused += 1
            raise refusal
        self.bytes_sent += 4 * x.numel()
        self.bytes_received += 4 * x.numel()

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The center's values."""
        assert self._shared.vector is not None
        return self._shared.vector.clone() if out is None else out.copy_(self._shared.vector)

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center."""
        assert self._shared.vector is not None
        return length(x - self._shared.vector)

    def pull_memory(self) -> dict[str, Tensor]:
        """Copies of the vectors beside the center, by name."""
        names = self._shared.spec.memory
        return {name: vector.clone() for name, vector in zip(names, self._shared.memory, strict=True)}

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set the center to `values`, and the vectors beside it to `memory` if it is given."""
        assert self._shared.vector is not None
        beside = () if memory is None else self._shared.spec.ordered(memory)
        self._shared.vector.copy_(values)
        for vector, its_values in zip(self._shared.memory, beside, strict=False):
            vector.copy_(its_values)

    def report(self, loss: float) -> None:
        """Say how well the worker does; one whose loss is not finite never leads."""
        self._shared.losses[self._worker] = loss if math.isfinite(loss) else math.inf

    def beat(self, step: int) -> None:
        """Nothing to say: a simulated worker lives as long as the simulation says."""

    def leave(self, *, finished: bool = False) -> None:
        """Nobody follows who has left."""
        self._shared.losses.pop(self._worker, None)


def _refusal(x: Tensor, region: slice) -> Refused | None:
    try:
        check_finite(x, region.stop - region.start, x.device.type)
    except Refused as refusal:
        return refusal
    return None
