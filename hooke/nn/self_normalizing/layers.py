"""The parts of a self-normalizing net: LeCun-normal weights, SELU for any constants, and the whole MLP.

With weights from N(0, 1 / fan_in), SELU draws the mean and variance of activations to its fixed point, layer by layer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from numbers import Integral
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hooke.nn.self_normalizing.dropout import AlphaDropout, check_constants, check_dropout
from hooke.nn.self_normalizing.dropout import FeatureAlphaDropout as FeatureAlphaDropout
from hooke.nn.self_normalizing.dropout import alpha_dropout_affine as alpha_dropout_affine
from hooke.nn.self_normalizing.moments import ALPHA, SCALE, moment_map

Shape = Literal["rectangular", "conic"]


def lecun_normal_(tensor: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill weights with N(0, 1 / fan_in), in place.

    Then the sum of a unit's weights is 0 and the sum of their squares 1, in expectation: omega and tau of the theory.

    Args:
        tensor: Weights (out, in) of a linear layer or (out, in / groups, *kernel) of a convolution; fan_in is the
            number of weights of one unit. A transposed convolution keeps them the other way around.
        generator: Where the random numbers come from; default torch's own.

    Returns:
        `tensor` itself.

    Raises:
        ValueError: Fewer than 2 dimensions, or a fan_in of 0.

    Example:
        >>> weight = lecun_normal_(torch.empty(1000, 400), generator=torch.Generator().manual_seed(0))
        >>> round(weight.square().sum(dim=1).mean().item(), 2)
        1.0

    Reference:
        Klambauer et al., "Self-normalizing neural networks", arXiv 1706.02515, section 2, "Initialization".
    """
    if tensor.dim() < 2:
        raise ValueError(
            f"lecun_normal_: tensor must have at least 2 dimensions, (out, in, ...). Got {tensor.dim()}. "
            "Use it for weights; fill biases with torch.nn.init.zeros_."
        )
    fan_in = math.prod(tensor.shape[1:])
    if fan_in == 0:
        raise ValueError(
            f"lecun_normal_: every unit must have at least 1 weight. Got shape {tuple(tensor.shape)}. "
            "Give the layer at least one input."
        )
    with torch.no_grad():
        return tensor.normal_(0.0, fan_in**-0.5, generator=generator)


class SELU(nn.Module):
    """scale * x for x > 0, scale * alpha * (exp(x) - 1) below.

    torch's own function where its constants apply, and as fast for others.

    Args:
        alpha: Positive; default the paper's, for the fixed point mean 0, variance 1. Others: `selu_parameters`.
        scale: Positive; the paper's lambda.
        inplace: Overwrite the input.

    Raises:
        ValueError: alpha or scale is not a positive number.

    Example:
        >>> SELU(alpha=2.0, scale=1.0)(torch.tensor([-1.0, 1.0]))
        tensor([-1.2642,  1.0000])

    Reference:
        arXiv 1706.02515, eq. 2.
    """

    def __init__(self, alpha: float = ALPHA, scale: float = SCALE, inplace: bool = False) -> None:
        super().__init__()
        check_constants("SELU", alpha, scale)
        self.alpha, self.scale, self.inplace = alpha, scale, inplace

    @property
    def saturation(self) -> float:
        """The value far below zero: -scale * alpha."""
        return -self.scale * self.alpha

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """SELU of every element."""
        if (self.alpha, self.scale) == (ALPHA, SCALE):
            return functional.selu(input, inplace=self.inplace)
        elu: Any = torch.ops.aten.elu_ if self.inplace else torch.ops.aten.elu
        return elu(input, self.alpha, self.scale)

    def extra_repr(self) -> str:
        """The settings."""
        return f"alpha={self.alpha:g}, scale={self.scale:g}" + ", inplace=True" * self.inplace


