"""Fewer bits on the wire: how a link writes float32 values as bytes, and reads them back.

Every codec is a pure function of the values, the same on every machine, and idempotent: what was read back is written
as the same bytes again. So both ends of a link agree on every value to the bit.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

SCALED = 128
"""Values that share one scale: its 16 bits add an eighth of a bit to each of them."""

_SMALLEST = 1e-35
"""A block whose largest value lies below counts as zero: its scale would leave the normal numbers."""

_HALF = SCALED // 2

_AT_ONCE = 1024
"""Blocks that one pass goes over, half a MiB of values."""


class Codec(ABC):
    """Writes a flat vector of float32 values, at least one, as bytes.

    Attributes:
        name: What `codec_of` knows it by.
        is_exact: Whether every value comes back to the bit.
    """

    name: str
    is_exact: bool = False

    @abstractmethod
    def size(self, numel: int) -> int:
        """Bytes for so many values."""

    @abstractmethod
    def encode(self, values: Float[Tensor, " n"]) -> UInt8[Tensor, " size"]:
        """The bytes; an exact codec's may be the memory of `values` itself."""

    @abstractmethod
    def decode(self, coded: UInt8[Tensor, " size"], out: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The values, written into `out`, which is returned; `coded` may lie at any address."""

    def rounded(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What arrives at the other end, a new tensor."""
        return self.decode(self.encode(values), torch.empty_like(values))


@dataclass(frozen=True)
class Float32(Codec):
    """Every bit of every value.

    Example:
        >>> Float32().size(1000)
        4000
    """

    name: str = "float32"
    is_exact: bool = True

    def size(self, numel: int) -> int:
        """Four bytes a value."""
        return 4 * numel

    def encode(self, values: Tensor) -> Tensor:
        """The memory of `values`."""
        return values.contiguous().view(torch.uint8)

    def decode(self, coded: Tensor, out: Tensor) -> Tensor:
        """A copy."""
        out.view(torch.uint8).copy_(coded)
        return out


@dataclass(frozen=True)
class BFloat16(Codec):
    """The upper half of every value: 8 bits of precision, the whole range.

    Example:
        >>> BFloat16().rounded(torch.tensor([1.001, 3.14159]))
        tensor([1.0000, 3.1406])
    """

    name: str = "bfloat16"

    def size(self, numel: int) -> int:
        """Two bytes a value."""
        return 2 * numel

    def encode(self, values: Tensor) -> Tensor:
        """Rounded to the nearest."""
        return values.to(torch.bfloat16).view(torch.uint8)

    def decode(self, coded: Tensor, out: Tensor) -> Tensor:
        """Exactly what was rounded to."""
        return out.copy_(coded.clone().view(torch.bfloat16))


@dataclass(frozen=True)
class Scaled(Codec):
    """Whole numbers of `bits` bits, and for each 128 of them one scale: the largest value becomes the largest number.

        scale = bfloat16(max |v| / top)      code = round(v / scale)      |code| <= top = 2 ** (bits - 1) - 1

    An error is at most half a scale, so it is small where all values nearby are. Bytes: the scales, then the codes; two
    4-bit codes share a byte.

    Args:
        name: What it is known by.
        bits: 8 or 4.

    Example:
        >>> int4 = Scaled("int4", 4)
        >>> int4.rounded(torch.tensor([0.7, -0.32, 0.04]))
        tensor([ 0.7007, -0.3003,  0.0000])
        >>> int4.size(1_000_000) / 4_000_000
        0.1289145
    """

    name: str
    bits: int

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def size(self, numel: int) -> int:
        """Bytes of whole blocks of 128."""
        blocks = -(-numel // SCALED)
        return blocks * (2 + SCALED * self.bits // 8)

    def encode(self, values: Tensor) -> Tensor:
        """Scales and codes; padded with zeros to whole blocks."""
        short = -values.numel() % SCALED
        table = (pad(values, (0, short)) if short else values).view(-1, SCALED)
        scales, codes = self._parts(coded := torch.empty(self.size(values.numel()), dtype=torch.uint8))
        largest = torch.empty(len(table))
        for part, room in _pieces(len(table)):  # abs: one pass more than a norm, and twenty times as fast
            torch.amax(torch.abs(table[part], out=room), 1, out=largest[part])
        scale = (largest / self._top).to(torch.bfloat16).masked_fill_(largest < _SMALLEST, 0)
        scales.copy_(scale.view(torch.uint8))
        wide = scale.to(torch.float32)
        inverse = wide.reciprocal().masked_fill_(wide == 0, 0)[:, None]
        for part, room in _pieces(len(table)):
            self._write(torch.mul(table[part], inverse[part], out=room).round_(), codes[part])
        return coded

    def decode(self, coded: Tensor, out: Tensor) -> Tensor:
        """Code times scale."""
        if short := -out.numel() % SCALED:
            whole = torch.empty(out.numel() + short)
            return out.copy_(self.decode(coded, whole)[: out.numel()])
        scales, codes = self._parts(coded)
        wide = scales.clone().view(torch.bfloat16).to(torch.float32)[:, None]
        table = out.view(-1, SCALED)
        for part in _slices(len(table)):
            self._read(codes[part], table[part])
            table[part].mul_(wide[part])
        return out

    def _parts(self, coded: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and codes, a row of these a block."""
        blocks = coded.numel() // (2 + SCALED * self.bits // 8)
        return coded[: 2 * blocks], coded[2 * blocks :].view(blocks, -1)

    def _write(self, numbers: Tensor, codes: Tensor) -> None:
        """Whole numbers as bytes; with 4 bits the first half of a block lies in the lower halves of its bytes."""
        if self.bits == 8:
            codes.view(torch.int8).copy_(numbers)
        else:
            codes.copy_(numbers[:, :_HALF].add_(numbers[:, _HALF:], alpha=16).add_(8 + 16 * 8))

    def _read(self, codes: Tensor, numbers: Tensor) -> None:
        """Back from `_write`."""
        if self.bits == 8:
            numbers.copy_(codes.view(torch.int8))
        else:
            numbers[:, :_HALF].copy_(codes & 15)
            numbers[:, _HALF:].copy_(codes >> 4)
            numbers.sub_(8)


class _Room(threading.local):
    """Memory of a thread, which each piece overwrites: to make some anew takes as long as the arithmetic."""

    def __init__(self) -> None:
        self.table = torch.empty(_AT_ONCE, SCALED)


_ROOM = _Room()


def _slices(rows: int) -> Iterator[slice]:
    """Pieces that stay in the processor's cache."""
    for first in range(0, rows, _AT_ONCE):
        yield slice(first, min(first + _AT_ONCE, rows))


def _pieces(rows: int) -> Iterator[tuple[slice, Tensor]]:
    """The same, each with room for its values."""
    for part in _slices(rows):
        yield part, _ROOM.table[: part.stop - part.start]


CODECS: dict[str, Codec] = {
    codec.name: codec for codec in (Float32(), BFloat16(), Scaled("int8", 8), Scaled("int4", 4))
}
"""By their names, the widest first."""


def codec_of(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ValueError: There is none.

    Example:
        >>> codec_of("int8").size(128)
        130
    """
    if name not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}. Got {name!r}. Use int8 on a slow link.")
    return CODECS[name]
