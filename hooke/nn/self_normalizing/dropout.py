"""Alpha dropout for any SELU and any fixed point, element by element and by whole channels.

What it drops goes to SELU's saturation value, the lowest that SELU can give; an affine map then restores the mean and
the variance exactly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooke.nn.self_normalizing.moments import ALPHA, SCALE


def alpha_dropout_affine(
    p: float, mean: float = 0.0, variance: float = 1.0, alpha: float = ALPHA, scale: float = SCALE
) -> tuple[float, float]:
    """The affine map a * x + b after which alpha dropout has kept mean and variance exactly.

        q = 1 - p      s = -scale * alpha      a = sqrt(variance / (q * (p * (s - mean)^2 + variance)))
                                               b = mean - a * (q * mean + p * s)

    Args:
        p: Share of units that are set to s, in [0, 1).
        mean: Mean of the activations.
        variance: Their variance, positive.
        alpha: SELU's alpha, positive.
        scale: SELU's lambda, positive.

    Returns:
        a and b.

    Raises:
        ValueError: A value out of its range.

    Example:
        >>> a, b = alpha_dropout_affine(0.1)
        >>> round(a, 4), round(b, 4)
        (0.9213, 0.162)

    Reference:
        arXiv 1706.02515, section 2, "New dropout technique".
    """
    return _affine("alpha_dropout_affine", p, mean, variance, alpha, scale)


def _affine(name: str, p: float, mean: float, variance: float, alpha: float, scale: float) -> tuple[float, float]:
    check_dropout(name, p, mean, variance, alpha, scale)
    saturation, q = -scale * alpha, 1 - p
    gap = saturation - mean
    a = math.sqrt(variance / (q * (p * gap * gap + variance)))
    return a, mean - a * (q * mean + p * saturation)


class AlphaDropout(nn.AlphaDropout):
    """Sets a random share p of the units to SELU's saturation value, then keeps mean and variance by a * x + b.

    As `torch.nn.AlphaDropout`, whose subclass it is, for any SELU and any fixed point; the identity in eval mode. The
    mask comes from torch's random numbers, and compiled code draws the same one from the same seed on a CPU.

    Args:
        p: Share of units to drop, in [0, 1); default 0.05, the smaller of the paper's two recommended rates. At 1 no
            variance would be left to keep (torch gives zeros there, the mean but not the variance).
        alpha: alpha of the SELU before it.
        scale: Its lambda.
        mean: Mean of the activations that come in.
        variance: Their variance, positive.
        inplace: Overwrite the input.

    Raises:
        ValueError: A value out of its range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> dropped = AlphaDropout(p=0.5)(torch.randn(1_000_000))
        >>> round(dropped.var().item(), 2)
        1.0

    Reference:
        arXiv 1706.02515, section 2, "New dropout technique".
    """

    def __init__(
        self,
        p: float = 0.05,
        alpha: float = ALPHA,
        scale: float = SCALE,
        mean: float = 0.0,
        variance: float = 1.0,
        inplace: bool = False,
    ) -> None:
        check_dropout(type(self).__name__, p, mean, variance, alpha, scale)
        super().__init__(p, inplace)
        self.alpha, self.scale, self.mean, self.variance = alpha, scale, mean, variance

    @property
    def affine(self) -> tuple[float, float]:
        """a and b of `alpha_dropout_affine`, for p as it is now."""
        return _affine(type(self).__name__, self.p, self.mean, self.variance, self.alpha, self.scale)

    @property
    def a(self) -> float:
        """The factor."""
        return self.affine[0]

    @property
    def b(self) -> float:
        """The summand."""
        return self.affine[1]

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The input with a share p of its units dropped; in eval mode, and for p = 0, the input itself."""
        if not self.training or self.p == 0:
            return input
        a, b = self.affine
        kept, saturation = _kept(self._units(input), 1 - self.p), -self.scale * self.alpha
        filled = input.masked_fill_(~kept, saturation) if self.inplace else torch.where(kept, input, saturation)
        return filled.mul_(a).add_(b)

    def _units(self, input: Tensor) -> Tensor:
        """A part of the input with one element for each unit that is dropped or kept."""
        return input

    def extra_repr(self) -> str:
        """The settings; constants only where they are not the paper's."""
        own = {"alpha": ALPHA, "scale": SCALE, "mean": 0.0, "variance": 1.0, "inplace": False}
        return f"p={self.p}" + "".join(f", {k}={getattr(self, k)}" for k, v in own.items() if getattr(self, k) != v)


