"""WHERE the center lives: `LocalCenter`, in shared memory of one machine.

The center is one file that every worker maps. Workers change it block by block, each block under its own lock, while it
is in the processor's cache; readers never wait. All locks are record locks that the kernel frees when a process dies.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.checkpoint import load_tensors, save_tensors
from hooke.rule import Rule, State
from hooke.shared_memory import COUNTS, MAX_WORKERS, Locks, SharedFile
from hooke.spec import CenterSpec, Refused, check_finite, check_vector, extent, length

BLOCK = 262_144
"""Elements a block (1 MiB): few enough for a block of x and of the center to stay in the cache, enough that locks cost
little."""

HEARTBEAT_SECONDS = 60.0
"""A worker that has not stepped for so long counts as stalled: not among `num_workers` until it steps again."""

LOCK_SECONDS = 0.25
"""How long an exchange waits for one block. A longer wait means a stopped process: the block is left out, once."""

_MEMORY = "center_memory/"


class Center(Protocol):
    """Holds the center variable, lets rules act on it, absorbs what they send. One object serves one worker."""

    bytes_sent: int
    bytes_received: int

    @property
    def on_host(self) -> bool:
        """Whether it wants vectors on the CPU, and not where the parameters are."""
        ...

    @property
    def is_synchronous(self) -> bool:
        """Whether an exchange waits for all workers."""
        ...

    @property
    def num_workers(self) -> int:
        """Live workers now."""
        ...

    @property
    def counted_workers(self) -> int:
        """Workers that rates count: the live ones, and those that have finished their part of the run."""
        ...

    @property
    def exchanges(self) -> int:
        """Exchanges the center has absorbed, of all workers."""
        ...

    def join(self, initial: Float[Tensor, " n"], spec: CenterSpec, memory: State = ()) -> Float[Tensor, " n"]:
        """Become a worker: the first sets the center to `initial` and `memory`; every one gets the center."""
        ...

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

        With `start`, x, `state` and `out` are the elements from there on: one fragment is exchanged, and no other.
        """
        ...

    def exchange_(self, x: Float[Tensor, " m"], rule: Rule, state: State = (), *, start: int | None = None) -> None:
        """Let the center absorb, and subtract the correction from x at once."""
        ...

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The center's values."""
        ...

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center."""
        ...

    def pull_memory(self) -> dict[str, Tensor]:
        """The vectors beside the center (`Rule.center_memory`), by name."""
        ...

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set the center to `values`, and the vectors beside it to `memory` (when a run is resumed)."""
        ...

    def beat(self, step: int) -> None:
        """Say that the worker lives and has taken `step` steps."""
        ...

    def report(self, loss: float) -> None:
        """Say how well the worker does, by its recent training loss: the best of all is the leader (`LSGD`)."""
        ...

    def leave(self, *, finished: bool = False) -> None:
        """Be a worker no longer; `finished`: because its part of the run is done."""
        ...


@dataclass(frozen=True)
class Member:
    """One worker as the center sees it.

    Attributes:
        pid: Its process.
        alive: Whether it counts among `num_workers`.
        step: Optimizer steps it has taken.
        exchanges: Exchanges it has made.
        refused: Exchanges refused to it.
        missed: Blocks left out because a stopped process held them.
        heartbeat_age: Seconds since its last step or exchange.
    """

    pid: int
    alive: bool
    step: int
    exchanges: int
    refused: int
    missed: int
    heartbeat_age: float


