"""Fewer bits on the wire: how a link writes float32 values as bytes, and reads them back.

Every codec is a pure function of the values, the same on every machine, and idempotent: what was read back is written
as the same bytes again. So both ends of a link agree on every value to the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

SCALED = 128
"""Values that share one scale: its 16 bits add an eighth of a bit to each of them."""

_SMALLEST = 1e-35
"""A block whose largest value lies below counts as zero: its scale would leave the normal numbers."""


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
        largest = table.abs().amax(1)  # one pass more than a norm, and twenty times as fast
        scale = (largest / self._top).to(torch.bfloat16)
        scale[largest < _SMALLEST] = 0
        wide = scale.to(torch.float32)
        codes = (table * torch.where(wide == 0, 0.0, 1 / wide)[:, None]).round_()
        return torch.cat([scale.view(torch.uint8), self._packed(codes.to(torch.int8)).view(-1)])

    def decode(self, coded: Tensor, out: Tensor) -> Tensor:
        """Code times scale."""
        blocks = -(-out.numel() // SCALED)
        scale = coded[: 2 * blocks].clone().view(torch.bfloat16).to(torch.float32)
        codes = self._unpacked(coded[2 * blocks :].view(blocks, -1))
        if out.numel() % SCALED:
            return out.copy_((codes * scale[:, None]).view(-1)[: out.numel()])
        torch.mul(codes, scale[:, None], out=out.view(blocks, SCALED))
        return out

    def _packed(self, codes: Tensor) -> Tensor:
        """With 4 bits the first half of a block lies in the lower halves of its bytes."""
        if self.bits == 8:
            return codes.view(torch.uint8)
        codes = (codes + 8).view(torch.uint8)
        half = SCALED // 2
        return codes[:, :half] | (codes[:, half:] << 4)

    def _unpacked(self, packed: Tensor) -> Tensor:
        if self.bits == 8:
            return packed.view(torch.int8)
        return torch.cat([packed & 15, packed >> 4], dim=1).view(torch.int8).sub_(8)


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
