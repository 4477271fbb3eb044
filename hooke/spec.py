"""What every worker of a center must bring: the same vector, and finite values in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hooke.flat import Entry, end_of

LARGEST = 1e30
"""Values beyond it are refused like infinite ones: their differences and sums could overflow float32 in the center."""


class Refused(ValueError):
    """The center did not take what a worker sent; nothing changed. The message says why."""


@dataclass(frozen=True)
class CenterSpec:
    """What a center holds, as plain data (JSON): every worker must bring the same.

    Args:
        entries: The tensors in the vector. Empty where a caller has no names: then only `numel` counts.
        numel: Length of the vector.
        parameters_end: Where the parameters end; what follows are averaged buffers. Default: `numel`.
        memory: Names of the vectors that the center keeps beside it (`Rule.center_memory`), each of `numel` elements.
        schedule: When a worker exchanges what, in words; compared only where all exchange at once.
        part: Which part of the model's vector it is, in words, where several centers share one (`ShardedCenter`).
    """

    entries: tuple[Entry, ...]
    numel: int
    parameters_end: int = -1
    memory: tuple[str, ...] = ()
    schedule: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        if self.parameters_end < 0:
            object.__setattr__(self, "parameters_end", self.numel)

    @staticmethod
    def of(entries: Sequence[Entry], memory: tuple[str, ...] = (), schedule: str = "") -> CenterSpec:
        """The spec of a vector that holds `entries`, with `memory` beside it."""
        parameters = [entry for entry in entries if entry.kind == "parameter"]
        return CenterSpec(tuple(entries), end_of(entries), end_of(parameters), memory, schedule)

    def to_json(self) -> str:
        """As one JSON text."""
        entries = [entry.plain() for entry in self.entries]
        sizes = {"numel": self.numel, "parameters_end": self.parameters_end}
        words = {"memory": self.memory, "schedule": self.schedule, "part": self.part}
        return json.dumps({"entries": entries, **sizes, **words})

    @staticmethod
    def from_json(text: str) -> CenterSpec:
        """Back from `to_json`."""
        plain = json.loads(text)
        entries = tuple(Entry.from_plain(entry) for entry in plain["entries"])
        memory = tuple(str(name) for name in plain.get("memory", ()))  # older files have none
        sizes = int(plain["numel"]), int(plain["parameters_end"])
        return CenterSpec(entries, *sizes, memory, str(plain.get("schedule", "")), str(plain.get("part", "")))

    def cut(self, start: int, stop: int, part: str) -> CenterSpec:
        """The spec of the elements from `start` to `stop`; an entry that is cut counts as the row of values it is.

        Args:
            start: First element, in units of 16.
            stop: One after the last.
            part: What to call it.
        """
        entries = [piece for entry in self.entries if (piece := entry.cut(start, stop)) is not None]
        border = min(max(0, self.parameters_end - start), stop - start)
        return CenterSpec(tuple(entries), stop - start, border, self.memory, self.schedule, part)

    def check_same(self, other: CenterSpec) -> None:
        """Refuse a worker whose spec is `other`.

        Raises:
            ValueError: A sentence that names the first difference.
        """
        if self.part != other.part:
            raise ValueError(
                f"center: a center must get the same part of the vector from every worker. Got {other.part or 'all'}, "
                f"it holds {self.part or 'all'}. Name the same centers in the same order on every worker."
            )
        for ours, theirs in zip(self.entries, other.entries, strict=False):
            for field in ("name", "kind", "shape", "dtype", "order"):
                if getattr(ours, field) != getattr(theirs, field):
                    raise ValueError(
                        f"center: every worker must bring the same model. {theirs.name} has {_WORDS[field]} "
                        f"{getattr(theirs, field)}, in the center it is {getattr(ours, field)} ({ours.name}). "
                        "Build the same model, in the same dtype and memory format, on every worker."
                    )
        size, others = ((len(spec.entries), spec.numel, spec.parameters_end) for spec in (self, other))
        if size != others:
            extra = [e.name for e in self.entries[len(other.entries) :] + other.entries[len(self.entries) :]]
            first = f"; the first that is not on both sides is {extra[0]}" if extra else ""
            raise ValueError(
                f"center: every worker must bring the same model. Got {_size(other)}, the center holds {_size(self)}"
                f"{first}. Build the same model on every worker."
            )
        if self.memory != other.memory:
            raise ValueError(
                f"center: every worker must bring the same rule. Got one that keeps {_words(other.memory)} beside "
                f"the center, which keeps {_words(self.memory)}. Use the same rule on every worker."
            )

    def check_schedule(self, other: CenterSpec) -> None:
        """Refuse a rank that would exchange at other steps, or other fragments: the others would wait for it.

        Raises:
            ValueError: A sentence that names both.
        """
        if self.schedule != other.schedule:
            raise ValueError(
                f"center: ranks that exchange at once must bring the same communication_period and fragments. Got "
                f"{other.schedule or 'none'}, rank 0 has {self.schedule or 'none'}. Use the same on every rank."
            )

    def check_rule(self, memory: tuple[str, ...]) -> None:
        """Refuse a rule that keeps other vectors beside the center.

        Raises:
            ValueError: A sentence that names both.
        """
        if self.memory != memory:
            raise ValueError(
                f"center: an exchange needs the rule that the center was made for. Got one that keeps {_words(memory)} "
                f"beside the center, which keeps {_words(self.memory)}. Join with CenterSpec.of(entries, "
                "rule.center_memory) and rule.init_center(initial)."
            )

    def check_memory(self, memory: Sequence[Tensor]) -> None:
        """Refuse to make a center with other vectors beside it than `memory` says.

        Raises:
            ValueError: Their number differs.
        """
        if len(memory) != len(self.memory):
            raise ValueError(
                f"center: join needs one vector for each of {_words(self.memory)}. Got {len(memory)}. Pass "
                "rule.init_center(initial)."
            )

    def ordered(self, memory: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The vectors beside the center, in the center's order.

        Raises:
            ValueError: `memory` has other names.
        """
        if set(memory) != set(self.memory):
            raise ValueError(
                f"center: memory must be that of the same rule. Got {_words(memory)}, the center keeps "
                f"{_words(self.memory)}. Pass what pull_memory() of a center of this rule gave."
            )
        return tuple(memory[name] for name in self.memory)


