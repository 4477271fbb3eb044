"""The center of a simulated run: in this process, on the workers' device, and told by the simulation when to act."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.rule import Rule, State
from hooke.spec import CenterSpec, Refused, check_finite


class Shared:
    """What all workers of a simulated run share: the center variable, what its rule keeps beside it, and counts.

    Args:
        synchronous: Whether an exchange waits for all workers.

    Attributes:
        workers: How many rates count; the simulation sets it before each exchange.
        expected: How many meet at the next synchronous exchange.
        exchanges: Exchanges absorbed so far.
        refused: Exchanges refused so far.
    """

    def __init__(self, *, synchronous: bool) -> None:
        self.synchronous = synchronous
        self.workers = self.expected = 1
        self.exchanges = self.refused = 0
        self.vector: Tensor | None = None
        self.spec = CenterSpec((), 0)
        self.memory: State = ()
        self._meeting: dict[int, _Guest | None] = {}
        self._all_here = threading.Condition()
        self._met = 0

    def parts(self, rule: Rule) -> list[tuple[slice, Rule]]:
        """Which rule acts on which part of the vector."""
        border = self.spec.parameters_end
        return [
            (slice(0, border), rule.bind(self.workers)),
            (slice(border, None), rule.buffer_rule().bind(self.workers)),
        ]

    def alone(self, x: Tensor, rule: Rule, state: State, out: Tensor | None) -> None:
        """One worker's exchange, in place."""
        assert self.vector is not None
        for (part, here), remembered in zip(self.parts(rule), (state, ()), strict=True):
            beside = tuple(vector[part] for vector in self.memory) if here.center_memory else ()
            own = tuple(vector[part] for vector in remembered)
            here.exchange_(x[part], self.vector[part], own, None if out is None else out[part], memory=beside)
        self.exchanges += 1

    def together(self, worker: int, guest: _Guest | None) -> None:
        """Wait for all workers; the last to come lets the center take in the sum of their deltas.

        `None` is a worker that was refused: the others do not wait for it.
        """
        with self._all_here:
            meeting = self._met
            self._meeting[worker] = guest
            if len(self._meeting) == self.expected:
                guests = [self._meeting[one] for one in sorted(self._meeting)]
                self._exchange_all([guest for guest in guests if guest is not None])
                self._meeting, self._met = {}, meeting + 1
                self._all_here.notify_all()
            self._all_here.wait_for(lambda: self._met > meeting)

    def _exchange_all(self, guests: list[_Guest]) -> None:
        assert self.vector is not None
        for is_buffers, (part, rule) in enumerate(self.parts(guests[0].rule) if guests else ()):
            center, beside = self.vector[part], tuple(vector[part] for vector in self.memory)
            points = [guest.x[part] for guest in guests]
            states = [() if is_buffers else tuple(vector[part] for vector in guest.state) for guest in guests]
            deltas = [rule.delta(x, center, state) for x, state in zip(points, states, strict=True)]
            rule.absorb_(center, torch.stack(deltas).sum(0), beside if rule.center_memory else ())
            for x, delta, state, guest in zip(points, deltas, states, guests, strict=True):
                correction = rule.settle(x, delta, center, state)
                for old, new in zip(state, rule.init(x - correction), strict=True):
                    old.copy_(new)
                guest.out[part] = correction
        self.exchanges += len(guests)


@dataclass(frozen=True)
class _Guest:
    """One worker at a synchronous exchange."""

    x: Tensor
    rule: Rule
    state: State
    out: Tensor


class VirtualCenter:
    """One worker's end of `Shared`; a `hooke.Center`.

    Args:
        shared: The center.
        worker: The worker's number.
        gated: Whether an exchange waits, in its thread, for `absorb` and then for `deliver`: exchanges that run beside
            the steps.

    Attributes:
        is_gated: The same.
        lost: Whether the next exchange does not reach the center.
    """

    on_host: bool = False

    def __init__(self, shared: Shared, worker: int, *, gated: bool = False) -> None:
        self._shared, self._worker, self.is_gated = shared, worker, gated
        self._may_absorb, self._has_absorbed, self._may_return = (threading.Semaphore(0) for _ in range(3))
        self.lost = False
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
        if self._shared.vector is None:
            spec.check_memory(memory)
            self._shared.vector, self._shared.spec = initial.clone(), spec
            self._shared.memory = tuple(vector.clone() for vector in memory)
        self._shared.spec.check_same(spec)
        return self.pull()

    def exchange(
        self, x: Float[Tensor, " n"], rule: Rule, state: State = (), out: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Let the center absorb; the correction to subtract from x.

        Raises:
            Refused: x is not finite.
            ConnectionError: The exchange was lost.
        """
        out = torch.empty_like(x) if out is None else out
        self._exchange(x, rule, state, out)
        return out

    def exchange_(self, x: Float[Tensor, " n"], rule: Rule, state: State = ()) -> None:
        """As `exchange`, and subtract the correction from x at once."""
        if self.is_synchronous:
            x.sub_(self.exchange(x, rule, state))
        else:
            self._exchange(x, rule, state, None)

    def _exchange(self, x: Tensor, rule: Rule, state: State, out: Tensor | None) -> None:
        if self.is_gated:
            self._may_absorb.acquire()
        try:
            self._absorb(x, rule, state, out)
        finally:
            if self.is_gated:
                self._has_absorbed.release()
                self._may_return.acquire()

    def _absorb(self, x: Tensor, rule: Rule, state: State, out: Tensor | None) -> None:
        if self.lost:
            self.lost = False
            raise ConnectionError("the exchange was lost on its way")
        self._shared.spec.check_rule(rule.center_memory)
        refusal = self._refusal(x)
        if self.is_synchronous:
            assert out is not None
            self._shared.together(self._worker, _Guest(x, rule, state, out) if refusal is None else None)
        elif refusal is None:
            self._shared.alone(x, rule, state, out)
        if refusal is not None:
            self._shared.refused += 1
            raise refusal
        self.bytes_sent += 4 * x.numel()
        self.bytes_received += 4 * x.numel()

    def _refusal(self, x: Tensor) -> Refused | None:
        try:
            check_finite(x, self._shared.spec.numel, x.device.type)
        except Refused as refusal:
            return refusal
        return None

    def absorb(self) -> None:
        """Let an exchange that waits reach the center, and wait until it has."""
        self._may_absorb.release()
        self._has_absorbed.acquire()

    def deliver(self) -> None:
        """Let the correction of an absorbed exchange come back."""
        self._may_return.release()

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The center's values."""
        assert self._shared.vector is not None
        return self._shared.vector.clone() if out is None else out.copy_(self._shared.vector)

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center."""
        return float(torch.linalg.vector_norm(x - self.pull()))

    def pull_memory(self) -> dict[str, Tensor]:
        """Copies of the vectors beside the center, by name."""
        names = self._shared.spec.memory
        return {name: vector.clone() for name, vector in zip(names, self._shared.memory, strict=True)}

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set the center to `values`, and the vectors beside it to `memory` if it is given."""
        assert self._shared.vector is not None
        self._shared.vector.copy_(values)
        if memory is not None:
            for vector, its_values in zip(self._shared.memory, self._shared.spec.ordered(memory), strict=True):
                vector.copy_(its_values)

    def beat(self, step: int) -> None:
        """Nothing to say: a simulated worker lives as long as the simulation says."""

    def leave(self, *, finished: bool = False) -> None:
        """Nothing to do."""
