"""A worker that is several ranks of `torch.distributed`: rank 0 speaks with the center, the others follow it."""

from __future__ import annotations

import datetime
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from hooke.center import Center
from hooke.prepared import prepared_center
from hooke.ranks import Ranks
from hooke.rule import Rule, State
from hooke.run import Run
from hooke.sentence import first_line
from hooke.spec import CenterSpec, Refused

_VERBS = ("join", "exchange", "a step beside an exchange", "the end of an exchange", "pull", "pull_memory", "put")

_FAILURES = {
    kind.__name__: kind
    for kind in (Refused, ValueError, ConnectionError, TimeoutError, PermissionError, OSError, RuntimeError)
}

Made = TypeVar("Made")


class Group(Ranks):
    """The ranks of one worker. Nothing here runs in a thread, and no collective is one of the user's own groups.

    Args:
        group: The user's group.
        timeout: Seconds that ranks wait for one another.

    Attributes:
        rank: This process's.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: float) -> None:
        members = dist.get_process_group_ranks(group or dist.distributed_c10d._get_default_group())
        self.size, self.rank = len(members), dist.get_rank(group)
        self._words = _own_group(members, self.rank, timeout)
        self._group, self._is_nccl = group, "nccl" in dist.get_backend_config(group)
        self._timeout = timeout
        self.speaks = self.rank == 0
        self.own: Center | None = None
        self.numbers = [0, 1, 0]
        self.parameters_end = 0
        self.loss = math.nan

    @property
    def center(self) -> Center:
        """Whom rank 0 exchanges with."""
        if self.own is None:
            raise ValueError(
                f"GroupedCenter: only rank 0 speaks with the center. Got rank {self.rank}. Call GroupedCenter's own "
                "methods, on every rank."
            )
        return self.own

    def begin(self, x: Tensor, start: int | None) -> None:
        """Every rank is about to exchange x, whose parameters must be equal; averaged buffers are rank 0's."""
        border = self.parameters_end - (start or 0)
        rows = self.meet("exchange", x.numel(), -1 if start is None else start, _fingerprint(x[: max(0, border)]))
        prints, losses = [row[3] for row in rows], [_number(row[4]) for row in rows]
        differing = [rank for rank, one in enumerate(prints) if one != prints[0]]
        if differing:
            raise Refused(
                "GroupedCenter: ranks of one worker must have equal parameters. Got others than rank 0's on rank(s) "
                f"{', '.join(map(str, differing))}. Train a DistributedDataParallel of the model."
            )
        known = [loss for loss in losses if not math.isnan(loss)]
        if self.speaks and known:
            self.center.report(math.fsum(known) / len(known))
        self.loss = math.nan

    def agree(self, arrived: bool, *, finishing: bool = False) -> bool:
        """What rank 0 says."""
        verb = "the end of an exchange" if finishing else "a step beside an exchange"
        return bool(self.meet(verb, int(arrived))[0][1])

    def meet(self, verb: str, *about: int) -> list[list[int]]:
        """Make sure that every rank is at the same point; what each says about it.

        Raises:
            RuntimeError: They are not, or one does not come.
        """
        numbers = [_VERBS.index(verb), *about, *[0] * (3 - len(about)), _bits(self.loss)]
        mine = torch.tensor(numbers, dtype=torch.int64)
        everywhere = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            self._words.allgather([everywhere], [mine]).wait()
        except RuntimeError as error:
            raise RuntimeError(
                f"GroupedCenter: every rank of the worker must come to {verb} within {self._timeout:g} seconds. Got: "
                f"{first_line(error, 200)}. Look at the rank that ended or waits; start the worker's ranks again."
            ) from error
        rows = [one.tolist() for one in everywhere]
        points = [_VERBS[row[0]] for row in rows]
        if len(set(points)) > 1 or (verb == "exchange" and len({tuple(row[1:3]) for row in rows}) > 1):
            said = ", ".join(f"{point} on rank {rank}" for rank, point in enumerate(points))
            raise RuntimeError(
                f"GroupedCenter: every rank of a worker must do the same in the same order. Got {said}. Call "
                "center_weights(), exchange(), state_dict() and what pulls or puts on every rank, not on rank 0 alone."
            )
        return rows

    def tried(self, action: Callable[[Center], Made]) -> tuple[Made | None, Exception | None]:
        """On rank 0, what the action gave or how it failed."""
        if not self.speaks:
            return None, None
        try:
            return action(self.center), None
        except Exception as failure:
            return None, failure

    def share(self, failure: Exception | None, vectors: Sequence[Tensor] = ()) -> None:
        """Give every rank rank 0's failure, which is raised everywhere in the same words, or its vectors."""
        said = json.loads(self.tell(self._said(failure) if self.speaks else ""))
        self.numbers = said["numbers"]
        if failure is not None:
            raise failure
        if said["kind"]:
            raise _FAILURES[said["kind"]](said["sentence"])
        for vector in vectors:
            self._broadcast(vector)

    def _said(self, failure: Exception | None) -> str:
        kinds = [kind.__name__ for kind in type(failure).__mro__ if kind.__name__ in _FAILURES]
        kind = "" if failure is None else kinds[0] if kinds else "RuntimeError"
        center = self.own
        numbers = self.numbers if center is None else [center.num_workers, center.counted_workers, center.exchanges]
        return json.dumps({"kind": kind, "sentence": str(failure), "numbers": numbers})

    def tell(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        words = torch.frombuffer(bytearray((text or " ").encode()), dtype=torch.uint8)
        size = torch.tensor([words.numel()])
        self._words.broadcast(size, 0).wait()
        told = words if self.speaks else torch.zeros(int(size), dtype=torch.uint8)
        self._words.broadcast(told, 0).wait()
        return bytes(told.tolist()).decode()

    def _broadcast(self, vector: Tensor) -> None:
        """By nccl between devices, in the user's group, since all ranks have just met; else by gloo."""
        if not vector.numel():
            return
        if not self._is_nccl:
            self._words.broadcast(vector, 0).wait()
            return
        there = vector.to(torch.device("cuda", torch.cuda.current_device()))  # itself, if it is there
        dist.broadcast(there, group_src=0, group=self._group)
        if there is not vector and not self.speaks:
            vector.copy_(there)


def _own_group(members: Sequence[int], rank: int, timeout: float) -> Any:
    """Gloo among these ranks alone: no collective of the user's can meet one of ours, whoever comes out of step.

    `torch.distributed.new_group` would need every rank of the world, or names that are new on all of them.
    """
    store = dist.distributed_c10d._get_default_store()
    name = f"hooke/{'-'.join(map(str, members))}"
    count = store.add(f"{name}/{rank}", 1)
    wait = datetime.timedelta(seconds=timeout)
    own = dist.PrefixStore(f"{name}/{count}", store)  # pyright: ignore[reportPrivateImportUsage]
    return dist.ProcessGroupGloo(own, rank, len(members), wait)


class GroupedCenter:
    """The center of a worker that is itself several ranks under `DistributedDataParallel`.

    Rank 0 of the group exchanges with the real center; all ranks get the correction, what the worker remembers, or
    the failure, so that they stay equal to the bit. The ranks have process groups of their own for that, which never
    mix with the user's, and with `overlap=True` all of them subtract the correction after the same step: rank 0 says at
    each step whether it has arrived. Whatever asks the center is called on every rank, in the same order: `exchange`,
    `pull` and so `worker.center_weights()`, `put`, and with `overlap=True` `worker.state_dict()`.

    Parameters must be equal on all ranks: where they are not, the exchange is refused on all of them. Averaged buffers
    are rank 0's, as under `DistributedDataParallel`. Rank 0 alone writes rows and counts bytes.

    Args:
        center: A function that makes the real center, which rank 0 alone calls, e.g.
            `lambda: hooke.connect(url, codec="int4")`. Or the real center itself on rank 0, anything on the others.
            Default: the one that `hooke run` prepared or that HOOKE_CENTER names.
        group: The worker's ranks; default: all. `torch.distributed.init_process_group` comes first.
        timeout: Seconds that the ranks wait for one another, longer than the center's own time-out.

    Raises:
        RuntimeError: torch.distributed has not been initialized.
        ValueError: Rank 0 has no center, or one that is not for one worker alone.
        OSError: The center can't be reached; on every rank, as whatever else the function raises.

    Example:
        Under `torchrun --nproc-per-node 8 train.py` on each machine, every machine one worker:

        ```python
        torch.distributed.init_process_group("nccl")
        model = torch.nn.parallel.DistributedDataParallel(model)
        with hooke.Worker(model, optimizer, hooke.EASGD(), center=hooke.GroupedCenter(), overlap=True):
            ...
        ```
    """

    on_host: bool = True
    """It wants vectors on the CPU, as the real center does; among ranks they travel as the group's backend likes."""

    is_synchronous: bool = False
    """Each worker exchanges on its own."""

    def __init__(
        self,
        center: Center | Callable[[], Center] | None = None,
        group: dist.ProcessGroup | None = None,
        *,
        timeout: float = 600.0,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "GroupedCenter: torch.distributed must be initialized. Got a process without a group. Call "
                'torch.distributed.init_process_group("nccl" or "gloo") first, and start the script with torchrun.'
            )
        self.ranks = Group(group, timeout)
        self._numel: int | None = None
        self._memory: tuple[str, ...] = ()
        failure: Exception | None = None
        if self.ranks.speaks:
            try:
                self.ranks.own = _made(center)
            except Exception as error:
                failure = error
        self.ranks.share(failure)

    @property
    def num_workers(self) -> int:
        """Live workers, as the center said at the last exchange; several ranks are one."""
        return self.ranks.numbers[0]

    @property
    def counted_workers(self) -> int:
        """Workers that rates count, as the center said at the last exchange; the same on every rank."""
        return max(1, self.ranks.numbers[1])

    @property
    def exchanges(self) -> int:
        """Exchanges of all workers, as the center said at the last one."""
        return self.ranks.numbers[2]

    @property
    def bytes_sent(self) -> int:
        """Bytes that went to the center; 0 but on rank 0."""
        return self.ranks.own.bytes_sent if self.ranks.own is not None else 0

    @property
    def bytes_received(self) -> int:
        """Bytes that came from the center; 0 but on rank 0."""
        return self.ranks.own.bytes_received if self.ranks.own is not None else 0

    def join(self, initial: Float[Tensor, " n"], spec: CenterSpec, memory: State = ()) -> Float[Tensor, " n"]:
        """Become one worker: rank 0 joins, and every rank gets the center.

        Raises:
            ValueError: Some rank has another model, rule or schedule; or the center's differs.
            Refused: Rank 0's values are not finite.
            OSError: The center can't be reached.
        """
        self._check_same(spec)
        values, failure = self.ranks.tried(lambda center: center.join(initial, spec, memory))
        values = torch.empty(spec.numel) if values is None else values
        self.ranks.share(failure, (values,))
        self._numel, self._memory, self.ranks.parameters_end = spec.numel, spec.memory, spec.parameters_end
        return values

    def exchange(
        self,
        x: Float[Tensor, " m"],
        rule: Rule,
        state: State = (),
        out: Float[Tensor, " m"] | None = None,
        *,
        start: int | None = None,
    ) -> Float[Tensor, " m"]:
        """Rank 0 exchanges; every rank gets the correction, and in `state` what the worker remembers.

        Raises:
            Refused: The center does not take rank 0's x, or the ranks' parameters differ; on every rank.
            OSError: The center could not be reached; on every rank.
        """
        out = torch.empty_like(x) if out is None else out
        place = {} if start is None else {"start": start}
        self._joined()
        self.ranks.begin(x, start)
        _, failure = self.ranks.tried(lambda center: center.exchange(x, rule, state, out, **place))
        self.ranks.share(failure, (out, *state))
        return out

    def exchange_(self, x: Float[Tensor, " m"], rule: Rule, state: State = (), *, start: int | None = None) -> None:
        """As `exchange`, and subtract the correction from x."""
        x.sub_(self.exchange(x, rule, state, start=start))

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The center's values, on every rank."""
        out = torch.empty(self._joined()) if out is None else out
        self.ranks.meet("pull")
        _, failure = self.ranks.tried(lambda center: center.pull(out))
        self.ranks.share(failure, (out,))
        return out

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center, on every rank."""
        return float(torch.linalg.vector_norm((x - self.pull()).double()))

    def pull_memory(self) -> dict[str, Tensor]:
        """Copies of the vectors beside the center (`Rule.center_memory`), by name, on every rank."""
        self.ranks.meet("pull_memory")
        made, failure = self.ranks.tried(lambda center: center.pull_memory())
        vectors = made or {name: torch.empty(self._joined()) for name in self._memory}
        self.ranks.share(failure, [vectors[name] for name in self._memory])
        return vectors

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set the center to rank 0's `values`, and the vectors beside it to its `memory`; called on every rank."""
        self.ranks.meet("put")
        _, failure = self.ranks.tried(lambda center: center.put(values, memory))
        self.ranks.share(failure)

    def beat(self, step: int) -> None:
        """Rank 0 says that the worker lives."""
        if self.ranks.own is not None:
            self.ranks.own.beat(step)

    def report(self, loss: float) -> None:
        """This rank's recent training loss; with the next exchange rank 0 reports the mean of all ranks'."""
        self.ranks.loss = loss

    def leave(self, *, finished: bool = False) -> None:
        """Rank 0 leaves the center; it waits for no other rank."""
        if self.ranks.own is not None and self._numel is not None:
            self.ranks.own.leave(finished=finished)
        self._numel = None

    def close(self) -> None:
        """Leave; rank 0 closes its center too."""
        self.leave()
        close = getattr(self.ranks.own, "close", None)
        if close is not None:
            close()

    def _check_same(self, spec: CenterSpec) -> None:
        """Every rank raises where one differs."""
        self.ranks.meet("join")
        of_rank_0, difference = CenterSpec.from_json(self.ranks.tell(spec.to_json())), None
        try:
            of_rank_0.check_same(spec)
            of_rank_0.check_schedule(spec)
        except ValueError as error:
            difference = error
        differing = sum(row[1] for row in self.ranks.meet("join", int(difference is not None)))
        if difference is not None:
            raise difference
        if differing:
            raise ValueError(
                f"GroupedCenter: every rank must bring rank 0's model, rule and periods. Got others on {differing} "
                "rank(s). Build the same Worker on every rank."
            )

    def _joined(self) -> int:
        if self._numel is None:
            raise ValueError("GroupedCenter: join comes first. Got an object without a center. Use a hooke.Worker.")
        return self._numel


def _made(center: Center | Callable[[], Center] | None) -> Center:
    made = prepared_center(Run.current()) if center is None else center() if callable(center) else center
    if made.is_synchronous or not made.on_host:
        raise ValueError(
            "GroupedCenter: rank 0's center must be one where each worker exchanges on its own. Got "
            f"{type(made).__name__}. Use hooke.connect(url) or hooke.LocalCenter(path)."
        )
    return made


def _fingerprint(x: Tensor) -> int:
    """Differs where some bit of x does: the sum of its words, eight bytes at once."""
    if x.dtype != torch.float32:
        return x.numel()  # the center refuses it
    x = x.contiguous()
    x = x.clone() if x.storage_offset() % 2 else x
    even = x.numel() // 2 * 2
    last = int(x[even:].view(torch.int32).sum())
    return (int(x[:even].view(torch.int64).sum()) + 3 * last) % 2**62


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _number(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]
