"""Does an activation normalize by itself: where mean and variance come to rest through equal layers, for any function.

`fixed_point` finds it for a given activation, `selu_parameters` finds the SELU for a given fixed point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooke.nn.self_normalizing.moments import moment_map, sides

Activation = Callable[[Tensor], Tensor]
"""An elementwise, continuous function of a float64 tensor, e.g. `torch.tanh` or `torch.nn.GELU()`."""

_COLLAPSED = 1e-10  # a variance on its way down counts as 0 from here
_SPREAD_AT_ZERO = 1e-6  # the standard deviation at which slopes are taken where the variance is 0
_ENDLESS = 1e100
_FARTHEST = 13.0  # standard deviations; the normal mass beyond is 1e-38


@dataclass(frozen=True)
class FixedPoint:
    """Where mean and variance come to rest through layers with one activation, and what happens there.

    Attributes:
        mean: Mean of the activations.
        variance: Their variance; 0 where it dies out.
        residual: Largest change of (mean, variance) by one more layer: the certificate.
        jacobian: Of one layer's (mean, variance) by the last one's, 2 by 2. At variance 0 it is taken at a standard
            deviation of 1e-6 of the units' inputs, since the slope of the mean by the variance may be infinite there.
        singular_value: Spectral norm of the Jacobian; below 1 one layer contracts.
        spectral_radius: Largest absolute eigenvalue of the Jacobian; below 1 small deviations die out.
        backward_factor: chi = tau * E[f'(z)^2], by which one layer multiplies the variance of gradients.
    """

    mean: float
    variance: float
    residual: float
    jacobian: Float[Tensor, "2 2"]
    singular_value: float
    spectral_radius: float
    backward_factor: float

    @property
    def is_attracting(self) -> bool:
        """Whether small deviations die out: the spectral radius is below 1, by more than the 1e-5 it is sure to.

        Where it is 1 the slopes don't decide: tanh at tau = 1 loses its variance all the same, ever more slowly.
        """
        return self.spectral_radius < 1 - 1e-5

    @property
    def normalizes(self) -> bool:
        """Whether the point attracts and has a variance: layers keep a signal of that size by themselves.

        This speaks of small deviations at one omega and tau. It does not say that the point is (0, 1), that units with
        other weights or starts far away come to rest nearby, or that gradients keep their size (`backward_factor`).
        """
        return self.is_attracting and self.variance > 0


def fixed_point(
    activation: Activation,
    *,
    omega: float = 0.0,
    tau: float = 1.0,
    start: tuple[float, float] = (0.0, 1.0),
    kinks: Sequence[float] = (0.0,),
) -> FixedPoint:
    """Follow mean and variance through layers f(z), z ~ N(mean * omega, variance * tau), to where they come to rest.

    The layer is applied up to 1,000 times, in the end with half steps; if it still moves, Newton's steps go on the same
    way. A variance that dies out is a result. The point found is the one this start leads to; others may exist.

    Args:
        activation: An elementwise, continuous function of a float64 tensor.
        omega: Sum of a unit's weights.
        tau: Sum of their squares, above 0: 1 for LeCun's initialization, 2 for He's.
        start: Mean and variance of the first layer's inputs.
        kinks: Where the slope jumps, e.g. (-1, 1) for `Hardtanh`. Elsewhere it must be smooth.

    Raises:
        ValueError: tau or the start's variance not above 0, an activation that is not elementwise or jumps at a kink,
            or no fixed point reached from this start.

    Example:
        >>> import torch
        >>> point = fixed_point(torch.nn.SELU())
        >>> round(point.variance, 6), point.normalizes, round(point.singular_value, 4), round(point.backward_factor, 5)
        (1.0, True, 0.7877, 1.07157)
        >>> relu = fixed_point(torch.nn.ReLU())
        >>> relu.variance, relu.normalizes
        (0.0, False)

    Reference:
        arXiv 1706.02515, Definition 1; chi: Schoenholz et al., "Deep information propagation", arXiv 1611.01232.
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"fixed_point: tau must be above 0 and finite. Got {tau}. Use the sum of squared weights.")
    if not (math.isfinite(start[0]) and 0 < start[1] < math.inf):
        raise ValueError(f"fixed_point: start must be a mean and a variance above 0. Got {start}. Use (0.0, 1.0).")
    _check(activation, kinks)
    layer = _Layer(activation, omega, tau, tuple(kinks))
    mean, variance = layer.rest(*start)
    residual = layer.change(mean, variance)
    if not residual <= 1e-9 * max(1.0, abs(mean), variance):
        endless = not max(abs(mean), variance) < _ENDLESS
        moves = f"one more layer changes mean {mean:.4g} and variance {variance:.4g} by {residual:.2g}"
        raise ValueError(
            f"fixed_point: no fixed point was reached from start {start}: "
            f"{'they grow without end' if endless else moves}. Use a smaller tau, or another start."
        )
    jacobian, backward_factor = layer.slopes(mean, variance)
    (a, b), (c, d) = jacobian.tolist()
    spread = complex((a - d) ** 2 / 4 + b * c) ** 0.5
    return FixedPoint(
        mean,
        variance,
        residual,
        jacobian,
        singular_value=torch.linalg.matrix_norm(jacobian, 2).item(),
        spectral_radius=max(abs((a + d) / 2 + spread), abs((a + d) / 2 - spread)),
        backward_factor=backward_factor,
    )


