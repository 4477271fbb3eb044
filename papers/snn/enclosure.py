"""Interval arithmetic for the moment map: balls around its values, and a search that bounds a maximum.

The search keeps a heap of boxes. On each a ball (Arb's `arb`, by python-flint) encloses the function; the box with the
largest upper end is halved until that end is close to a value that is attained. All roundings go outward: the upper end
is a proof, an attained value above the limit is a counterexample.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from flint import arb, ctx

Box = tuple[float, float, float, float]
"""Lowest and highest m, lowest and highest v."""

Function = Callable[[arb, arb], arb]

BITS = 80
"""Precision of the search."""

_MOST_BOXES = 100_000


@dataclass(frozen=True)
class Bound:
    """What is known of a function's maximum over a rectangle.

    Attributes:
        upper: No value is above it: proved.
        attained: A value no larger than one that is attained.
        at: The point (m, v) where it is.
        box: The box that it was found in.
        boxes: How many boxes were looked at.
    """

    upper: float
    attained: float
    at: tuple[float, float]
    box: Box
    boxes: int


class Moments:
    """Balls for the outputs' moments and their derivatives, for all z ~ N(m, v) with m and v in given balls.

    With F the normal distribution function, f its density, u = m / sqrt(v) and L_k = E[e^(k z); z < 0] (eqs. 4, 5).
    """

    def __init__(self, m: arb, v: arb) -> None:
        alpha, scale = _constants()
        s = v.sqrt()
        u, root2 = m / s, arb(2).sqrt()
        self.above, below = (-u / root2).erfc() / 2, (u / root2).erfc() / 2
        density = (-u * u / 2).exp() / (2 * arb.pi()).sqrt()
        l1, l2 = ((k * m + k * k * v / 2).exp() * ((m + k * v) / (root2 * s)).erfc() / 2 for k in (1, 2))
        positive = m * self.above + s * density
        self.mean = scale * (positive + alpha * (l1 - below))
        square = scale**2 * (v * self.above + m * positive + alpha**2 * (l2 - 2 * l1 + below))
        self.variance = square - self.mean**2
        self.mean_m = scale * (self.above + alpha * l1)
        self.mean_v = scale * (alpha * l1 - (alpha - 1) * density / s) / 2
        square_m = 2 * scale**2 * (positive + alpha**2 * (l2 - l1))
        square_v = scale**2 * (self.above + alpha**2 * (2 * l2 - l1))
        self.variance_m = square_m - 2 * self.mean * self.mean_m
        self.variance_v = square_v - 2 * self.mean * self.mean_v


def moment_balls(m: arb, v: arb) -> tuple[arb, arb]:
    """Balls that enclose the outputs' mean and variance for every (m, v) in two balls.

    The direct formula and the mean value theorem around the midpoint both enclose them, so their intersection does; the
    second is the tighter one on small boxes.
    """
    whole, middle = Moments(m, v), Moments(arb(m.mid()), arb(v.mid()))
    dm, dv = m - m.mid(), v - v.mid()
    mean = whole.mean.intersection(middle.mean + whole.mean_m * dm + whole.mean_v * dv)
    variance = whole.variance.intersection(middle.variance + whole.variance_m * dm + whole.variance_v * dv)
    return mean, variance


def maximum(function: Function, rectangle: Box, limit: float, tolerance: float) -> Bound:
    """Enclose a function's maximum over a rectangle to `tolerance`; stop at once where it attains `limit`."""

    def look(box: Box) -> tuple[float, Box]:
        """The box's upper end, its sign turned so that the heap gives the largest first."""
        value = function(*_balls(box))
        return (-rounded_up(value) if value.is_finite() else -math.inf), box

    heap, boxes = [look(rectangle)], 1
    attained, where = -math.inf, rectangle
    while True:
        upper = -heap[0][0]
        close = upper <= attained + tolerance and upper < limit
        if close or attained >= limit or boxes >= _MOST_BOXES:
            return Bound(upper, attained, _middle(where), where, boxes)
        for half in _halves(heapq.heappop(heap)[1]):
            m, v = _middle(half)
            value = -rounded_up(-function(arb(m), arb(v)))
            if value > attained:
                attained, where = value, half
            heapq.heappush(heap, look(half))
            boxes += 1


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[1]) / 2, (box[2] + box[3]) / 2


def _halves(box: Box) -> tuple[Box, Box]:
    """The two halves across the side along which the moments change more: m is measured in sqrt(v), v in v."""
    m0, m1, v0, v1 = box
    m, v = _middle(box)
    if (m1 - m0) * v**0.5 > v1 - v0:
        return (m0, m, v0, v1), (m, m1, v0, v1)
    return (m0, m1, v0, v), (m0, m1, v, v1)


def _balls(box: Box) -> tuple[arb, arb]:
    return arb(box[0]).union(arb(box[1])), arb(box[2]).union(arb(box[3]))


def ball(number: float) -> arb:
    """The decimal number that is meant, 0.1, and the binary fraction beside it."""
    return arb(repr(number)).union(arb(number))


def rounded_up(value: arb) -> float:
    """A float not below any number of the ball."""
    upper = value.upper()
    rounded = float(upper)
    return rounded if arb(rounded) >= upper else math.nextafter(rounded, math.inf)


@cache
def _constants() -> tuple[arb, arb]:
    """alpha and lambda, eq. 14."""
    with ctx.workprec(2 * BITS):
        e, pi = arb(1).exp(), arb.pi()
        one, two = (1 / arb(2).sqrt()).erfc(), arb(2).sqrt().erfc()
        rest = 1 - one * e.sqrt()
        inner = 2 * two * e**2 + pi * one**2 * e - 2 * (2 + pi) * one * e.sqrt() + pi + 2
        return (2 / pi).sqrt() / rest, rest * (2 * pi).sqrt() / inner.sqrt()
