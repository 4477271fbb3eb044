"""One question for every rule: is this setting stable, by how much, and what would repair it?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hooke.stability.border import way_border
from hooke.stability.linear_map import HUGE, Spring, last, radius_in_turn
from hooke.stability.setting import check_elastic, check_momentum, check_setting, rounded_down

if TYPE_CHECKING:
    from hooke.rule import Rule

BETA = 0.9
"""As `hooke.rule.DEFAULT_BETA`."""

PERIOD = 10
"""As `hooke.worker.DEFAULT_PERIOD`."""


@dataclass(frozen=True)
class Stability:
    """Whether a setting is stable, how far it is from the border, and what would repair it.

    Attributes:
        radius: Factor by which the slowest (or fastest growing) mode changes per period along the top curvature, where
            the workers take turns in a fixed order, or exchange at once. Below 1 it decays.
        border: Smallest lr * curvature that is not stable; 0 if none is stable.
        margin: Largest stable learning rate, divided by this one. Above 1: stable.
        remedy: What to change, in one sentence; empty if it is stable.

    Example:
        >>> Stability(radius=0.9, border=0.5, margin=2.5, remedy="").is_stable
        True
    """

    radius: float
    border: float
    margin: float
    remedy: str

    @property
    def is_stable(self) -> bool:
        """Whether every direction up to the top curvature decays."""
        return self.margin > 1


def stability_of(
    rule: Rule,
    *,
    lr: float,
    curvature: float,
    num_workers: int,
    communication_period: int = PERIOD,
    momentum: float = 0.0,
    synchronous: bool = False,
    steps_under_way: int | None = None,
) -> Stability:
    """Whether `rule` around SGD is stable, and what would make it so.

    Args:
        rule: `hooke.EASGD`, `hooke.EAMSGD`, `hooke.Downpour`, `hooke.LocalSGD` or `hooke.Lookahead`; where all workers
            exchange at once also `hooke.DiLoCo` and `hooke.SlowMo`. A running average around it (`hooke.Averaged`)
            changes nothing.
        lr: Learning rate of the workers' SGD.
        curvature: Largest eigenvalue of the loss's Hessian.
        num_workers: p.
        communication_period: tau, in steps of a worker.
        momentum: Of Nesterov SGD; only beside `EAMSGD`.
        synchronous: Whether all workers exchange at once (`ReplicatedCenter`). Default: one by one (`LocalCenter`).
        steps_under_way: Steps that a worker takes between an exchange's beginning and its correction, at most tau.
            Default: what the rule's order says, without overlap.

    Raises:
        ValueError: A number outside its range, or a rule whose stability is not known.

    Example:
        >>> from hooke.rule import EASGD, Downpour
        >>> setting = dict(lr=0.05, curvature=1.0, num_workers=4, communication_period=16)
        >>> round(stability_of(EASGD(), **setting).radius, 3)
        0.578
        >>> stability_of(Downpour(), **setting).remedy
        'Lower lr below 0.0361, or communication_period to 11 or less, or use EASGD, which is stable here.'
    """
    from hooke.averaged import Averaged
    from hooke.outer import DiLoCo, Lookahead, SlowMo
    from hooke.rule import EAMSGD, EASGD, Downpour, LocalSGD

    rule = rule.rule if isinstance(rule, Averaged) else rule
    setting = {"lr": lr, "curvature": curvature, "num_workers": num_workers, "period": communication_period}
    if momentum and type(rule) is not EAMSGD:
        raise ValueError(
            f"stability_of: momentum must be 0 beside {type(rule).__name__}. Got {momentum}. Use hooke.EAMSGD()."
        )
    if type(rule) in (EASGD, EAMSGD):
        assert isinstance(rule, EASGD)
        order = 1 if rule.order == "jacobi" else 0
        return elastic_stability(
            **setting,
            moving_rate=rule.bind(num_workers)._alpha,
            momentum=momentum,
            synchronous=synchronous,
            steps_under_way=order if steps_under_way is None else steps_under_way,
        )
    if type(rule) not in (Downpour, LocalSGD, Lookahead, DiLoCo, SlowMo):
        raise ValueError(
            "stability_of: rule must be EASGD, EAMSGD, Downpour, LocalSGD, Lookahead, DiLoCo or SlowMo. "
            f"Got {rule!r}. Judge it by a short run."
        )
    if steps_under_way:
        raise ValueError(
            f"stability_of: steps_under_way must be 0 beside {type(rule).__name__}. Got {steps_under_way}. "
            "Use an elastic rule where exchanges overlap."
        )
    if getattr(rule, "mixing", 0.0):
        raise ValueError(
            f"stability_of: mixing must be 0. Got {rule.mixing}. Judge it by a short run."  # type: ignore[attr-defined]
        )
    if isinstance(rule, DiLoCo | SlowMo):
        if not synchronous and num_workers > 1:
            raise ValueError(
                f"stability_of: synchronous must be True beside {type(rule).__name__}. Got False. Where workers "
                "exchange one by one its momentum fades with each of them: judge that by a short run."
            )
        if isinstance(rule, DiLoCo):
            return outer_stability(**setting, outer_lr=rule.outer_lr, outer_momentum=rule.outer_momentum)
        return outer_stability(**setting, outer_lr=rule.slow_lr, outer_momentum=rule.slow_momentum, nesterov=False)
    share = 1.0 if isinstance(rule, Downpour) else 1 / (getattr(rule, "num_workers", None) or num_workers)
    share *= rule.alpha if isinstance(rule, Lookahead) else 1.0
    return way_stability(**setting, share=share, synchronous=synchronous)


def way_stability(
    *,
    lr: float,
    curvature: float,
    num_workers: int,
    period: int = PERIOD,
    share: float = 1.0,
    synchronous: bool = False,
) -> Stability:
    """As `stability_of`, for rules whose center absorbs a share of the way gone: 1 for DOWNPOUR, 1/p for Local SGD.

    Stable while `share * (1 - (1 - e) ** tau) < way_border(p)`, in every direction up to the top curvature: beyond
    e = 1 even periods hide the overshoot of the steepest direction, not that of the others.

    Example:
        >>> made = way_stability(lr=0.05, curvature=1.0, num_workers=4, period=16, synchronous=True)
        >>> round(made.radius, 4)  # |1 - 4 (1 - 0.95^16)|
        1.2395
    """
    check_setting(lr=lr, curvature=curvature, num_workers=num_workers, period=period)
    e, limit = lr * curvature, way_border(num_workers, synchronous=synchronous) / share
    border = _largest_rate(limit, period)
    with np.errstate(over="ignore"):
        pull = share * (1 - float(np.float64(1 - e) ** period))
    if synchronous:
        radius = abs(1 - num_workers * pull)
    else:
        radius = radius_in_turn(np.array([[-pull, 1.0], [-pull, 1.0]]), num_workers)
    ways = [] if e < border else _shorter_ways(lr, e, border, limit, period)
    if ways and Spring(BETA / num_workers, 0.0, period, 1, None).is_stable_up_to(e):
        ways.append("use EASGD, which is stable here")
    return Stability(radius, border, border / e, _lower(ways))


def outer_stability(
    *,
    lr: float,
    curvature: float,
    num_workers: int,
    period: int = PERIOD,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    nesterov: bool = True,
) -> Stability:
    """As `stability_of`, for `hooke.DiLoCo` and (without `nesterov`) `hooke.SlowMo`: all workers exchange at once.

    All begin at the center, so their mean way is `-g c` with `g = 1 - (1 - e) ** tau`, and the outer optimizer sees a
    bowl of curvature g. With m for its momentum:

        Nesterov:  outer_lr g < (2 + 2 m) / (1 + 2 m)        heavy ball:  outer_lr g < 2 + 2 m

    Args:
        lr: Of the workers' SGD.
        curvature: Largest eigenvalue of the Hessian.
        num_workers: p.
        period: tau.
        outer_lr: Of the outer optimizer; `slow_lr` of SlowMo.
        outer_momentum: m; `slow_momentum` of SlowMo.
        nesterov: Whether the outer momentum is Nesterov's.

    Raises:
        ValueError: A number outside its range.

    Example:
        >>> made = outer_stability(lr=0.5, curvature=1.0, num_workers=8, outer_lr=1.5)
        >>> made.is_stable, made.remedy
        (False, 'Lower lr below 0.209, or communication_period to 3 or less, or outer_lr below 1.35.')
    """
    check_setting(lr=lr, curvature=curvature, num_workers=num_workers, period=period, outer_lr=outer_lr)
    check_momentum("outer_momentum", outer_momentum)
    m, e = outer_momentum, lr * curvature
    ahead = m if nesterov else 0.0
    limit = (2 + 2 * m) / (1 + 2 * ahead) / outer_lr
    border = _largest_rate(limit, period)
    with np.errstate(over="ignore"):
        g = 1 - float(np.float64(1 - e) ** period)
    if not abs(g) < HUGE:
        radius = math.inf
    else:  # rows: c, b
        step = np.array([[1 - outer_lr * g * (1 + ahead), outer_lr * m * (m if nesterov else 1)], [-g, m]])
        radius = float(np.abs(np.linalg.eigvals(step)).max())
    ways = [] if e < border else _shorter_ways(lr, e, border, limit, period)
    if ways and e <= 1:
        ways.append(f"outer_lr below {rounded_down(outer_lr * limit / g)}")
    return Stability(radius, border, border / e, _lower(ways))


def _largest_rate(limit: float, period: int) -> float:
    """Up to which e no direction goes further than `limit` in one period."""
    if abs(limit - 1) < 1e-12:  # two workers in turn
        return 1.0
    if limit < 1:
        return -math.expm1(math.log1p(-limit) / period)
    return 1 + (limit - 1) ** (1 / period) if period % 2 else 2.0


def _shorter_ways(lr: float, e: float, border: float, limit: float, period: int) -> list[str]:
    """What keeps the way of one period below the limit."""
    ways = [f"lr below {rounded_down(lr * border / e)}"]
    if e < min(1.0, _largest_rate(limit, 1)):
        ways.append(f"communication_period to {math.ceil(math.log1p(-limit) / math.log1p(-e)) - 1} or less")
    return ways


def _lower(ways: list[str]) -> str:
    return f"Lower {', or '.join(ways)}." if ways else ""


def elastic_stability(
    *,
    lr: float,
    curvature: float,
    num_workers: int,
    period: int = PERIOD,
    moving_rate: float | None = None,
    momentum: float = 0.0,
    steps_under_way: int = 1,
    synchronous: bool = False,
) -> Stability:
    """As `stability_of`, for EASGD (momentum 0) and EAMSGD.

    Workers that exchange one by one are called stable if the map of one worker and the center over one period
    lengthens no vector, in the norm `x^2 + v^2 (1 - e) / e + c^2` where there is momentum. Then no order and no
    difference of speed can make them diverge, nor, while e < 1, any missed exchange. That is cautious: in a fixed order
    a little more is stable, as `radius` tells. Workers that exchange at once are judged by the exact map of their mean
    and of their differences, one worker alone by its own.

    Args:
        lr: Learning rate.
        curvature: Largest eigenvalue of the Hessian.
        num_workers: p.
        period: tau.
        moving_rate: alpha. Default 0.9 / p.
        momentum: Of Nesterov SGD.
        steps_under_way: k: 1 for the order "jacobi", 0 for "gauss-seidel", more where exchanges overlap the steps.
        synchronous: Whether all workers exchange at once.

    Raises:
        ValueError: A number outside its range.

    Example:
        >>> made = elastic_stability(lr=1.5, curvature=1.0, num_workers=1, period=1)
        >>> made.is_stable, made.remedy
        (False, 'Lower lr below 0.363, or moving_rate below 0.4.')
    """
    alpha = min(1.0, BETA / max(1, num_workers)) if moving_rate is None else moving_rate
    check_setting(lr=lr, curvature=curvature, num_workers=num_workers, period=period)
    check_elastic(alpha, momentum, steps_under_way, 1 if synchronous else period)
    at_once = num_workers if synchronous or num_workers == 1 else None
    spring = Spring(alpha, momentum, period, steps_under_way, at_once)
    e, border = lr * curvature, spring.border()
    remedy = "" if e < border else _elastic_remedy(spring, lr, e, border)
    return Stability(spring.radius(e, num_workers), border, border / e, remedy)


def _elastic_remedy(spring: Spring, lr: float, e: float, border: float) -> str:
    def is_stable(rate: float) -> bool:
        return replace(spring, alpha=rate).is_stable_up_to(e)

    ways = [f"lr below {rounded_down(lr * border / e)}"] if border > 0 else []
    if is_stable(1e-3 * spring.alpha):
        ways.append(f"moving_rate below {rounded_down(last(is_stable, 1e-3 * spring.alpha, spring.alpha))}")
    return _lower(ways) or "Lower lr and moving_rate together."