def moments(activation: Activation, mean: float, std: float, *, kinks: Sequence[float] = (0.0,)) -> tuple[float, float]:
    """Mean and variance of f(z), z ~ N(mean, std^2), by Gauss-Legendre quadrature between the kinks.

    Equal to closed forms to 1e-12 where f is smooth between its kinks, or changes over widths not far below `std`.

    Args:
        activation: An elementwise function of a float64 tensor.
        mean: Mean of its inputs.
        std: Their standard deviation; at 0 the result is f(mean) and 0.
        kinks: Where the function or its slope jumps.

    Example:
        >>> import torch
        >>> mean, variance = moments(torch.relu, 0.0, 1.0)
        >>> round(mean**2 * 2 * 3.141592653589793, 12), round(mean**2 + variance, 12)
        (1.0, 0.5)
    """
    y, weight = _quadrature(mean, std, kinks)
    with torch.no_grad():
        value = activation(mean + std * y)
    center = (weight * value).sum()
    return center.item(), (weight * (value - center) ** 2).sum().item()


@dataclass(frozen=True)
class _Layer:
    activation: Activation
    omega: float
    tau: float
    kinks: tuple[float, ...]

    def __call__(self, mean: float, variance: float) -> tuple[float, float]:
        return moments(self.activation, mean * self.omega, math.sqrt(variance * self.tau), kinks=self.kinks)

    def change(self, mean: float, variance: float) -> float:
        """How far one more layer moves (mean, variance)."""
        after = self(mean, variance)
        return max(abs(after[0] - mean), abs(after[1] - variance))

    def rest(self, mean: float, variance: float) -> tuple[float, float]:
        """Where (mean, variance) come to rest; the last place reached where they don't."""
        before = variance
        for step in range(1000):
            after = self(mean, variance)
            if not all(abs(value) < _ENDLESS for value in after):
                return after
            share = 1.0 if step < 800 else 0.5
            new = mean + share * (after[0] - mean), variance + share * (after[1] - variance)
            if new[1] < min(variance, _COLLAPSED):
                new = new[0], 0.0
            if new == (mean, variance):
                return new
            before, (mean, variance) = variance, new
        return self._newton(mean, variance, variance - before)

    def _newton(self, mean: float, variance: float, way: float) -> tuple[float, float]:
        """Newton's steps from where the layers still move the variance along `way`; turning back is refused."""
        left = self.change(mean, variance)
        for _ in range(100):
            if variance == 0 or left == 0:
                break
            after = self(mean, variance)
            gap = torch.tensor([after[0] - mean, after[1] - variance], dtype=torch.float64)
            step = torch.linalg.pinv(torch.eye(2, dtype=torch.float64) - self.slopes(mean, variance)[0]) @ gap
            new = mean + step[0].item(), max(variance + step[1].item(), variance / 10)
            turned = (new[1] - variance) * way < 0 and abs(new[1] - variance) > 1e-6 * variance
            if turned or not (now := self.change(*new)) < left:
                break
            left, (mean, variance) = now, new
            if variance < _COLLAPSED and way < 0:
                mean, variance = self(mean, 0.0)
        return mean, variance

    def slopes(self, mean: float, variance: float) -> tuple[Tensor, float]:
        """Jacobian of the layer by (mean, variance), and chi; by Stein's identities, E[g'(y)] = E[g(y) y]."""
        m, s = mean * self.omega, math.sqrt(variance * self.tau) or _SPREAD_AT_ZERO
        y, weight = _quadrature(m, s, self.kinks)
        with torch.enable_grad():
            z = (m + s * y).requires_grad_()
            value = self.activation(z.clone())
            slope = torch.autograd.grad(value.sum(), z)[0] if value.requires_grad else torch.zeros_like(z)
        value = value.detach()
        value = value - (weight * value).sum()

        def expect(x: Tensor) -> Tensor:
            return (weight * x).sum()

        jacobian = torch.stack(
            [
                self.omega * expect(slope),
                self.tau * expect(slope * y) / (2 * s),
                self.omega * 2 * expect(value * slope),
                self.tau * expect(value * slope * y) / s,
            ]
        )
        return jacobian.reshape(2, 2), self.tau * expect(slope**2).item()


