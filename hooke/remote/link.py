"""One worker elsewhere, as the center sees it: what it was told, how far it is, what it is owed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hooke.center import LocalCenter, blocks_in, blocks_of
from hooke.codec import Codec
from hooke.remote.coded import Coded
from hooke.remote.protocol import UNKNOWN, ProtocolError, wire_error
from hooke.rule import Rule, State
from hooke.spec import LARGEST, CenterSpec, Refused, check_finite

Block = tuple[int, Tensor]
"""Where it begins in the whole vector, and its bytes; none: it was left out, and its correction is zero."""

_LEFT_OUT = torch.empty(0, dtype=torch.uint8)


class Upload:
    """A vector, or a part of one, that arrives block by block; nothing is done with it before it is whole.

    Args:
        blocks: The vector's blocks, as `hooke.center.blocks_of` has them.
        region: Which part arrives.
        codec: How.
        base: What the differences that arrive are added to, as long as the vector; `None`: values arrive.
        room: Memory for as many values, which nobody else uses; `None`: some is made.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[int, int, int]],
        region: slice,
        codec: Codec,
        base: Tensor | None = None,
        room: Tensor | None = None,
    ) -> None:
        self.region, self._codec, self._base = region, codec, base
        self.x = torch.empty(region.stop - region.start) if room is None else room
        self._is_strange = False
        self._missing = {first: end for _, first, end in blocks_in(blocks, region)}

    def take(self, start: int, coded: Tensor) -> None:
        """Take in the block that begins at `start`.

        Raises:
            ProtocolError: No such block is missing, or it has another size.
        """
        end = self._missing.pop(start, None)
        if end is None or coded.numel() != self._codec.size(end - start):
            raise ProtocolError(
                f"serve: each block must come once, in its size. Got {coded.numel()} bytes for the block at {start}. "
                "Use hooke.connect."
            )
        values = self._codec.decode(coded, self.x[start - self.region.start : end - self.region.start])
        if self._base is not None:
            values.add_(self._base[start:end])
        if not self._is_strange:  # now, while the block is in the processor's cache
            self._is_strange = not abs(values.sum().item()) <= LARGEST

    def check(self) -> None:
        """Refuse what is cut short, or not finite.

        Raises:
            ProtocolError: Blocks are missing.
            Refused: Values are not finite.
        """
        if self._missing:
            raise ProtocolError(
                f"serve: all blocks must arrive. Got a stream that lacks {len(self._missing)} of them. Send it again."
            )
        if self._is_strange:
            check_finite(self.x, self.x.numel())


@dataclass
class Traffic:
    """What went over one link, or over all.

    Attributes:
        bytes_received: From the worker, without the frames of the network.
        bytes_sent: To the worker.
    """

    bytes_received: int = 0
    bytes_sent: int = 0