class LocalCenter:
    """The center in shared memory of one machine: a file that unrelated processes attach to by its path.

    Every worker needs a `LocalCenter` of its own; two with the same `path` are the same center. One that never joins
    only looks on (it can `pull`, `save` and list `members`).

    A killed worker frees its locks and no longer counts at once. Killed inside an exchange, it leaves each element of
    the center, and of the vectors that its rule keeps beside it, either moved by its pull or not, nothing in between.

    Args:
        path: The file; made if it is missing. Default: a fresh private one, in `/dev/shm` where there is one, removed
            at `close()`.

    Raises:
        ValueError: The file at `path` is something else.

    Example:
        >>> from hooke.rule import EASGD
        >>> center = LocalCenter()
        >>> _ = center.join(torch.zeros(2), CenterSpec((), 2))
        >>> center.exchange(torch.tensor([1.0, -1.0]), EASGD(moving_rate=0.25))
        tensor([ 0.2500, -0.2500])
        >>> center.pull()
        tensor([ 0.2500, -0.2500])
        >>> center.close()
    """

    on_host: bool = True
    """It wants vectors on the CPU."""

    is_synchronous: bool = False
    """Each worker exchanges on its own."""

    def __init__(self, path: str | Path | None = None) -> None:
        self._own_folder = None if path is not None else _private_folder(self)
        self.path = Path(path).absolute() if path is not None else self._own_folder / "center"  # type: ignore[operator]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._locks = Locks(self.path.with_name(self.path.name + ".lock"))
        self._file: SharedFile | None = None
        self._slot: int | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self._spec: CenterSpec | None = None
        self._blocks: list[tuple[int, int, int]] = []
        self._held: set[int] = set()
        self._attach()

    @property
    def ready(self) -> bool:
        """Whether the center has been set, by the first worker or from a checkpoint."""
        return self._attach() is not None

    @property
    def spec(self) -> CenterSpec:
        """What the center holds."""
        self._attached()
        assert self._spec is not None
        return self._spec

    @property
    def num_workers(self) -> int:
        """Workers that are alive: joined, their process running, and stepping within the last minute."""
        return sum(member.alive for member in self.members()) if self._attach() is not None else 0

    @property
    def counted_workers(self) -> int:
        """Workers that rates count: the live ones, and those that have finished their part of the run; at least 1."""
        file = self._attach()
        return 1 if file is None else max(1, self.num_workers + int(file.slots["finished"].sum()))

    @property
    def exchanges(self) -> int:
        """Exchanges of all workers since the center was made."""
        file = self._attach()
        return 0 if file is None else int(file.slots["exchanges"].sum())

    def members(self) -> tuple[Member, ...]:
        """The workers that have joined and not left; one that was killed is listed until another takes its place."""
        file = self._attach()
        if file is None:
            return ()
        now = time.monotonic()
        return tuple(self._member(file, int(index), now) for index in file.slots["joined"].nonzero()[0])

    @property
    def member(self) -> Member | None:
        """This worker as the center sees it; `None` where this object has not joined."""
        return None if self._slot is None else self._member(self._attached(), self._slot, time.monotonic())

    def _member(self, file: SharedFile, index: int, now: float) -> Member:
        slot = file.slots[index]
        age = now - float(slot["heartbeat"])
        alive = age < HEARTBEAT_SECONDS and self._locks.slot_is_held(index)
        counts = {name: int(slot[name] - slot[f"{name}_before"]) for name in COUNTS}
        return Member(int(slot["pid"]), alive, int(slot["step"]), **counts, heartbeat_age=age)

    def join(self, initial: Float[Tensor, " n"], spec: CenterSpec, memory: State = ()) -> Float[Tensor, " n"]:
        """Become one of the workers.

        Args:
            initial: Float32 on the CPU; the first worker's sets the center.
            spec: What is in it.
            memory: `rule.init_center(initial)`, for rules whose center keeps vectors of its own.

        Returns:
            The center, a new tensor.

        Raises:
            ValueError: The spec differs from the center's, or this object has joined already.
            Refused: `initial` is not finite.
        """
        if self._slot is not None:
            raise ValueError(
                "LocalCenter: one object serves one worker. Got a second join. Give each worker its own: "
                "LocalCenter(center.path)."
            )
        with self._locks.everything():
            if self._attach() is None:
                self._create(initial, spec, memory)
            self.spec.check_same(spec)
            self._slot = self._claim()
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
        """Let the center absorb what the rule says; the correction to subtract from x.

        Args:
            x: Float32 on the CPU.
            rule: What is exchanged.
            state: `rule.init(x)` of the start; changed in place.
            out: Where the correction is written; may be x itself. Default: a new tensor.
            start: Where x begins in the vector, if x (and so `state` and `out`) is a fragment of it. Default: x is all.

        Raises:
            Refused: x has another size or dtype, or a value that is not finite. Nothing has changed.
            ValueError: The rule keeps other vectors beside the center than this center has, or the fragment reaches
                out of the vector.
        """
        out = torch.empty_like(x) if out is None else out
        for _ in self.exchanging(x, rule, state, out, start=start):
            pass
        return out

    def exchange_(self, x: Float[Tensor, " m"], rule: Rule, state: State = (), *, start: int | None = None) -> None:
        """As `exchange`, and subtract the correction from x at once, block by block while it is in the cache."""
        for _ in self.exchanging(x, rule, state, None, start=start):
            pass

    def exchanging(
        self,
        x: Float[Tensor, " m"],
        rule: Rule,
        state: State,
        out: Float[Tensor, " m"] | None,
        *,
        start: int | None = None,
        checked: bool = False,
    ) -> Iterator[slice]:
        """As `exchange`, step by step: yields each block of x (none twice) as soon as its correction is there.

        Run it to its end: an exchange is done whole. `out=None` subtracts the correction from x at once. `checked`: x
        is known to be finite; that saves a pass over it.
        """
        file = self._joined()
        self.spec.check_rule(rule.center_memory)
        region = extent(x, start, file.vector.numel())
        slot = file.slots[self._slot]
        slot["heartbeat"] = time.monotonic()
        try:
            (check_vector if checked else check_finite)(x, region.stop - region.start)
        except Refused:
            slot["refused"] += 1
            raise
        num_workers = self.counted_workers
        border = self.spec.parameters_end
        scratch = self._scratch
        bound = rule.bind(num_workers)
        parameters = (bound.leading(self._leads(file)) if rule.follows_leader else bound, state)
        buffers = (rule.buffer_rule().bind(num_workers), ())
        for index, first, end in blocks_in(self._blocks, region):
            here, remembered = parameters if first < border else buffers
            in_x, in_center = slice(first - region.start, end - region.start), slice(first, end)
            correction = None if out is None else out[in_x]
            if not self._locks.take_block(index, 0.0 if index in self._held else LOCK_SECONDS):
                self._held.add(index)  # by a stopped process, it seems: don't wait for it again until it was free once
                slot["missed"] += 1
                if correction is not None:
                    correction.zero_()
                yield in_x
                continue
            self._held.discard(index)
            try:
                part = tuple(values[in_x] for values in remembered)
                beside = tuple(values[in_center] for values in file.memory) if file.memory else ()
                here.exchange_(x[in_x], file.vector[in_center], part, correction, scratch[: end - first], beside)
            finally:
                self._locks.give_block(index)
            yield in_x
        slot["exchanges"] += 1
        self.bytes_sent += 4 * x.numel()
        self.bytes_received += 4 * x.numel()

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The center's values, without waiting for any writer.

        Args:
            out: Where they are written. Default: a new tensor.
        """
        vector = self._attached().vector
        self.bytes_received += 4 * vector.numel() if self._slot is not None else 0
        return vector.clone() if out is None else out.copy_(vector)

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center."""
        return length(x - self._attached().vector)

    def pull_memory(self) -> dict[str, Tensor]:
        """Copies of the vectors beside the center (`Rule.center_memory`), by name; empty for most rules."""
        vectors = self._attached().memory
        return {name: vector.clone() for name, vector in zip(self.spec.memory, vectors, strict=True)}

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set the center to `values`.

        Args:
            values: The center's.
            memory: The vectors beside it, as `pull_memory` gives them. Default: they stay as they are.

        Raises:
            Refused: They have another size or dtype, or are not finite.
            ValueError: `memory` has other names than the center's.
        """
        file = self._attached()
        beside = () if memory is None else self.spec.ordered(memory)
        for vector in (values, *beside):
            check_finite(vector, file.vector.numel())
        file.vector.copy_(values)
        for vector, its_values in zip(file.memory, beside, strict=False):
            vector.copy_(its_values)

    def report(self, loss: float) -> None:
        """Say how well the worker does, by its recent training loss; one that is not finite never leads."""
        self._joined().slots[self._slot]["loss"] = loss if math.isfinite(loss) else math.inf

    def _leads(self, file: SharedFile) -> bool:
        """Whether no live worker has a lower loss; the first of equals leads."""
        now = time.monotonic()
        live = [int(i) for i in file.slots["joined"].nonzero()[0] if self._member(file, int(i), now).alive]
        leader = min(live, key=lambda index: (file.slots[index]["loss"], index))
        return leader == self._slot and math.isfinite(file.slots[leader]["loss"])

    def beat(self, step: int) -> None:
        """Say that the worker lives and has taken `step` steps."""
        slot = self._joined().slots[self._slot]
        slot["heartbeat"] = time.monotonic()
        slot["step"] = step

    def leave(self, *, finished: bool = False) -> None:
        """Be a worker no longer; the object can join again.

        Args:
            finished: Whether the worker's part of the run is done. Then rates go on counting it: otherwise the center
                would end as a copy of the worker that happens to finish last.
        """
        if self._slot is not None and self._joined().slots[self._slot]["pid"] == os.getpid():  # not in a forked child
            slot = self._joined().slots[self._slot]
            slot["joined"], slot["finished"] = False, finished
            self._locks.release_slot(self._slot)
            self._slot = None

    def close(self) -> None:
        """Leave, and give back the memory. A center without a path of the user's is removed."""
        self.leave()
        self._file = None
        self._locks.close()
        if self._own_folder is not None:
            self.unlink()

    def unlink(self) -> None:
        """Remove the files; processes that hold the center keep it until they close it."""
        for path in (self.path, self._locks.path):
            path.unlink(missing_ok=True)
        if self._own_folder is not None and self._own_folder.exists():
            self._own_folder.rmdir()

    def save(self, path: str | Path) -> None:
        """Write a checkpoint: one safetensors file with each tensor by its name, beside it, synced, renamed.

        The vectors that the rule keeps beside the center are in it as `center_memory/NAME`. Without averaged buffers,
        `model.load_state_dict(safetensors.torch.load_file(path), strict=False)` reads it.

        Raises:
            ValueError: The center has not been set yet.
        """
        vector = self.pull()
        named = {entry.name: entry.view(vector) for entry in self.spec.entries} or {"center": vector}
        named |= {_MEMORY + name: values for name, values in self.pull_memory().items()}
        save_tensors(path, named, {"spec": self.spec.to_json(), "exchanges": str(self.exchanges)})

    def load(self, path: str | Path) -> None:
        """Set an empty center from a checkpoint that `save` wrote.

        Raises:
            ValueError: The file can't be read, is not a center's, or the center has been set already.
        """
        tensors, metadata = load_tensors(path)
        if "spec" not in metadata:
            raise ValueError(f"checkpoint: {path} must come from a center. Got a file without its spec. Use another.")
        try:
            spec = CenterSpec.from_json(metadata["spec"])
            vector = torch.zeros(spec.numel) if spec.entries else tensors["center"]
            for entry in spec.entries:
                entry.view(vector).copy_(tensors[entry.name])
            memory = tuple(tensors[_MEMORY + name] for name in spec.memory)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"checkpoint: {path} must come from a center. Got a file whose {error} is missing or damaged. Use "
                "another checkpoint."
            ) from None
        with self._locks.everything():
            if self._attach() is not None:
                raise ValueError("LocalCenter: load needs an empty center. Got one that is set. Use put(values).")
            self._create(vector, spec, memory)

    def _create(self, initial: Tensor, spec: CenterSpec, memory: State) -> None:
        spec.check_memory(memory)
        for vector in (initial, *memory):
            check_finite(vector, spec.numel)
        SharedFile.create(self.path, (initial, *memory), spec.to_json())
        self._attach()

    def _attach(self) -> SharedFile | None:
        """The mapped file, as soon as somebody has made it."""
        if self._file is None and self.path.exists():
            self._file = SharedFile(self.path)
            self._spec = CenterSpec.from_json(self._file.spec)
            self._blocks = blocks_of(self._spec)
            self._scratch = torch.empty(min(BLOCK, self._spec.numel))
        return self._file

    def _attached(self) -> SharedFile:
        file = self._attach()
        if file is None:
            raise ValueError(f"LocalCenter: {self.path} must have been set. Got an empty center. Let a worker join.")
        return file

    def _joined(self) -> SharedFile:
        if self._slot is None:
            raise ValueError("LocalCenter: only a worker may do this. Got an object that only looks on. Call join.")
        return self._attached()

    def _claim(self) -> int:
        """Take a place that nobody lives in: best one whose worker died, then one whose worker has finished.

        For that worker is back or replaced, and must not be counted twice.
        """
        slots = self._attached().slots
        if not self.num_workers:
            slots["finished"] = False  # all have: what begins now is another run
        joined, finished = slots["joined"].copy(), slots["finished"].copy()
        for index in sorted(range(MAX_WORKERS), key=lambda index: (not joined[index], not finished[index])):
            if self._locks.claim_slot(index):
                slot = slots[index]
                slot["pid"], slot["heartbeat"], slot["step"] = os.getpid(), time.monotonic(), 0
                slot["joined"], slot["finished"], slot["loss"] = True, False, math.inf
                for name in COUNTS:
                    slot[f"{name}_before"] = slot[name]
                return index
        raise ValueError(f"LocalCenter: at most {MAX_WORKERS} workers share one machine's center. Got one more.")