def _words(memory: Iterable[str]) -> str:
    return " and ".join(memory) or "nothing"


def _size(spec: CenterSpec) -> str:
    return f"{len(spec.entries)} tensors ({spec.parameters_end} elements, {spec.numel} with averaged buffers)"


_WORDS = {"name": "name", "kind": "kind", "shape": "shape", "dtype": "dtype", "order": "memory order"}


def extent(x: Tensor, start: int | None, numel: int) -> slice:
    """Where x lies in a vector of `numel` elements: all of it, or, from `start` on, the fragment that x is.

    Raises:
        ValueError: It would reach out of the vector.
    """
    if start is None:
        return slice(0, numel)
    if start < 0 or start + x.numel() > numel:
        raise ValueError(
            f"center: a fragment must lie inside the vector of {numel} elements. Got {x.numel()} from {start} on. Send "
            "x[start:stop] and its start."
        )
    return slice(start, start + x.numel())


def length(x: Tensor) -> float:
    """Euclidean length; also where squares overflow float32, as in a run that diverges."""
    made = float(torch.linalg.vector_norm(x))
    return made if made < math.inf else float(torch.linalg.vector_norm(x.double()))


def check_finite(x: Tensor, numel: int, device: str = "cpu") -> None:
    """Refuse what can't be a worker's parameters.

    Raises:
        Refused: Another size, dtype or device, or values that are not finite.
    """
    check_vector(x, numel, device)
    if not abs(x.sum().item()) <= LARGEST:  # one pass; where the sum is not small, look at each value
        bad = int(numel - (x.abs() <= LARGEST).sum())
        if bad:
            raise Refused(
                f"center: x must be finite and below {LARGEST:g}. Got {bad} of {numel} values that are not. "
                "Lower the learning rate, or start the worker again from the center."
            )


def check_vector(x: Tensor, numel: int, device: str = "cpu") -> None:
    """Refuse another size, dtype or device.

    Raises:
        Refused: It has.
    """
    if x.shape != (numel,) or x.dtype != torch.float32 or x.device.type != device:
        raise Refused(
            f"center: x must be {numel} float32 values on {device}. Got {x.dtype} of shape {tuple(x.shape)} on "
            f"{x.device}. Send the vector that the worker joined with."
        )