@dataclass
class Link:
    """One worker elsewhere.

    Attributes:
        session: The worker's own number for itself.
        name: What people call it.
        peer: Its address.
        codec: How both directions are coded.
        center: A handle that joined for this worker.
        spec: What is in the vector.
        base: What both ends know of the worker's x since its last exchange; where the rule remembers, where the worker
            starts from. `None` where neither the codec nor the rule needs it.
        number: The last exchange that was applied, or given up.
        seen: Exchanges of all workers when this one had its last.
    """

    session: str
    name: str
    peer: str
    codec: Codec
    center: LocalCenter
    spec: CenterSpec
    base: Tensor | None = None
    number: int = 0
    seen: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    heard: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_gone: bool = False
    _owed: list[Block] | None = None
    _spare: Tensor | None = None
    _replied: Tensor | None = None
    _blocks: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._blocks = blocks_of(self.spec)

    def upload(self, start: int | None, numel: int) -> Upload:
        """A place for the worker's x, or for the part of it that begins at `start`.

        Raises:
            Refused: It has another size.
        """
        if start is None and numel != self.spec.numel:
            raise Refused(
                f"center: x must be {self.spec.numel} float32 values. Got {numel}. Send the vector that the worker "
                "joined with."
            )
        first = start or 0
        if first + numel > self.spec.numel:
            raise Refused(
                f"center: a fragment must lie within the vector of {self.spec.numel} values. Got {numel} from {first} "
                "on. Send x[start:stop] and its start."
            )
        with self.lock:
            room, self._spare = self._spare, None
        if room is not None and room.numel() != numel:
            room = None
        base = None if self.codec.is_exact else self.base
        return Upload(self._blocks, slice(first, first + numel), self.codec, base, room)

    def exchange(self, upload: Upload, rule: Rule, number: int, loss: float, emit: Callable[[Block], None]) -> None:
        """Let the rule act on what arrived, whole; each block of the correction is emitted as soon as it is there.

        Raises:
            ProtocolError: Another number than the one after the last.
            Refused: Values that are not finite.
            ValueError: The rule keeps other vectors beside the center.
        """
        upload.check()
        with self.lock:
            self._check_order(number)
            x, region = upload.x, upload.region
            self.spec.check_rule(rule.center_memory)
            if rule.init(x[:0]):
                self._known()
            elif self.codec.is_exact:
                self.base = None  # never needed again: a vector less
            if rule.follows_leader:
                self.center.report(loss)
            self._owed = owed = []
            try:
                for block in self._applied(x, region, rule):
                    owed.append(block)
                    emit(block)
            finally:  # also where memory ran out half way: what is done is told, and all else is left out
                done = {start for start, _ in owed}
                owed += [(first, _LEFT_OUT) for _, first, _ in blocks_in(self._blocks, region) if first not in done]
                self.number, self.seen = number, self.center.exchanges
                self._keep(x)

    def _keep(self, x: Tensor) -> None:
        """Let the next upload have the memory of one that is done with: some anew costs a page fault every 4 KiB.

        Where every bit is sent, the blocks that are owed lie in it until the exchange after. Beside a base, for rules
        that remember, that would be a third vector.
        """
        if not self.codec.is_exact:
            self._spare = x
        elif self.base is None:
            self._spare, self._replied = self._replied, x

    def _check_here(self) -> None:
        if self.is_gone:
            raise wire_error(UNKNOWN, "serve: this worker has left, or come back anew. Got a request of before.")

    def _check_order(self, number: int) -> None:
        self._check_here()
        if number != self.number + 1:
            raise ProtocolError(
                f"serve: exchanges must come in order. Got number {number} after {self.number}. Let the worker ask for "
                "the reply it misses."
            )

    def _applied(self, x: Tensor, region: slice, rule: Rule) -> Iterator[Block]:
        """The coded correction, block by block, while the center absorbs and the base follows the worker."""
        remembers, missed = bool(rule.init(x[:0])), self._missed
        state: State = (self._known()[region],) if remembers else ()
        if self.codec.is_exact:
            for part in self.center.exchanging(x, rule, state, x, start=region.start, checked=True):
                before, missed = missed, self._missed
                yield region.start + part.start, _LEFT_OUT if missed > before else self.codec.encode(x[part])
            return
        acting, followed_from = Coded(rule, self.codec), self.spec.parameters_end if remembers else 0
        for part in self.center.exchanging(x, acting, state, None, start=region.start, checked=True):
            first = region.start + part.start
            if first >= followed_from:  # no rule keeps up that part of the base
                self._known()[first : region.start + part.stop].copy_(x[part])
            yield first, acting.sent.pop() if acting.sent else _LEFT_OUT

    @property
    def _missed(self) -> int:
        """Blocks that were left out because a stopped process held them."""
        member = self.center.member
        return 0 if member is None else member.missed

    def _known(self) -> Tensor:
        if self.base is None:
            raise ProtocolError(
                "serve: a worker must say where it starts from. Got a rule that remembers, after one that does not. "
                "Use one rule for a worker's life."
            )
        return self.base

    def reply(self, number: int) -> list[Block] | None:
        """The correction of that exchange once more; `None` if it was not applied, and then it never will be.

        Raises:
            ProtocolError: It is not the last one.
        """
        with self.lock:
            self._check_here()
            if number == self.number + 1:
                self.number, self._owed = number, None
            if number != self.number:
                raise ProtocolError(
                    f"serve: only the last exchange's reply is kept, {self.number}. Got {number}. Start the worker "
                    "again."
                )
            return None if self._owed is None else list(self._owed)

    def pull(self) -> Iterator[Block]:
        """The center's values, as differences from the base where the codec rounds."""
        with self.lock:
            self._check_here()
            values = self.center.pull()
            if not self.codec.is_exact:
                values -= self._known()
        for _, start, end in self._blocks:
            yield start, self.codec.encode(values[start:end])

    def beat(self, step: int) -> None:
        """The worker lives."""
        self.heard = time.monotonic()
        self._check_here()
        self.center.beat(step)

    def leave(self, *, finished: bool = False) -> None:
        """The worker goes, when what it has under way here is done; nothing of before is done any more."""
        with self.lock:
            self.is_gone = True
            self.center.leave(finished=finished)
            self.center.close()
            self.base = self._owed = self._spare = self._replied = None


def loss_of(value: object) -> float:
    """The worker's recent training loss; one that says nothing never leads."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.inf
    except OverflowError:
        return math.inf