class FeatureAlphaDropout(AlphaDropout):
    """`AlphaDropout` of whole channels: all of a channel's values in one example are dropped, or none.

    torch's own takes an unbatched (channel, depth, height, width) for a batch and masks parts of a channel; here
    `spatial_dims` says which dimensions belong to a channel.

    Args:
        p: Share of channels to drop, in [0, 1).
        spatial_dims: 1 for sequences, 2 for images, 3 for volumes.
        alpha: As in `AlphaDropout`.
        scale: As in `AlphaDropout`.
        mean: As in `AlphaDropout`.
        variance: As in `AlphaDropout`.
        inplace: Overwrite the input.

    Raises:
        ValueError: A value out of its range; an input with other than spatial_dims + 2 dimensions (batched) or
            spatial_dims + 1 (one example).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> image = FeatureAlphaDropout(p=0.5, spatial_dims=2)(torch.zeros(3, 8, 8))
        >>> [channel.unique().numel() for channel in image]
        [1, 1, 1]

    Reference:
        arXiv 1706.02515, section 2; whole channels as in Tompson et al., arXiv 1411.4280, section 3.2.
    """

    def __init__(
        self,
        p: float = 0.05,
        *,
        spatial_dims: int,
        alpha: float = ALPHA,
        scale: float = SCALE,
        mean: float = 0.0,
        variance: float = 1.0,
        inplace: bool = False,
    ) -> None:
        if spatial_dims not in (1, 2, 3):
            raise ValueError(
                f"FeatureAlphaDropout: spatial_dims must be 1, 2 or 3. Got {spatial_dims}. "
                "Use 2 for images; AlphaDropout where there is no space."
            )
        super().__init__(p, alpha, scale, mean, variance, inplace)
        self.spatial_dims = spatial_dims

    def _units(self, input: Tensor) -> Tensor:
        if input.dim() - self.spatial_dims not in (1, 2):
            raise ValueError(
                f"FeatureAlphaDropout: input must have {self.spatial_dims + 2} dimensions (batch, channel, "
                f"{self.spatial_dims} of space), or {self.spatial_dims + 1} without a batch. Got {input.dim()}. "
                "Set spatial_dims to the number behind the channels."
            )
        return input[(..., *(slice(1),) * self.spatial_dims)]

    def extra_repr(self) -> str:
        """The settings."""
        return f"{super().extra_repr()}, spatial_dims={self.spatial_dims}"


def _kept_units(x: Tensor, share: float) -> Tensor:
    """1 for a unit that is kept, 0 for one dropped; uint8.

    Four units share a 64-bit random number, four times as fast as `bernoulli_`. Sixteen bits alone would round the
    share; rounding up or down at random, once a call, makes every unit's chance exact.
    """
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    below = math.floor(share * 2**16 + torch.rand(()).item()) - 2**15
    kept = words[: x.numel()] < float(below)  # as an int, 2^15 would wrap around
    return kept.view(torch.uint8).view(x.shape)


def _kept_units_shape(x: Tensor, share: float) -> Tensor:
    return torch.empty(x.shape, dtype=torch.uint8, device=x.device)


def _kept_units_vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, share: float) -> tuple[Tensor, int | None]:
    if info.randomness == "error":
        raise RuntimeError("AlphaDropout: vmap must say how masks differ. Got randomness='error'. Use 'different'.")
    if info.randomness == "same" and in_dims[0] is not None:
        return torch.ops.hooke.kept_units(x.select(in_dims[0], 0), share), None
    return torch.ops.hooke.kept_units(x, share), in_dims[0]


torch.library.define(
    "hooke::kept_units", "(Tensor x, float share) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
torch.library.impl("hooke::kept_units", "CPU", _kept_units)
torch.library.register_fake("hooke::kept_units", _kept_units_shape)
torch.library.register_vmap("hooke::kept_units", _kept_units_vmap)


def _kept(x: Tensor, share: float) -> Tensor:
    """Which units are kept, each with the chance `share`: booleans of the shape of x.

    torch's compiler is slow at random numbers and at reading booleans on a CPU: either doubles the time of the whole
    dropout, hence an operator that it takes as it is, and floats.
    """
    if x.device.type != "cpu":
        return torch.rand_like(x, dtype=torch.float32) < share
    kept = torch.ops.hooke.kept_units(x, share)
    return kept.to(x.dtype) != 0 if torch.compiler.is_compiling() else kept.view(torch.bool)


def check_constants(name: str, alpha: float, scale: float) -> None:
    """Refuse constants that no SELU has; `name` begins the sentence."""
    for word, value, usual in (("alpha", alpha, ALPHA), ("scale", scale, SCALE)):
        if isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name}: {word} must be a positive number. Got {value}. Use {usual:.4f}.")


def check_dropout(
    name: str, p: float, mean: float, variance: float, alpha: float, scale: float, rate: str = "p"
) -> None:
    """Refuse what alpha dropout has no a and b for; `name` begins the sentence, `rate` is its word for p."""
    if p is None or isinstance(p, bool) or not 0 <= p < 1:
        raise ValueError(f"{name}: {rate} must be in [0, 1). Got {p}. Use 0.05 or 0.1.")
    if not -math.inf < mean < math.inf:  # isfinite would break a dynamic graph
        raise ValueError(f"{name}: mean must be finite. Got {mean}. Use 0.0.")
    if not 0 < variance < math.inf:
        raise ValueError(f"{name}: variance must be a positive number. Got {variance}. Use 1.0.")
    check_constants(name, alpha, scale)