def _quadrature(mean: float, std: float, kinks: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Points y and weights for expectations over a standard normal y, where f is evaluated at mean + std * y.

    Panels are half a standard deviation wide, and around each kink as wide as their distance from it, so that what f
    does at the scale of 1 is seen by a std of any size.
    """
    if std == 0:
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    steps = 2.0 ** np.arange(-3, 24)
    around = np.concatenate([-steps, [0.0], steps])
    edges = [np.arange(-_FARTHEST, _FARTHEST + 0.25, 0.5), *((kink - mean + around) / std for kink in kinks)]
    edge = np.unique(np.clip(np.concatenate(edges), -_FARTHEST, _FARTHEST))
    node, weight = _legendre(16)
    width = np.diff(edge)[:, None]
    y = edge[:-1, None] + width * node
    density = np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(y.ravel()), torch.from_numpy((width * weight * density).ravel())


@cache
def _legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on (0, 1)."""
    node, weight = np.polynomial.legendre.leggauss(count)
    return (node + 1) / 2, weight / 2


def _check(activation: Activation, kinks: Sequence[float]) -> None:
    """Refuse what is not elementwise, or jumps at a kink."""
    probe = torch.tensor([-1.5, 0.25, 2.0], dtype=torch.float64)
    with torch.no_grad():
        try:
            one, many = activation(probe[:1].clone()), activation(probe.clone())
        except RuntimeError as error:
            raise ValueError(
                "fixed_point: activation must take float64 tensors of any size. "
                f"Got one that raises {type(error).__name__}. Use e.g. torch.nn.PReLU().double()."
            ) from error
        if many.shape != probe.shape or not torch.equal(one, many[:1]):
            raise ValueError(
                "fixed_point: activation must be elementwise and without randomness. "
                f"Got {many.tolist()} for {probe.tolist()} but {one.tolist()} for its first. Use e.g. torch.tanh."
            )
        for kink in kinks:
            below, above = activation(torch.tensor([kink - 1e-9, kink + 1e-9], dtype=torch.float64)).tolist()
            if abs(above - below) > 1e-4:
                raise ValueError(
                    f"fixed_point: activation must be continuous. Got a jump from {below:.4g} to {above:.4g} "
                    f"at {kink}. Use a continuous one: a jump has no slope."
                )


@dataclass(frozen=True)
class SeluParameters:
    """The SELU with a wanted fixed point, and how well it keeps it.

    Attributes:
        alpha: SELU's alpha.
        scale: SELU's lambda.
        residual: Largest distance of `moment_map(mean, variance, ...)` from (mean, variance): the certificate.
    """

    alpha: float
    scale: float
    residual: float


def selu_parameters(
    mean: float = 0.0, variance: float = 1.0, *, omega: float = 0.0, tau: float = 1.0
) -> SeluParameters:
    """The alpha and lambda for which (mean, variance) is a fixed point of the moment map.

    With P, P2 the first two moments of z on z > 0 and A, B those of 1 - e^z on z < 0, the outputs' mean and second
    moment are lambda (P - alpha A) and lambda^2 (P2 + alpha^2 B). Their ratio is that of the target for exactly one
    alpha, the root of a quadratic; lambda follows. For (0, 1) this is eq. 14.

    Args:
        mean: The wanted mean.
        variance: The wanted variance, above 0.
        omega: Sum of a unit's weights, for which the point is fixed; matters if the mean is not 0. The author's
            notebook `getSELUparameters` takes 1, the paper's theory 0.
        tau: Sum of their squares, above 0.

    Returns:
        The parameters and their residual. That the point is fixed says nothing of whether it attracts: ask
        `fixed_point` or `moment_jacobian`.

    Raises:
        ValueError: Variance or tau not above 0, a mean or omega that is not finite, or a mean too far from 0 for any
            SELU with alpha and lambda above 0.

    Example:
        >>> found = selu_parameters(0.0, 2.0)
        >>> round(found.alpha, 5), round(found.scale, 5), found.residual < 1e-14
        (1.97126, 1.06071, True)

    Reference:
        arXiv 1706.02515, eq. 14 and appendix A5 (other fixed points).
    """
    for name, value in (("mean", mean), ("omega", omega)):
        if not math.isfinite(value):
            raise ValueError(f"selu_parameters: {name} must be finite. Got {value}. Use 0.0.")
    for name, value in (("variance", variance), ("tau", tau)):
        if not 0 < value < math.inf:
            raise ValueError(f"selu_parameters: {name} must be above 0 and finite. Got {value}. Use 1.0.")
    m, v = mean * omega, variance * tau
    P, P2, A, B = (part.item() for part in sides(*torch.tensor([m, v], dtype=torch.float64)))
    k = mean / math.hypot(mean, math.sqrt(variance))
    if not (k * k * P2 < P * P if k > 0 else k * k * B < A * A):
        low, high = (edge * math.sqrt(variance) for edge in (-A / math.sqrt(B - A * A), P / math.sqrt(P2 - P * P)))
        raise ValueError(
            f"selu_parameters: mean must be in ({low:.4g}, {high:.4g}), the reach of a SELU for variance {variance} "
            f"and inputs N({m:.4g}, {v:.4g}). Got {mean}. Use a mean nearer 0 or a larger variance."
        )
    root = k * math.sqrt(A * A * P2 + B * (P * P - k * k * P2))
    alpha = (P * P - k * k * P2) / (P * A + root) if k > 0 else (P * A - root) / (A * A - k * k * B)
    scale = math.hypot(mean, math.sqrt(variance)) / math.sqrt(P2 + alpha * alpha * B)
    got = moment_map(mean, variance, omega, tau, alpha=alpha, scale=scale)
    residual = max(abs(got[0].item() - mean), abs(got[1].item() - variance))
    return SeluParameters(alpha, scale, residual)
