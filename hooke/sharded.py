"""One center whose vector is split over several, so that its bandwidth grows with their number."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.center import Center, blocks_of
from hooke.rule import Rule, State
from hooke.spec import CenterSpec, Refused, check_finite, extent

SET_SECONDS = 60.0
"""How long a worker waits for the one that sets the centers to be through with the last of them."""

Made = TypeVar("Made")


@dataclass
class Shard:
    """One of the centers.

    Attributes:
        center: Where it lives.
        name: What sentences call it: its place in the list, and its address if it has one.
        region: Which elements of the vector it holds.
        failing: Whether its last exchange failed.
    """

    center: Center
    name: str
    region: slice = field(default_factory=lambda: slice(0, 0))
    failing: bool = False


class ShardedCenter:
    """One center over several servers: each holds a contiguous part of the vector, in whole blocks of 1 MiB.

    All parts are exchanged at the same time, each over a link of its own. Every rule acts element by element, so the
    parts together are one center; but `hooke.LSGD`, whose parts might follow different leaders, is refused. Where a
    part fails, its correction is zero and the others are done: a warning says so once, `missed` counts, and what the
    worker has gone in that part comes with the next exchange. Where all fail, the exchange does.

    `hooke.connect` with several addresses makes one.

    Args:
        centers: One for each part, in the same order on every worker. One object of each serves one worker.

    Attributes:
        missed: Parts that exchanges had to leave out.

    Raises:
        ValueError: No center at all, or one where all workers exchange at once.

    Example:
        >>> from hooke.center import BLOCK, LocalCenter
        >>> from hooke.rule import EASGD
        >>> parts = [LocalCenter(), LocalCenter()]
        >>> center = ShardedCenter(parts)
        >>> _ = center.join(torch.zeros(3 * BLOCK), CenterSpec((), 3 * BLOCK))
        >>> center.exchange_(torch.ones(3 * BLOCK), EASGD(moving_rate=0.25))
        >>> [part.pull().numel() // BLOCK for part in parts], center.pull().mean().item()
        ([2, 1], 0.25)
        >>> center.close()
    """

    on_host: bool = True
    """It wants vectors on the CPU."""

    is_synchronous: bool = False
    """Each worker exchanges on its own."""

    def __init__(self, centers: Sequence[Center]) -> None:
        if not centers:
            raise ValueError("ShardedCenter: needs a center for each part. Got none. Pass e.g. two hooke.connect(url).")
        for center in centers:
            if center.is_synchronous or not center.on_host:
                raise ValueError(
                    "ShardedCenter: parts must be centers where each worker exchanges on its own. Got "
                    f"{type(center).__name__}. Use hooke.connect(url) or hooke.LocalCenter(path)."
                )
        self._shards = [Shard(center, _name(index, center)) for index, center in enumerate(centers)]
        self._threads = ThreadPoolExecutor(len(centers), "hooke-shard")
        self._spec: CenterSpec | None = None
        self.missed = 0

    # What is known of the centers -------------------------------------------------------------------------------------

    @property
    def centers(self) -> tuple[Center, ...]:
        """The centers of the parts."""
        return tuple(shard.center for shard in self._shards)

    @property
    def name(self) -> str | None:
        """What the centers call this worker; `None` where they are at hand."""
        return getattr(self._shards[0].center, "name", None)

    @property
    def num_workers(self) -> int:
        """Live workers, by the part that knows of most."""
        return max(center.num_workers for center in self.centers)

    @property
    def counted_workers(self) -> int:
        """Workers that rates count, by the part that counts most."""
        return max(center.counted_workers for center in self.centers)

    @property
    def exchanges(self) -> int:
        """Exchanges of all workers, by the part that had most."""
        return max(center.exchanges for center in self.centers)

    @property
    def bytes_sent(self) -> int:
        """Bytes that went to all parts."""
        return sum(center.bytes_sent for center in self.centers)

    @property
    def bytes_received(self) -> int:
        """Bytes that came from all parts."""
        return sum(center.bytes_received for center in self.centers)

    # Coming and going -------------------------------------------------------------------------------------------------

    def join(self, initial: Float[Tensor, " n"], spec: CenterSpec, memory: State = ()) -> Float[Tensor, " n"]:
        """Become one of the workers, at every part; the one that sets the first part sets all.

        Raises:
            ValueError: The vector has fewer blocks than there are parts, or a part's center holds something else: the
                sentence names it and the first difference.
            Refused: `initial` is not finite.
            OSError: A part can't be reached.
        """
        if self._spec is not None:
            raise ValueError(
                "ShardedCenter: one object serves one worker. Got a second join. Give each worker its own."
            )
        check_finite(initial, spec.numel)
        for shard, region in zip(self._shards, _cuts(spec, len(self._shards)), strict=True):
            shard.region = region
        values, (first, *others) = torch.empty(spec.numel), self._shards

        def one(shard: Shard) -> None:
            here, part = shard.region, f"part {self._shards.index(shard) + 1} of {len(self._shards)}"
            beside = tuple(vector[here] for vector in memory)
            values[here] = shard.center.join(initial[here], spec.cut(here.start, here.stop, part), beside)

        try:
            self._everywhere(one, [first])
            if not torch.equal(values[first.region], initial[first.region]):
                self._everywhere(_wait_until_set, others)
            self._everywhere(one, others)
        except BaseException:
            for shard in self._shards:
                with suppress(OSError, ValueError):
                    shard.center.leave()
            raise
        self._spec = spec
        return values

    def beat(self, step: int) -> None:
        """Say to all parts that the worker lives."""
        for center in self.centers:
            center.beat(step)

    def report(self, loss: float) -> None:
        """Say to all parts how well the worker does."""
        for center in self.centers:
            center.report(loss)

    def leave(self, *, finished: bool = False) -> None:
        """Be a worker no longer, at any part."""
        for center in self.centers:
            center.leave(finished=finished)
        self._spec = None

    def close(self) -> None:
        """Leave, and close the centers of all parts."""
        self.leave()
        self._threads.shutdown()
        for center in self.centers:
            if (close := getattr(center, "close", None)) is not None:
                close()

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
        """Exchange with all parts at once, or with those that the fragment from `start` on lies in.

        Raises:
            Refused: x has another size, or is not finite; nothing has changed at any part.
            ValueError: A rule that follows a leader, or that a part's center was not made for.
            OSError: No part could be reached. If only some failed, their correction is 0, and `missed` counts them.
        """
        out = torch.empty_like(x) if out is None else out

        def one(center: Center, here: slice, place: dict[str, int]) -> None:
            center.exchange(x[here], rule, tuple(s[here] for s in state), out[here], **place)

        for here in self._exchanged(x, rule, start, one):
            out[here].zero_()
        return out

    def exchange_(self, x: Float[Tensor, " m"], rule: Rule, state: State = (), *, start: int | None = None) -> None:
        """As `exchange`, and subtract the correction from x."""

        def one(center: Center, here: slice, place: dict[str, int]) -> None:
            center.exchange_(x[here], rule, tuple(s[here] for s in state), **place)

        self._exchanged(x, rule, start, one)

    def _exchanged(
        self, x: Tensor, rule: Rule, start: int | None, one: Callable[[Center, slice, dict[str, int]], None]
    ) -> list[slice]:
        """Where in x the exchange failed."""
        if rule.follows_leader:
            raise ValueError(
                f"ShardedCenter: needs a rule without a leader. Got {rule!r}, whose parts might follow different ones. "
                "Use one center, or hooke.EASGD()."
            )
        region = extent(x, start, self._joined().numel)
        check_finite(x, region.stop - region.start)
        under_way: list[tuple[Shard, slice, Future[None]]] = []
        for shard in self._shards:
            first, end = max(region.start, shard.region.start), min(region.stop, shard.region.stop)
            if first < end:
                whole = slice(first, end) == shard.region
                place = {} if whole else {"start": first - shard.region.start}
                here = slice(first - region.start, end - region.start)
                under_way.append((shard, here, self._threads.submit(_without_grad, one, shard.center, here, place)))
        return self._missed([(shard, here, future.exception()) for shard, here, future in under_way])

    def _missed(self, ended: list[tuple[Shard, slice, BaseException | None]]) -> list[slice]:
        """Where it failed, if something succeeded; what must not be passed over is raised."""
        failed = [(shard, here, failure) for shard, here, failure in ended if failure is not None]
        for shard, _, failure in failed:
            if not isinstance(failure, Refused | OSError) or len(failed) == len(ended):
                raise _named(shard, failure)
        self.missed += len(failed)
        fresh = [(shard, failure) for shard, _, failure in failed if not shard.failing]
        for shard, _, failure in ended:
            shard.failing = failure is not None
        for shard, failure in fresh:
            warnings.warn(
                f"ShardedCenter: {shard.name} is left out of exchanges until it answers, training goes on. {failure}",
                RuntimeWarning,
                stacklevel=4,
            )
        return [here for _, here, _ in failed]

    # The center's values ----------------------------------------------------------------------------------------------

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The values of all parts.

        Raises:
            OSError: A part can't be reached.
        """
        out = torch.empty(self._joined().numel) if out is None else out
        made = out
        self._everywhere(lambda shard: shard.center.pull(made[shard.region]))
        return out

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center."""
        return math.hypot(*self._everywhere(lambda shard: shard.center.distance(x[shard.region])))

    def pull_memory(self) -> dict[str, Tensor]:
        """Copies of the vectors beside the center (`Rule.center_memory`), by name."""
        parts = self._everywhere(lambda shard: shard.center.pull_memory())
        return {name: torch.cat([part[name] for part in parts]) for name in self._joined().memory}

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set the parts to `values`, and the vectors beside them to `memory`.

        Raises:
            Refused: They have another size or are not finite.
            ValueError: `memory` has other names than the center's.
        """
        spec = self._joined()
        for vector in (values, *(() if memory is None else spec.ordered(memory))):
            check_finite(vector, spec.numel)

        def one(shard: Shard) -> None:
            here = shard.region
            beside = None if memory is None else {name: vector[here] for name, vector in memory.items()}
            shard.center.put(values[here], beside)

        self._everywhere(one)

    def _everywhere(self, action: Callable[[Shard], Made], shards: Sequence[Shard] | None = None) -> list[Made]:
        """What the action gives at each part, all at once; the first failure, once all have ended."""
        if shards is None:
            self._joined()
        under_way = [
            (one, self._threads.submit(_without_grad, action, one))
            for one in (self._shards if shards is None else shards)
        ]
        failures = [(shard, future.exception()) for shard, future in under_way]
        for shard, failure in failures:
            if failure is not None:
                raise _named(shard, failure)
        return [future.result() for _, future in under_way]

    def _joined(self) -> CenterSpec:
        if self._spec is None:
            raise ValueError("ShardedCenter: join comes first. Got an object without a worker. Use a hooke.Worker.")
        return self._spec


def _cuts(spec: CenterSpec, count: int) -> list[slice]:
    """Contiguous parts of whole blocks, as equal in length as blocks allow, none empty.

    Raises:
        ValueError: There are fewer blocks than parts.
    """
    starts = sorted(start for _, start, _ in blocks_of(spec))
    if len(starts) < count:
        raise ValueError(
            f"ShardedCenter: needs at least one block of the vector for each center. Got {len(starts)} blocks and "
            f"{count} centers. Use at most {max(1, len(starts))}."
        )
    first = [starts[-(-len(starts) * part // count)] for part in range(count)]
    return [slice(start, stop) for start, stop in zip(first, [*first[1:], spec.numel], strict=True)]


def _wait_until_set(shard: Shard) -> None:
    """Another worker has set the parts before, and sets this one: ours must not come in between.

    Raises:
        OSError: It does not.
    """
    deadline = time.monotonic() + SET_SECONDS
    while not _is_ready(shard.center):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"ShardedCenter: {shard.name} must be set by the worker that set the parts before it. Got an empty "
                f"center for {SET_SECONDS:g} seconds. Start all centers from checkpoints of one time, or all empty."
            )
        time.sleep(0.05)


def _is_ready(center: Any) -> bool:
    """Whether it has been set; a center elsewhere is asked."""
    status = getattr(center, "status", None)
    return bool(status()["ready"]) if status is not None else bool(getattr(center, "ready", True))


def _name(index: int, center: Center) -> str:
    url = getattr(center, "url", None)
    return f"center {index + 1}" + (f" ({url})" if url else "")


def _named(shard: Shard, failure: BaseException) -> BaseException:
    """The failure, in a sentence that says whose it is."""
    if isinstance(failure, OSError | ValueError):
        kinds = (Refused, ValueError, PermissionError, TimeoutError, ConnectionError, OSError)
        kind = next(kind for kind in kinds if isinstance(failure, kind))
        return kind(f"ShardedCenter: {shard.name}: {failure}")
    return failure


def _without_grad(action: Callable[..., Made], *args: Any) -> Made:
    """Threads begin with gradients on, whatever the one that called them has."""
    with torch.no_grad():
        return action(*args)
