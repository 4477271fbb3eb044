"""Whether what a first worker says of its model can be a center: it decides what the center is, and what is saved."""

from __future__ import annotations

from hooke.flat import Entry
from hooke.remote.protocol import MAX_TEXT
from hooke.spec import CenterSpec

MAX_PARAMETERS = 20_000_000_000

MAX_MEMORY = 8
"""Vectors beside the center; no rule keeps so many."""


def check_sound(spec: CenterSpec) -> None:
    """Refuse a spec whose tensors do not lie in its vector, or that no center can hold.

    Raises:
        ValueError: That.
    """
    fewest = 0 if spec.part else 1  # a part of a vector may be averaged buffers alone
    if not fewest <= spec.parameters_end <= spec.numel <= MAX_PARAMETERS or not spec.numel:
        raise ValueError(
            f"serve: a center holds 1 to {MAX_PARAMETERS:,} values. Got {spec.numel}, of which {spec.parameters_end} "
            "are parameters. Split a larger model over several centers."
        )
    if len(spec.memory) > MAX_MEMORY or not all(map(_is_name, spec.memory)):
        raise ValueError(
            f"serve: a center keeps at most {MAX_MEMORY} vectors beside it, each with a name. Got {len(spec.memory)}. "
            "Use one of hooke's rules."
        )
    if spec.part and not _is_name(spec.part):
        raise ValueError(
            f"serve: a part of a vector must be named in words. Got {spec.part[:MAX_TEXT]!r}. Use hooke.connect with "
            "several addresses."
        )
    for entry in spec.entries:
        if not _is_sound(entry, spec.numel):
            raise ValueError(
                f"serve: each tensor must lie in the vector of {spec.numel} values. Got another: "
                f"{str(entry.name)[:MAX_TEXT]!r}. Use hooke.connect."
            )


def _is_sound(entry: Entry, numel: int) -> bool:
    lengths = (*entry.shape, *entry.order, entry.offset)
    if not all(isinstance(number, int) and 0 <= number <= numel for number in lengths):
        return False
    dimensions = [index for index, length in enumerate(entry.shape) if length != 1]
    return (
        len(entry.shape) <= 64
        and sorted(entry.order) == dimensions
        and entry.offset + entry.numel <= numel
        and entry.kind in ("parameter", "buffer")
        and _is_name(entry.name)
        and _is_name(entry.dtype)
    )


def _is_name(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= 10 * MAX_TEXT and text.isprintable()
