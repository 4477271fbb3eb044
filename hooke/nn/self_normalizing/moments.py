"""How one layer of a self-normalizing net moves mean and variance: the analytic map g of the paper, without its limits.

A unit's input is z ~ N(m, v) with m = mean * omega and v = variance * tau, where omega is the sum of its weights and
tau the sum of their squares. The paper's closed forms (eqs. 4, 5) overflow for large v, and where the variance is small
beside the squared mean, or beside 1, they lose every digit. Here all is measured from the median, f(m):

    D = f(z) - f(m)      mean' = scale * (f(m) + E[D])      variance' = scale^2 * (E[D^2] - E[D]^2)

A mean lies within one standard deviation of a median, so E[D^2] is at most twice the variance and no digit is lost.
What lies beyond the kink at 0 is written in scaled tails T_n (`_tail`), which neither overflow nor cancel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ALPHA: float = 1.6732632423543772848
"""alpha of the SELU whose fixed point is (0, 1): sqrt(2/pi) / (1 - erfc(1/sqrt(2)) sqrt(e)), eq. 14."""

SCALE: float = 1.0507009873554804934
"""lambda of that SELU, by the closed form in eq. 14."""

_FARTHEST = 40.0  # standard deviations; the normal density there is 0 in float64
_LEAST = 1e-200  # a variance below it counts as 0
_CHANGE, _TERMS = 3.0, 50  # from where on T_n is a continued fraction, and how many terms float64 needs there
_SMALL = 0.25  # a standard deviation below it takes integrated derivatives instead of differences


def moment_map(
    mean: float | Tensor,
    variance: float | Tensor,
    omega: float | Tensor = 0.0,
    tau: float | Tensor = 1.0,
    *,
    alpha: float = ALPHA,
    scale: float = SCALE,
) -> tuple[Float[Tensor, " ..."], Float[Tensor, " ..."]]:
    """Mean and variance after one layer: the moments of selu(z), z ~ N(mean * omega, variance * tau).

    Correct to a relative 1e-12 for variances from 1e-200 to 1e200 and any mean, up to the point where a result leaves
    float64; a mean that crosses zero is correct to 1e-15 of its two parts. Differentiable, also twice. At variance 0 it
    is the limit: the value of selu, and variance 0.

    Args:
        mean: Mean of the layer's inputs; floats and tensors broadcast.
        variance: Their variance, at least 0.
        omega: Sum of a unit's weights.
        tau: Sum of their squares, at least 0.
        alpha: SELU's alpha.
        scale: SELU's lambda.

    Returns:
        Mean and variance of the layer's outputs, float64.

    Raises:
        ValueError: A negative variance or tau.

    Example:
        >>> mean, variance = moment_map(0.0, 1.5, omega=0.0, tau=1.1)
        >>> round(mean.item(), 4), round(variance.item(), 4)
        (0.0585, 1.4768)

    Reference:
        Klambauer et al., "Self-normalizing neural networks", arXiv 1706.02515, eqs. 4 and 5.
    """
    m, v = _preactivation("moment_map", mean, variance, omega, tau)
    around = _around_median(m, v, alpha)
    shift, square = _zero_at_zero(around.shift, v), _zero_at_zero(around.square, v)
    return scale * (_value(m, alpha) + shift), scale**2 * (square - shift**2)


def moment_jacobian(
    mean: float | Tensor,
    variance: float | Tensor,
    omega: float | Tensor = 0.0,
    tau: float | Tensor = 1.0,
    *,
    alpha: float = ALPHA,
    scale: float = SCALE,
) -> Float[Tensor, "... 2 2"]:
    """The Jacobian of `moment_map` by mean and variance, in closed form.

        d mean' / dm = E[f']        d variance' / dm = 2 Cov(f, f')
        d mean' / dv = E[f''] / 2   d variance' / dv = E[f'^2] + Cov(f, f'')

    with f'' having an atom of weight 1 - alpha at 0; then times omega and tau. At variance 0 and mean 0 the slope by
    variance has no limit: it is the one at variance 1e-200.

    Args:
        mean: As in `moment_map`.
        variance: As in `moment_map`.
        omega: As in `moment_map`.
        tau: As in `moment_map`.
        alpha: As in `moment_map`.
        scale: As in `moment_map`.

    Returns:
        [[d mean'/d mean, d mean'/d variance], [d variance'/d mean, d variance'/d variance]], float64.

    Raises:
        ValueError: A negative variance or tau.

    Example:
        >>> torch.linalg.matrix_norm(moment_jacobian(0.0, 1.0), 2).round(decimals=4).item()
        0.7877

    Reference:
        The map's are arXiv 1706.02515, eqs. 4 and 5; its norm at (0, 1) is in the section on that fixed point.
    """
    m, v = _preactivation("moment_jacobian", mean, variance, omega, tau)
    omega, tau = _float64(omega, tau, m)[:2]
    a = _around_median(m, v, alpha)
    slope = torch.where(m >= 0, 1.0, alpha * m.clamp(max=0).exp()) + a.slope_shift
    rows = (
        scale * omega * slope,
        scale * tau * a.bend / 2,
        scale**2 * omega * 2 * (a.with_slope - a.shift * a.slope_shift),
        scale**2 * tau * (a.slope_square + a.with_bend - a.shift * a.bend),
    )
    return torch.stack(torch.broadcast_tensors(*rows), -1).unflatten(-1, (2, 2))


def _float64(*values: float | Tensor) -> tuple[Tensor, ...]:
    """The values as float64 tensors on one device, broadcast."""
    device = next((value.device for value in values if isinstance(value, Tensor) and value.dim()), None)
    tensors = (torch.as_tensor(value, dtype=torch.float64, device=device) for value in values)
    return tuple(torch.broadcast_tensors(*tensors))


def _preactivation(who: str, *given: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of z."""
    mean, variance, omega, tau = _float64(*given)
    for name, value, usual in (("variance", variance, "1.0"), ("tau", tau, "the sum of squared weights")):
        if (value < 0).any():
            raise ValueError(f"{who}: {name} must be at least 0. Got {value.min().item():.6g}. Use {usual}.")
    return mean * omega, variance * tau


def _value(m: Tensor, alpha: float) -> Tensor:
    """f(m), the activation without its scale."""
    return torch.where(m >= 0, m, alpha * torch.expm1(m.clamp(max=0)))


def _zero_at_zero(moment: Tensor, v: Tensor) -> Tensor:
    """The moment, exactly 0 where v is 0, with the slope it has beside it."""
    return torch.where(v < _LEAST, moment - moment.detach(), moment)


class _AroundMedian(NamedTuple):
    """Expectations over z ~ N(m, v), with D = f(z) - f(m)."""

    shift: Tensor  # E[D]
    square: Tensor  # E[D^2]
    slope_shift: Tensor  # E[f' - f'(m)]
    with_slope: Tensor  # E[D (f' - f'(m))]
    slope_square: Tensor  # E[f'^2]
    bend: Tensor  # E[f''], the atom at 0 included
    with_bend: Tensor  # E[D f'']


def _around_median(m: Tensor, v: Tensor, alpha: float) -> _AroundMedian:
    s = torch.where(v < _LEAST, v + _LEAST, v).sqrt()
    kink = _kink(m, s)
    sides = zip(_above(m.clamp(min=0), s, kink, alpha), _below(m.clamp(max=0), s, kink, alpha), strict=True)
    return _AroundMedian(*(torch.where(m >= 0, above, below) for above, below in sides))


def sides(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and second moment of z ~ N(m, v) on z > 0, then of 1 - e^z on z < 0; v above 0."""
    s = v.sqrt()
    k = _kink(m, s)
    c = -torch.expm1(m.clamp(max=0))
    (a, b), (n1, n2) = _losses(s, k), _near(m.clamp(max=0), s, k)
    above = m * k.inside + s * k.density, (m**2 + v) * k.inside + m * s * k.density, k.density * a, k.density * b
    below = k.density * s * k.t1, k.density * v * k.t2, c * k.inside - n1, c**2 * k.inside - 2 * c * n1 + n2
    p, p2, a, b = (torch.where(m >= 0, one, other) for one, other in zip(above, below, strict=True))
    return p, p2, a, b


class _Kink(NamedTuple):
    """What lies beyond the kink at 0, as seen from m. Its t counts standard deviations s beyond the kink."""

    u: Tensor  # distance of the kink from m, in s
    density: Tensor  # normal density there
    inside: Tensor  # probability of m's side
    t0: Tensor  # T_0(u), T_1(u), T_2(u)
    t1: Tensor
    t2: Tensor
    a: Tensor  # integral of (1 - e^(-h t)) e^(-u t - t^2/2) over t > 0, for h = s where m >= 0, else -s; s to _SMALL
    b: Tensor  # that of (1 - e^(-h t))^2


def _kink(m: Tensor, s: Tensor) -> _Kink:
    u = (torch.where(m >= 0, m, -m) / s).clamp(max=_FARTHEST)
    density = torch.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    t0, t1, t2 = (_tail(u, n) for n in range(3))
    h = torch.where(m >= 0, 1.0, -1.0) * s.clamp(max=_SMALL)
    # differences of T_0 as integrals of T_2, its second derivative: no digits are lost for small h
    nodes, weights = _NODES.to(u.device), _WEIGHTS.to(u.device)
    first, second = _tail(u[..., None] + h[..., None] * torch.cat([nodes, nodes + 1]), 2).chunk(2, -1)
    a = h * t1 - h**2 * (first * (1 - nodes) * weights).sum(-1)
    b = h**2 * ((first * nodes + second * (1 - nodes)) * weights).sum(-1)
    return _Kink(u, density, 1 - density * t0, t0, t1, t2, a, b)


def _above(m: Tensor, s: Tensor, k: _Kink, alpha: float) -> _AroundMedian:
    """m >= 0: f is the identity around m; beyond the kink, at z = -s t, it is alpha (e^(-s t) - 1)."""
    a, b = _losses(s, k)
    first, second = _tail(k.u + s, 0), _tail(k.u + 2 * s, 0)
    beyond = alpha**2 * b + 2 * m * alpha * a + m**2 * k.t0
    return _AroundMedian(
        shift=k.density * (s * k.t1 - alpha * a),
        square=s**2 * (k.inside - k.u * k.density) + k.density * beyond,
        slope_shift=k.density * (alpha * first - k.t0),
        with_slope=k.density * (alpha**2 * b - (alpha - 1) * (alpha * a + m * k.t0) + alpha * m * a),
        slope_square=k.inside + alpha**2 * k.density * second,
        bend=k.density * (alpha * first + (1 - alpha) / s),
        with_bend=k.density * (alpha * ((m - alpha) * a + alpha * b - m * k.t0) - (1 - alpha) * m / s),
    )


def _below(m: Tensor, s: Tensor, k: _Kink, alpha: float) -> _AroundMedian:
    """m < 0: D is alpha e^m (e^(z-m) - 1) around m; beyond the kink, at z = s t, it is s t + c with c = -f(m)."""
    n1, n2 = _near(m, s, k)
    c, at = -alpha * torch.expm1(m), m.exp()
    beyond = k.density * (s * k.t1 + c * k.t0)
    return _AroundMedian(
        shift=alpha * n1 + beyond,
        square=alpha**2 * n2 + k.density * (s**2 * k.t2 + 2 * c * s * k.t1 + c**2 * k.t0),
        slope_shift=alpha * n1 + (1 - alpha * at) * k.density * k.t0,
        with_slope=alpha**2 * n2 + (1 - alpha * at) * beyond,
        slope_square=alpha**2 * (at**2 * k.inside + 2 * at * n1 + n2) + k.density * k.t0,
        bend=alpha * (at * k.inside + n1) + (1 - alpha) * k.density / s,
        with_bend=alpha**2 * (at * n1 + n2) + (1 - alpha) * c * k.density / s,
    )


def _losses(s: Tensor, k: _Kink) -> tuple[Tensor, Tensor]:
    """Integrals of (1 - e^(-s t))^i e^(-u t - t^2/2) over t > 0, for i = 1, 2 and m >= 0."""
    big = s.clamp(min=_SMALL)
    first, second = _tail(k.u + big, 0), _tail(k.u + 2 * big, 0)
    a, b = k.t0 - first, k.t0 - 2 * first + second
    return torch.where(s < _SMALL, k.a, a), torch.where(s < _SMALL, k.b, b)


def _near(m: Tensor, s: Tensor, k: _Kink) -> tuple[Tensor, Tensor]:
    """E[e^z - e^m] and E[(e^z - e^m)^2] over z < 0, for m <= 0; where s is small, over all z less those beyond 0."""
    small, at, c = s.clamp(max=_SMALL), m.exp(), -torch.expm1(m)
    half, double = torch.expm1(small**2 / 2), torch.expm1(2 * small**2)
    series1 = at * half - k.density * (c * k.t0 - k.a)
    series2 = at**2 * (double - 2 * half) - k.density * (k.b - 2 * c * k.a + c**2 * k.t0)
    first, second = _exponential(m, s, k, 1), _exponential(m, s, k, 2)
    direct1, direct2 = first - at * k.inside, second - 2 * at * first + at**2 * k.inside
    return torch.where(s < _SMALL, series1, direct1), torch.where(s < _SMALL, series2, direct2)


def _exponential(m: Tensor, s: Tensor, k: _Kink, power: int) -> Tensor:
    """E[e^(power z)] over z < 0, for m <= 0, in whichever of two forms can't overflow."""
    beyond = power * s - k.u
    outside = torch.exp(-(beyond.clamp(max=0) ** 2) / 2) / math.sqrt(2 * math.pi) * _tail((-beyond).clamp(min=0), 0)
    half = torch.exp(power * m / 2)  # keeps the digits that the sum of the two exponents would round away
    whole = half * torch.exp(((power * s) ** 2 / 2).clamp(max=700)) * half
    return torch.where(beyond > 0, k.density * _tail(beyond.clamp(min=0), 0), whole * (1 - outside))


_NODES, _WEIGHTS = (torch.from_numpy(values / 2) for values in np.polynomial.legendre.leggauss(6))
_NODES = _NODES + 0.5


def _tail(x: Tensor, n: int) -> Tensor:
    """T_n(x), the integral of t^n e^(-x t - t^2/2) over t > 0; T_0 is Mills' ratio of the normal distribution."""
    tail: Any = _Tail.apply(x, n)
    return tail


class _Tail(torch.autograd.Function):
    """T_n' = -T_(n+1), so every derivative is as exact as the value."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, n: int) -> Tensor:
        """Up from T_0 by recurrence while that keeps the digits, else by the continued fraction of T_n / T_(n-1)."""
        first = math.sqrt(math.pi / 2) * torch.special.erfcx(x / math.sqrt(2))
        if n == 0:
            return first
        near, far = x.clamp(max=_CHANGE), x.clamp(min=_CHANGE)
        before, up = torch.ones_like(x), first
        for k in range(n):
            before, up = up, max(k, 1) * before - near * up
        share, down = (torch.sqrt(far**2 + 4 * _TERMS) - far) / (2 * _TERMS), first  # T_k / (k T_(k-1))
        for k in range(_TERMS, 0, -1):
            share = torch.add(far, share, alpha=k + 1).reciprocal_()
            if k <= n:
                down = k * down * share
        return torch.where(x < _CHANGE, up, down)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        """Keep the point."""
        x, ctx.n = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """-T_(n+1)."""
        (x,) = ctx.saved_tensors
        return -gradients[0] * _tail(x, ctx.n + 1), None
