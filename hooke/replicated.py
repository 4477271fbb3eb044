"""A center without a server: one copy per rank of `torch.distributed`, kept equal by one all-reduce an exchange."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from hooke.rule import Rule, State
from hooke.spec import CenterSpec, Refused, check_finite, extent, length


class ReplicatedCenter:
    """The synchronous form: all ranks exchange at once, `c' = c + sum of deltas` (arXiv 1412.6651, eq. 6).

    Every rank must run the same number of steps, as under DDP. A rank whose values are not finite contributes nothing:
    the others go on, and that rank gets a `Refused`.

    Args:
        group: The process group; default: all ranks. `torch.distributed.init_process_group` comes first.

    Raises:
        RuntimeError: torch.distributed has not been initialized.

    Example:
        Under `torchrun --nproc-per-node 4 train.py`:

        ```python
        torch.distributed.init_process_group("gloo")
        with hooke.Worker(model, optimizer, hooke.LocalSGD(), center=hooke.ReplicatedCenter()):
            ...
        ```
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "ReplicatedCenter: torch.distributed must be initialized. Got a process without a group. Call "
                'torch.distributed.init_process_group("gloo") first, and start the script with torchrun.'
            )
        self._group = group
        self._vector: Tensor | None = None
        self._spec: CenterSpec | None = None
        self._memory: State = ()
        self._loss = math.inf
        self.exchanges = 0
        self.bytes_sent = 0
        self.bytes_received = 0

    is_synchronous: bool = True
    """All ranks exchange at once."""

    @property
    def on_host(self) -> bool:
        """Whether it wants vectors on the CPU: nccl works where the parameters are, gloo on the host."""
        return dist.get_backend(self._group) != "nccl"

    @property
    def num_workers(self) -> int:
        """Ranks in the group."""
        return dist.get_world_size(self._group)

    @property
    def counted_workers(self) -> int:
        """Ranks in the group: all of them exchange each time."""
        return self.num_workers

    def join(self, initial: Float[Tensor, " n"], spec: CenterSpec, memory: State = ()) -> Float[Tensor, " n"]:
        """Take the first rank's values as the center, on every rank.

        Raises:
            ValueError: Some rank has another model, rule or schedule; the sentence names the first difference.
            Refused: The first rank's values are not finite.
        """
        self._check_same_everywhere(spec, initial.device)
        spec.check_memory(memory)
        center, *beside = (vector.clone() for vector in (initial, *memory))
        for vector in (center, *beside):
            dist.broadcast(vector, group_src=0, group=self._group)
            check_finite(vector, spec.numel, center.device.type)
        self._vector, self._spec, self._memory = center, spec, tuple(beside)
        return center.clone()

    def exchange(
        self,
        x: Float[Tensor, " m"],
        rule: Rule,
        state: State = (),
        out: Float[Tensor, " m"] | None = None,
        *,
        start: int | None = None,
    ) -> Float[Tensor, " m"]:
        """All ranks' deltas enter the center at once; the correction to subtract from x.

        With `start`, x, `state` and `out` are a fragment of the vector that begins there, the same on every rank.

        Raises:
            Refused: This rank's x has another size or dtype, or is not finite; the center absorbed the other ranks'
                deltas only.
            ValueError: The rule keeps other vectors beside the center than this center has, or the fragment reaches
                out of the vector.
        """
        out = torch.empty_like(x) if out is None else out
        center, spec = self._joined()
        spec.check_rule(rule.center_memory)
        region = extent(x, start, spec.numel)
        center, memory = center[region], tuple(vector[region] for vector in self._memory)
        border = min(max(0, spec.parameters_end - region.start), center.numel())
        own, refusal = torch.zeros_like(center), _refusal(x, center)
        bound, buffer_rule = rule.bind(self.num_workers), rule.buffer_rule().bind(self.num_workers)
        if rule.follows_leader:
            bound = bound.leading(self._leads(math.inf if refusal else self._loss, center.device))
        parts = [(slice(0, border), bound, state), (slice(border, None), buffer_rule, ())]
        if refusal is None:
            for part, here, remembered in parts:
                own[part] = here.delta(x[part], center[part], tuple(s[part] for s in remembered))
        deltas = own.clone()
        dist.all_reduce(deltas, group=self._group)  # also by a rank that is refused: the others must not wait for it
        for part, here, _ in parts:
            here.absorb_(center[part], deltas[part], tuple(vector[part] for vector in memory))
        self.exchanges += self.num_workers
        self.bytes_sent += 4 * deltas.numel()
        self.bytes_received += 4 * deltas.numel()
        if refusal is not None:
            raise refusal
        for part, here, remembered in parts:
            remembered = tuple(s[part] for s in remembered)
            correction = here.settle(x[part], own[part], center[part], remembered)
            now = here.remembered(x[part] - correction, center[part])
            for old, new in zip(remembered, now, strict=True):
                old.copy_(new)
            out[part] = correction
        return out

    def exchange_(self, x: Float[Tensor, " m"], rule: Rule, state: State = (), *, start: int | None = None) -> None:
        """As `exchange`, and subtract the correction from x."""
        x.sub_(self.exchange(x, rule, state, start=start))

    def pull(self, out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """This rank's copy of the center; the same on every rank, to the bit."""
        center, _ = self._joined()
        return center.clone() if out is None else out.copy_(center)

    def distance(self, x: Float[Tensor, " n"]) -> float:
        """Euclidean distance of x from the center."""
        return length(x - self._joined()[0])

    def pull_memory(self) -> dict[str, Tensor]:
        """Copies of the vectors beside the center (`Rule.center_memory`), by name; the same on every rank."""
        _, spec = self._joined()
        return {name: vector.clone() for name, vector in zip(spec.memory, self._memory, strict=True)}

    def put(self, values: Float[Tensor, " n"], memory: Mapping[str, Tensor] | None = None) -> None:
        """Set this rank's copy, and the vectors beside it if `memory` is given; every rank must put the same."""
        center, spec = self._joined()
        beside = () if memory is None else spec.ordered(memory)
        center.copy_(values)
        for vector, its_values in zip(self._memory, beside, strict=False):
            vector.copy_(its_values)

    def report(self, loss: float) -> None:
        """Say how well this rank does, by its recent training loss; one that is not finite never leads."""
        self._loss = loss if math.isfinite(loss) else math.inf

    def _leads(self, loss: float, device: torch.device) -> bool:
        """Whether no rank has a lower loss; the first of equals leads."""
        own = torch.tensor([loss], device=device)
        losses = [torch.empty_like(own) for _ in range(self.num_workers)]
        dist.all_gather(losses, own, group=self._group)
        values = [float(one) for one in losses]
        return math.isfinite(min(values)) and values.index(min(values)) == dist.get_rank(self._group)

    def beat(self, step: int) -> None:
        """Nothing to say: torch.distributed itself notices a dead rank."""

    def leave(self, *, finished: bool = False) -> None:
        """Forget the center; the process group stays the caller's."""
        self._vector, self._memory, self._loss = None, (), math.inf

    def _check_same_everywhere(self, spec: CenterSpec, device: torch.device) -> None:
        """Every rank raises where one differs, so that none waits for the others."""
        text = spec.to_json().encode()
        size = torch.tensor([len(text)], device=device)
        dist.broadcast(size, group_src=0, group=self._group)
        first = torch.zeros(int(size), dtype=torch.uint8, device=device)
        if dist.get_rank(self._group) == 0:
            first.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(first, group_src=0, group=self._group)
        difference: ValueError | None = None
        try:
            of_rank_0 = CenterSpec.from_json(bytes(first.tolist()).decode())
            of_rank_0.check_same(spec)
            of_rank_0.check_schedule(spec)
        except ValueError as error:
            difference = error
        differing = torch.tensor([float(difference is not None)], device=device)
        dist.all_reduce(differing, group=self._group)
        if difference is not None:
            raise difference
        if differing.item():
            raise ValueError(
                f"ReplicatedCenter: every rank must bring rank 0's model, rule and periods. Got others on "
                f"{int(differing)} rank(s). Build the same Worker on every rank."
            )

    def _joined(self) -> tuple[Tensor, CenterSpec]:
        if self._vector is None or self._spec is None:
            raise ValueError("ReplicatedCenter: join comes first. Got an object without a center. Use a Worker.")
        return self._vector, self._spec


def _refusal(x: Tensor, center: Tensor) -> Refused | None:
    try:
        check_finite(x, center.numel(), center.device.type)
    except Refused as refusal:
        return refusal
    return None