class SelfNormalizingMLP(nn.Sequential):
    """A feed-forward net that keeps the mean and variance of its activations without normalization layers.

    `depth` times linear, SELU and (for a positive rate) alpha dropout, then a linear output. Children are named
    `linear1`, `selu1`, `dropout1`, ..., `output`, so that weights load whatever the dropout. Standardize the inputs to
    the fixed point's mean and variance, by default 0 and 1.

    At width 256 the activations of 64 layers stay within 0.1 of mean 0 and 0.3 of variance 1, over 20 seeds; at width
    64 half of the seeds leave that range, because the theory counts on many inputs a unit.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        hidden: Width of the first hidden layer; of all of them if rectangular.
        depth: Number of hidden layers.
        shape: `"rectangular"`, or `"conic"`: widths in geometric progression from `hidden` toward `out_features`.
        dropout: Rate of alpha dropout behind every hidden layer, in [0, 1). Default 0: no dropout; the paper recommends
            0.05 or 0.1 and lets a validation set choose between 0.05 and 0.
        alpha: SELU's alpha.
        scale: SELU's lambda.
        mean: Mean that alpha dropout keeps: the fixed point of alpha and scale. Not without dropout.
        variance: Its variance. Not without dropout.
        device: Where the parameters are made.
        dtype: Their type.

    Attributes:
        widths: Width of each hidden layer.

    Raises:
        ValueError: A size below 1, an unknown shape, a value out of its range, or a mean and variance that are not the
            fixed point of alpha and scale or, without dropout, not used.

    Example:
        >>> SelfNormalizingMLP(20, 2, hidden=200, depth=4, shape="conic").widths
        (200, 63, 20, 6)

    Reference:
        arXiv 1706.02515, section 2; shapes as in appendix A4.1, "Hyperparameter optimization".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int = 256,
        depth: int = 8,
        *,
        shape: Shape = "rectangular",
        dropout: float = 0.0,
        alpha: float = ALPHA,
        scale: float = SCALE,
        mean: float = 0.0,
        variance: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"in_features": in_features, "out_features": out_features, "hidden": hidden, "depth": depth}
        for name, size in sizes.items():
            if not isinstance(size, Integral) or size < 1:
                raise ValueError(
                    f"SelfNormalizingMLP: {name} must be a whole number, 1 or more. Got {size}. Use e.g. 64."
                )
        if shape not in ("rectangular", "conic"):
            raise ValueError(
                f"SelfNormalizingMLP: shape must be 'rectangular' or 'conic'. Got {shape!r}. Use 'rectangular'."
            )
        check_dropout("SelfNormalizingMLP", dropout, mean, variance, alpha, scale, rate="dropout")
        _check_fixed_point(dropout, mean, variance, alpha, scale)
        ratio = out_features / hidden if shape == "conic" else 1.0
        widths = tuple(max(1, round(hidden * ratio ** (layer / depth))) for layer in range(depth))
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for layer, (before, width) in enumerate(zip((in_features, *widths), widths, strict=False), start=1):
            parts[f"linear{layer}"] = nn.Linear(before, width, device=device, dtype=dtype)
            parts[f"selu{layer}"] = SELU(alpha, scale)
            if dropout:
                parts[f"dropout{layer}"] = AlphaDropout(dropout, alpha, scale, mean, variance)
        parts["output"] = nn.Linear(widths[-1], out_features, device=device, dtype=dtype)
        super().__init__(parts)
        self.widths = widths
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw LeCun-normal weights anew and set the biases to 0."""
        for part in self:
            if isinstance(part, nn.Linear):
                lecun_normal_(part.weight)
                nn.init.zeros_(part.bias)

    def __getitem__(self, idx: Any) -> Any:
        """A child; a slice is an `nn.Sequential` of the same children."""
        if isinstance(idx, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[idx]))  # pyright: ignore[reportArgumentType]
        return super().__getitem__(idx)


def _check_fixed_point(dropout: float, mean: float, variance: float, alpha: float, scale: float) -> None:
    """Refuse moments that nothing keeps, or that alpha and scale do not lead to."""
    given = f"mean {mean} and variance {variance}"
    if not dropout and (mean, variance) != (0.0, 1.0):
        raise ValueError(
            f"SelfNormalizingMLP: mean and variance must be left out without dropout. Got {given}. Drop them: "
            "alpha and scale alone make the fixed point."
        )
    if dropout and (mean, variance, alpha, scale) != (0.0, 1.0, ALPHA, SCALE):
        with torch.device("cpu"):
            after = [value.item() for value in moment_map(mean, variance, 0.0, 1.0, alpha=alpha, scale=scale)]
        if max(abs(after[0] - mean), abs(after[1] - variance)) > 0.01 * max(variance, variance**0.5):
            raise ValueError(
                f"SelfNormalizingMLP: mean and variance must be the fixed point of alpha and scale. Got {given}, which "
                f"one layer takes to {after[0]:.3g} and {after[1]:.3g}. Take both from hooke.nn.fixed_point."
            )
