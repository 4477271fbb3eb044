"""A center that lives elsewhere, as one worker has it."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.center import blocks_in, blocks_of
from hooke.codec import Codec, codec_of
from hooke.remote import protocol
from hooke.remote.coded import told_of
from hooke.remote.protocol import received, send_block
from hooke.remote.trouble import Address, SessionUnknown
from hooke.remote.wire import Wire
from hooke.rule import EASGD, Rule, State
from hooke.rule_json import rule_to_plain
from hooke.spec import CenterSpec, Refused, check_vector, extent, length

BEAT_SECONDS = 5.0
"""Between two signs of life."""

LONGEST_PAUSE = 30.0
"""Between two tries to reach a center that does not answer."""


@dataclass
class Pending:
    """An exchange whose reply is not there yet.

    Attributes:
        number: Its number.
        region: Which part of x.
        rule: By which rule.
        start: The worker's own memory of that part. It stays until all of the reply is there.
        coded: What was sent of each block, where the codec rounds.
        done: Blocks (start, stop) whose correction has arrived.
    """

    number: int
    region: slice
    rule: Rule
    start: State
    coded: dict[int, Tensor] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)

    @property
    def remembers(self) -> bool:
        """Whether the rule counts the worker's way from a start."""
        return bool(self.start)


class RemoteCenter:
    """A center on another machine; made by `connect`. One object serves one worker.

    The worker's x goes to the center, which lets the rule act and sends the correction back, both by the codec. What
    the worker subtracts is what the center added, to the bit. A failed exchange raises, changes nothing and costs
    nothing: the worker goes on, and whatever the center did of it all the same comes with the next exchange.

    Attributes:
        bytes_sent: Values as they went out, without the frames of the network.
        bytes_received: Values as they came in.
    """

    on_host: bool = True
    """It wants vectors on the CPU."""

    is_synchronous: bool = False
    """Each worker exchanges on its own."""

    def __init__(self, wire: Wire, codec: Codec, name: str, *, wait: float = 0.0) -> None:
        self._wire, self._codec, self._name, self._wait = wire, codec, name, wait
        self.bytes_sent = 0
        self.bytes_received = 0
        self._lock = threading.RLock()
        self._session = ""
        self._spec: CenterSpec | None = None
        self._blocks: list[tuple[int, int, int]] = []
        self._base: Tensor | None = None
        self._number = 0
        self._pending: Pending | None = None
        self._owed: list[tuple[int, Tensor]] = []
        self._numbers: dict[str, Any] = {}
        self._is_lost = False
        self._returns = 0
        self._step = 0
        self._loss: float | None = None
        self._rule: Rule = EASGD()
        self._failures, self._next_try, self._last_failure = 0, 0.0, ""
        self._beating: threading.Event | None = None

    # What is known of the center --------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._wire.address.url

    @property
    def name(self) -> str:
        """What the center calls this worker; no two at a center have the same."""
        return self._name

    @property
    def address(self) -> Address:
        """The same, taken apart."""
        return self._wire.address

    @property
    def num_workers(self) -> int:
        """Live workers, as the center said last."""
        return int(self._numbers.get("num_workers", 0))

    @property
    def counted_workers(self) -> int:
        """Workers that rates count, as the center said last."""
        return max(1, int(self._numbers.get("counted_workers", 1)))

    @property
    def exchanges(self) -> int:
        """Exchanges of all workers, as the center said last."""
        return int(self._numbers.get("exchanges", 0))

    @property
    def ready(self) -> bool:
        """Whether the center had been set when it spoke last."""
        return bool(self._numbers.get("ready", False))

    def status(self) -> dict[str, Any]:
        """What `hooke status` shows; asks the center."""
        return self._wire.call(protocol.STATUS)

    def metrics(self) -> str:
        """The same in Prometheus' text format; asks the center."""
        return self._wire.ask(protocol.METRICS).decode()

    def greet(self) -> None:
        """Make sure that a center of this protocol answers.

        Raises:
            OSError: None does.
        """
        try:
            self._numbers = self._wire.call(protocol.HELLO, min(self._wire.timeout, 10.0))
        except OSError:
            self._wire.hang_up()
            raise

    # Coming and going -------------------------------------------------------------------------------------------------

    def join(self, initial: Float[Tensor, " n"], spec: CenterSpec, memory: State = ()) -> Float[Tensor, " n"]:
        """Become one of the workers; the first one's `initial` sets the center.

        Returns:
            The center, a new tensor, to the bit whatever the codec.

        Raises:
            ValueError: The spec differs from the center's, or this object has joined already.
            Refused: `initial` is not finite.
            OSError: The center can't be reached, or turns this worker away.
        """
        if self._session:
            raise ValueError(
                "connect: one object serves one worker. Got a second join. Give each worker its own: "
                "hooke.connect(url)."
            )
        session, blocks, deadline = uuid.uuid4().hex, blocks_of(spec), time.monotonic() + self._wait
        while True:
            try:
                values = self._joined_as(session, spec, blocks, (initial, *memory))
                break
            except PermissionError:
                raise
            except OSError:
                self._wire.hang_up()
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.5)
        self._session, self._spec, self._blocks = session, spec, blocks
        self._base, self._number, self._pending, self._owed, self._is_lost = values.clone(), 0, None, [], False
        self._beating = _start_beating(self)
        return values

    def _joined_as(
        self, session: str, spec: CenterSpec, blocks: list[tuple[int, int, int]], vectors: tuple[Tensor, ...]
    ) -> Tensor:
        """The center, as a new worker of that session is told it."""
        values = torch.empty(spec.numel)
        with self._lock, self._wire.stream(protocol.JOIN, **self._introduction(session, spec)) as (writer, reader):
            items = received(reader)
            if not _said(items)["ready"]:
                self._upload(writer, blocks, vectors)
            writer.done_writing()
            self._download(items, blocks, [values])
        return values

    def leave(self, *, finished: bool = False) -> None:
        """Be a worker no longer; a center that can't be reached notices by itself."""
        if not self._session:
            return
        if self._beating is not None:
            self._beating.set()
        with suppress(OSError, ValueError):
            self._wire.call(protocol.LEAVE, BEAT_SECONDS, session=self._session, finished=finished)
        self._session, self._base, self._owed, self._pending = "", None, [], None

    def close(self) -> None:
        """Leave, and close the connection."""
        self.leave()
        self._wire.hang_up()

    def beat(self, step: int) -> None:
        """Say that the worker lives and has taken `step` steps; it is told to the center every few seconds."""
        self._step = step

    def report(self, loss: float) -> None:
        """Say how well the worker does, with the next exchange."""
        self._loss = loss

    # Exchanges --------------------------------------------------------------------------------------------------------

    def exchange(
        self,
        x: Float[Tensor, " m"],
        rule: Rule,
        state: State = (),
        out: Float[Tensor, " m"] | None = None,
        *,
        start: int | None = None,
    ) -> Float[Tensor, " m"]:
        """Let the center absorb what the rule says; the correction to subtract from x.

        Args:
            x: Float32 on the CPU.
            rule: One of hooke's own.
            state: As in `LocalCenter.exchange`; what the worker was told is written into it.
            out: Where the correction is written; may be x itself. Default: a new tensor. Undefined where this raises.
            start: Where x begins in the vector, if it is a fragment of it.

        Raises:
            Refused: The center does not take x. Nothing has changed.
            ValueError: A rule that the center can't know, or that does not fit it.
            OSError: The center could not be reached, or the stream was cut. The worker may go on as if nothing had
                been.
        """
        spec = self._joined()
        region = extent(x, start, spec.numel)
        check_vector(x, region.stop - region.start)
        out = torch.empty_like(x) if out is None else out
        with self._trying():
            self._rule = rule
            self._recover(x, state, region)
            owed = self._owed_in(region)
            if owed is not None:
                self._send(x - owed, rule, state, out, region)
                out.add_(owed)
                self._settle_owed(region)
            else:
                self._send(x, rule, state, out, region)
        return out

    def exchange_(self, x: Float[Tensor, " m"], rule: Rule, state: State = (), *, start: int | None = None) -> None:
        """As `exchange`, and subtract the correction from x."""
        x.sub_(self.exchange(x, rule, state, start=start))

    def _send(self, x: Tensor, rule: Rule, state: State, out: Tensor, region: slice) -> None:
        """One exchange, its reply written into `out`."""
        pending = Pending(self._number + 1, region, rule, self._start(rule, x, state, region))
        header = {
            "session": self._session,
            "number": pending.number,
            "rule": rule_to_plain(rule),
            "numel": x.numel(),
            "start": region.start,
            "loss": self._loss if rule.follows_leader else None,
        }
        self._pending = pending
        try:
            with self._wire.stream(protocol.EXCHANGE, **header) as (writer, reader):
                for _, first, end in blocks_in(self._blocks, region):
                    coded = self._coded(x[first - region.start : end - region.start], first, end, pending)
                    self.bytes_sent += send_block(writer, first, coded)
                writer.done_writing()
                self._take_reply(received(reader), pending, out)
        except (Refused, ValueError, SessionUnknown):
            if not pending.done:  # the center has said that it did not do it
                self._give_up(pending)
            raise

    def _start(self, rule: Rule, x: Tensor, state: State, region: slice) -> State:
        """What the worker remembers, if the rule does."""
        if not rule.init(x[:0]):
            if self._codec.is_exact:
                self._base = None  # never needed again: a vector less
            return ()
        if self._base is None:
            self._joined().check_rule(rule.center_memory)
            raise ValueError(
                f"connect: one rule serves for a worker's life. Got {type(rule).__name__}, which remembers where the "
                "worker started, after one that does not. Join again."
            )
        return state or (self._base[region].clone(),)

    def _coded(self, x: Tensor, first: int, end: int, pending: Pending) -> Tensor:
        """What is sent of one block; what the base needs of it later is kept."""
        if not self._codec.is_exact:
            assert self._base is not None
            pending.coded[first] = self._codec.encode(x - self._base[first:end])
            return pending.coded[first]
        if self._base is not None:
            self._base[first:end].copy_(x)  # where it started from is in the worker's own memory
        return self._codec.encode(x)

    def _take_reply(self, items: Iterator[Any], pending: Pending, out: Tensor) -> None:
        """Corrections into `out`; the base follows, as at the center.

        What has arrived of a reply that is cut is owed to the worker.
        """
        known, region = frozenset(pending.done), pending.region
        missing = {first: end for _, first, end in blocks_in(self._blocks, region)}
        try:
            for item in items:
                if isinstance(item, dict):
                    self._numbers = {**self._numbers, **item}
                    continue
                _, first, coded = item
                end = missing.pop(first, None)
                if end is None:
                    raise protocol.ProtocolError("a block that was not asked for.")
                self.bytes_received += coded.numel()
                self._take_block(pending, first, end, coded, out[first - region.start : end - region.start])
            if missing:
                raise ConnectionError(f"connect: the reply of {self.url} was cut. Got all but {len(missing)} blocks.")
        except BaseException:
            self._owe(pending, out, known)
            raise
        self._number, self._pending = pending.number, None
        self._tell(pending, region)

    def _take_block(self, pending: Pending, first: int, end: int, coded: Tensor, out: Tensor) -> None:
        """One block of a reply; without bytes: the center has left it out."""
        if coded.numel() not in (0, self._codec.size(end - first)):
            raise protocol.ProtocolError("a block of another size.")
        correction = self._codec.decode(coded, out) if coded.numel() else out.zero_()
        if first not in pending.done:
            pending.done[first] = end
            self._follow(pending, first, end, correction, was_left_out=not coded.numel())

    def _follow(self, pending: Pending, first: int, end: int, correction: Tensor, *, was_left_out: bool) -> None:
        """The base of one block, after the exchange."""
        if self._base is None:
            return
        assert self._spec is not None
        base, sent = self._base[first:end], pending.coded.pop(first, None)
        counts_ways = pending.remembers and first < self._spec.parameters_end
        if was_left_out and counts_ways:
            if sent is None:
                base.copy_(pending.start[0][first - pending.region.start : end - pending.region.start])
            return  # the way goes on from the same start
        if sent is not None:
            base.add_(self._codec.decode(sent, torch.empty_like(base)))
        if counts_ways:
            base.copy_(told_of(pending.rule, base, correction))
        else:
            base.sub_(correction)

    def _tell(self, pending: Pending, part: slice) -> None:
        """Let the worker remember what the base says of that part."""
        for vector in pending.start:
            assert self._base is not None
            vector[part.start - pending.region.start : part.stop - pending.region.start].copy_(self._base[part])

    # After a failure --------------------------------------------------------------------------------------------------

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Don't try again at once where the last try failed."""
        until = time.monotonic() + self._wire.timeout
        wait = self._next_try - time.monotonic()
        if wait > 0:
            raise ConnectionError(f"{self._last_failure} The next try is in {wait:.1f} s; the worker trains on.")
        if not self._lock.acquire(timeout=self._wire.timeout):
            raise TimeoutError(
                f"connect: one call at a time may wait for {self.url}. Got none free for {self._wire.timeout:g} "
                "seconds. Look at the center."
            )
        try:
            with self._wire.ending(until):
                yield
        except Refused:
            raise
        except OSError as error:
            self._is_lost |= isinstance(error, SessionUnknown)
            if not isinstance(error, SessionUnknown):
                self._wire.hang_up()
            self._failures += 1
            pause = min(LONGEST_PAUSE, 0.25 * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
            if isinstance(error, TimeoutError):
                pause = LONGEST_PAUSE  # each try may cost as much again; a sign of life ends the pause
            self._next_try, self._last_failure = time.monotonic() + pause, str(error)
            raise
        finally:
            self._lock.release()
        self._failures, self._next_try = 0, 0.0

    def _recover(self, x: Tensor | None, state: State, region: slice) -> None:
        """Clear up what the last failure left, so that this exchange may begin."""
        if self._pending is not None:
            try:
                self._ask_for_reply(self._pending)
            except SessionUnknown:
                self._give_up(self._pending)  # what it did all the same, nobody can say any more
                self._is_lost = True
        if self._is_lost:
            self._return(x)
        if state and self._base is not None and not torch.equal(state[0], self._base[region]):
            self._base[region].copy_(state[0])  # the worker was resumed, and starts from where it says
            self._return(x)

    def _ask_for_reply(self, pending: Pending) -> None:
        """Whether the center did it; then its correction is owed to the worker."""
        header = {"session": self._session, "number": pending.number}
        with self._wire.stream(protocol.REPLY, **header) as (writer, reader):
            writer.done_writing()
            items, known = received(reader), frozenset(pending.done)
            if _said(items)["applied"]:
                correction = torch.empty(pending.region.stop - pending.region.start)
                self._take_reply(items, pending, correction)
                self._owe(pending, correction, known)
            else:
                self._give_up(pending)
                self._number = pending.number

    def _owe(self, pending: Pending, correction: Tensor, known: frozenset[int]) -> None:
        """Keep the blocks of a correction that came too late, or without the others, but for those that were known."""
        for first, end in pending.done.items():
            if first not in known:
                here = slice(first - pending.region.start, end - pending.region.start)
                self._owed.append((first, correction[here].clone()))

    def _give_up(self, pending: Pending) -> None:
        """The exchange did not happen: the worker starts from where it did, but for blocks whose reply has arrived."""
        for _, first, end in blocks_in(self._blocks, pending.region):
            here = slice(first - pending.region.start, end - pending.region.start)
            if first in pending.done:
                self._tell(pending, slice(first, end))
            elif pending.remembers and self._base is not None:
                self._base[first:end].copy_(pending.start[0][here])
        self._pending = None

    def _owed_in(self, region: slice) -> Tensor | None:
        """The corrections of before that lie in the region; `None` where there are none."""
        total = None
        for start, correction in self._owed:
            first, end = max(start, region.start), min(start + correction.numel(), region.stop)
            if first < end:
                total = torch.zeros(region.stop - region.start) if total is None else total
                total[first - region.start : end - region.start].add_(correction[first - start : end - start])
        return total

    def _settle_owed(self, region: slice) -> None:
        """Keep only what lies outside the region."""
        kept = []
        for start, correction in self._owed:
            end = start + correction.numel()
            for first, last in ((start, min(end, region.start)), (max(start, region.stop), end)):
                if first < last:
                    kept.append((first, correction[first - start : last - start]))
        self._owed = kept

    def _return(self, x: Tensor | None) -> None:
        """Come back to a center that has forgotten this worker: tell it where the worker starts from."""
        spec = self._joined()
        told = self._base if self._base is not None else x if x is not None and x.numel() == spec.numel else None
        header = {**self._introduction(self._session, spec), "number": self._number, "rule": rule_to_plain(self._rule)}
        try:
            with self._wire.stream(protocol.RETURN, **header) as (writer, reader):
                items = received(reader)
                ready = _said(items)["ready"]
                if told is None and not ready:
                    raise ConnectionError(
                        f"connect: {self.url} must still have its center. Got an empty one. Start it with its "
                        "checkpoint."
                    )
                self._upload(writer, self._blocks, (torch.zeros(spec.numel) if told is None else told,))
                writer.done_writing()
                self._numbers = {**self._numbers, **_said(items)}
        except Refused:
            raise
        except ValueError as error:  # another model, another protocol: nothing that training must end for
            raise ConnectionError(str(error)) from None
        self._is_lost = False
        self._returns += 1

    # The center's values ----------------------------------------------------------------------------------------------

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The center's values; by a codec that rounds, as differences from what this worker was told last.

        Raises:
            OSError: The center can't be reached.
        """
        spec = self._joined()
        out = torch.empty(spec.numel) if out is None else out
        with self._trying():
            if self._is_lost or self._pending is not None:
                self._recover(None, (), slice(0, spec.numel))
            with self._wire.stream(protocol.PULL, session=self._session) as (writer, reader):
                writer.done_writing()
                self._download(received(reader), self._blocks, [out], self._codec)
            if not self._codec.is_exact:
                assert self._base is not None
                out.add_(self._base)
        return out

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center, which is pulled for it."""
        return length(x - self.pull())

    def pull_memory(self) -> dict[str, Tensor]:
        """Copies of the vectors beside the center (`Rule.center_memory`), by name; to the bit."""
        spec = self._joined()
        vectors = [torch.empty(spec.numel) for _ in spec.memory]
        with self._lock, self._wire.stream(protocol.MEMORY, session=self._session) as (writer, reader):
            writer.done_writing()
            self._download(received(reader), self._blocks, vectors)
        return dict(zip(spec.memory, vectors, strict=True))

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set the center to `values`, and the vectors beside it to `memory`; to the bit."""
        beside = () if memory is None else self._joined().ordered(memory)
        header = {"session": self._session, "memory": memory is not None}
        with self._lock, self._wire.stream(protocol.PUT, **header) as (writer, reader):
            self._upload(writer, self._blocks, (values, *beside))
            writer.done_writing()
            self._numbers = {**self._numbers, **_said(received(reader))}

    # Streams ----------------------------------------------------------------------------------------------------------

    def _introduction(self, session: str, spec: CenterSpec) -> dict[str, Any]:
        about = {"version": protocol.VERSION, "session": session, "name": self._name, "codec": self._codec.name}
        return {**about, "spec": spec.to_json()}

    def _upload(self, writer: Any, blocks: list[tuple[int, int, int]], vectors: tuple[Tensor, ...]) -> None:
        exact = codec_of("float32")
        for index, vector in enumerate(vectors):
            for _, first, end in blocks:
                self.bytes_sent += send_block(writer, first, exact.encode(vector[first:end]), index)

    def _download(
        self,
        items: Iterator[Any],
        blocks: list[tuple[int, int, int]],
        vectors: list[Tensor],
        codec: Codec | None = None,
    ) -> None:
        codec = codec or codec_of("float32")
        missing = {(index, first): end for index in range(len(vectors)) for _, first, end in blocks}
        for item in items:
            if isinstance(item, dict):
                self._numbers = {**self._numbers, **item}
                continue
            index, first, coded = item
            end = missing.pop((index, first), None)
            if end is None:
                raise protocol.ProtocolError("a block that was not asked for.")
            codec.decode(coded, vectors[index][first:end])
            self.bytes_received += coded.numel()
        if missing:
            raise ConnectionError(f"connect: what {self.url} sent was cut. Got all but {len(missing)} blocks.")

    def _joined(self) -> CenterSpec:
        if not self._session or self._spec is None:
            raise ValueError("connect: join comes first. Got a center without a worker. Use a hooke.Worker.")
        return self._spec

    def _beat_now(self) -> None:
        """Say that the worker lives; a center that answers again is tried again at once."""
        returns = self._returns
        try:
            self._numbers = {
                **self._numbers,
                **self._wire.call(protocol.BEAT, BEAT_SECONDS, session=self._session, step=self._step),
            }
            self._next_try = 0.0
        except SessionUnknown:
            if returns == self._returns:  # and the worker has not come back meanwhile
                self._is_lost, self._next_try = True, 0.0
        except (OSError, ValueError):
            pass


def _start_beating(center: RemoteCenter) -> threading.Event:
    """A thread that says every few seconds that the worker lives, until the event is set."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            center._beat_now()

    threading.Thread(target=beat, name="hooke-beat", daemon=True).start()
    return over


def _said(items: Iterator[Any]) -> dict[str, Any]:
    """The header that comes next."""
    item = next(items, None)
    if isinstance(item, dict):
        return item
    raise protocol.ProtocolError(
        "the answer must begin with a header. Got something else. Install the same hooke on both."
    )