def blocks_in(blocks: Sequence[tuple[int, int, int]], region: slice) -> Iterator[tuple[int, int, int]]:
    """What of each block (number, start, stop) lies in `region`; a block's lock is whole all the same."""
    for index, start, stop in blocks:
        first, end = max(start, region.start), min(stop, region.stop)
        if first < end:
            yield index, first, end


def blocks_of(spec: CenterSpec) -> list[tuple[int, int, int]]:
    """Blocks (number, start, stop), none across the border between parameters and buffers, from the end backward.

    Backward, because the check that ran forward just before has left the vector's end in the cache.
    """
    starts = [*range(0, spec.parameters_end, BLOCK), *range(spec.parameters_end, spec.numel, BLOCK)]
    stops = [*starts[1:], spec.numel]
    return [(index, starts[index], stops[index]) for index in reversed(range(len(starts)))]


def _private_folder(owner: object) -> Path:
    """A folder in memory that goes with its owner, or with the process that made it; a forked child leaves it alone."""
    folder = tempfile.mkdtemp(prefix="hooke-", dir=_memory_folder())
    maker = os.getpid()
    weakref.finalize(owner, lambda: os.getpid() == maker and shutil.rmtree(folder, ignore_errors=True))
    return Path(folder)


def _memory_folder() -> str | None:
    """Where files live in memory, on systems that have such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
