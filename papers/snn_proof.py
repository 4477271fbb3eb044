"""The three theorems on self-normalizing nets, proved over their whole domains by interval arithmetic, or refuted.

A theorem speaks of a unit's inputs (mean, variance) and weights (omega, tau). The outputs' moments depend on them only
through m = mean * omega and v = variance * tau, and these two products take every value of a rectangle and no other: so
two dimensions are searched instead of four, and nothing is lost. What else depends on the weights is replaced by its
worst case at (m, v), which is a point of the domain:

- the spectral norm of the Jacobian J. With p and q the derivatives of the outputs' (mean, variance) by m and v, the
  columns of J are omega p and tau q, and J J' = omega^2 p p' + tau^2 q q' grows with omega^2 and tau^2. The worst case
  has the largest |omega| and the largest tau that v = variance * tau allows.
- the ratio of the outputs' variance to the inputs' v / tau: for "below" the smallest such variance is the worst case,
  for "above" the largest.

The search keeps a heap of boxes. On each a ball (Arb's `arb`, by python-flint) encloses the function; the box
with the largest upper end is halved until that end is close to a value that is attained. All roundings go outward: the
upper end is a proof, an attained value above the limit is a counterexample.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from flint import arb, ctx

from hooke.nn import THEOREMS, TheoremDomain

Box = tuple[float, float, float, float]
"""Lowest and highest m, lowest and highest v."""

Function = Callable[[arb, arb], arb]

PAPER_BOX = {"mean": (-0.03106, 0.06773), "variance": (0.80009, 1.48617)}
"""Where the paper's theorem 1 has the fixed points."""

OUTPUTS = ("mean", "variance")

_BITS = 80
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


@dataclass(frozen=True)
class Counterexample:
    """A point of the domain where the statement fails for sure.

    Attributes:
        mean: Its mean.
        variance: Its variance.
        omega: Its omega.
        tau: Its tau.
        value: What is attained there: the spectral norm, the ratio of variances, or an output's moment.
        box: The box of (m, v) around it.
    """

    mean: float
    variance: float
    omega: float
    tau: float
    value: float
    box: Box

    def __str__(self) -> str:
        return f"mean {self.mean:.4g}, variance {self.variance:.4g}, omega {self.omega:.4g}, tau {self.tau:.4g}"


@dataclass(frozen=True)
class Proof:
    """A theorem's verdict.

    Attributes:
        name: The theorem's.
        proved: Whether it holds over the whole domain. If not, and there is no counterexample, it is undecided.
        says: The verdict as a sentence with its numbers.
        bounds: Two ends by name: of the outputs' and the fixed points' moments the lowest and the highest, both proved;
            of the largest norm or the worst ratio what is attained and what is proved, in ascending order.
        boxes: How many boxes were looked at.
        seconds: How long that took.
        counterexample: Where the statement fails, if such a point was found.
    """

    name: str
    proved: bool
    says: str
    bounds: dict[str, tuple[float, float]]
    boxes: int
    seconds: float
    counterexample: Counterexample | None = None


def prove(name: str) -> Proof:
    """Prove one of `hooke.nn.THEOREMS`.

    Args:
        name: Its name there.

    Returns:
        The verdict with its bounds; about a second each.

    Example:
        >>> prove("theorem 2").proved
        True
    """
    domain = THEOREMS[name]
    if name.startswith("theorem 1"):
        return contraction(domain)
    return falling_variance(domain) if name.startswith("theorem 2") else rising_variance(domain)


def contraction(domain: TheoremDomain) -> Proof:
    """Theorem 1: the map takes the domain into itself and contracts, so each (omega, tau) has one fixed point there.

    |g(x) - g(y)| <= sup |J| |x - y| holds on a convex domain; by Banach's theorem the fixed point then attracts the
    whole domain. It is the image of a point of the image, which encloses it more tightly.
    """
    inside = image(domain, domain.mean, domain.variance)
    started, search = time.perf_counter(), _Search(domain)
    norm = search.maximum(search.norm, limit=1.0)
    counterexample, says = inside.counterexample, f"spectral norm at most {norm.upper:.4f}; {inside.says}"
    if norm.attained >= 1:
        counterexample = search.witness(norm, norm.attained)
        says = f"spectral norm {norm.attained:.4f} at {counterexample}"
    proved = inside.proved and norm.upper < 1
    bounds = {"norm": (norm.attained, norm.upper), **inside.bounds}
    if proved:
        smaller = _rectangle(domain, inside.bounds["mean"], inside.bounds["variance"])
        fixed = {name: search.ends(index, smaller, 1e-4) for index, name in enumerate(OUTPUTS)}
        bounds |= {f"fixed {name}": (-low.upper, high.upper) for name, (low, high) in fixed.items()}
        says += "; fixed points: " + ", ".join(f"{name} {_spell(bounds[f'fixed {name}'])}" for name in OUTPUTS)
    seconds = inside.seconds + time.perf_counter() - started
    return _proof(domain, proved, says, bounds, inside.boxes + search.boxes, seconds, counterexample)


def image(domain: TheoremDomain, mean: tuple[float, float], variance: tuple[float, float]) -> Proof:
    """Whether the outputs' mean and variance stay strictly between the given ends for all of the domain."""
    started, search = time.perf_counter(), _Search(domain)
    bounds, counterexample, says = {}, None, ""
    for index, (name, wanted) in enumerate(zip(OUTPUTS, (mean, variance), strict=True)):
        low, high = search.ends(index, _rectangle(domain), 2e-7, wanted)
        bounds[name] = -low.upper, high.upper
        for found, end, value in ((low, -wanted[0], -low.attained), (high, wanted[1], high.attained)):
            if found.attained >= end and counterexample is None:
                counterexample = search.witness(found, value)
                says = f"the outputs' {name} reaches {value:.7g} at {counterexample}"
    proved = all(
        want[0] < bounds[name][0] and bounds[name][1] < want[1]
        for name, want in zip(OUTPUTS, (mean, variance), strict=True)
    )
    seconds = time.perf_counter() - started
    says = says or "image: " + ", ".join(f"{name} {_spell(bounds[name])}" for name in OUTPUTS)
    return _proof(domain, proved, says, bounds, search.boxes, seconds, counterexample)


def falling_variance(domain: TheoremDomain, factor: float = 1.0) -> Proof:
    """Theorem 2: the outputs' variance is below `factor` times the inputs'."""
    started = time.perf_counter()
    search = _Search(domain)
    worst = search.maximum(lambda m, v: search.variance(m, v) / search.smallest_variance(v), limit=factor)
    says = f"the variance shrinks to at most {worst.upper:.4f} of what it was"
    return search.ratio(worst, factor, says, search.largest_tau, started)


def rising_variance(domain: TheoremDomain, factor: float = 1.0) -> Proof:
    """Theorem 3: the outputs' variance is above `factor` times the inputs'."""
    started = time.perf_counter()
    search = _Search(domain)
    worst = search.maximum(lambda m, v: -search.variance(m, v) / search.largest_variance(v), limit=-factor)
    says = f"the variance grows to at least {-worst.upper:.4f} of what it was"
    return search.ratio(worst, -factor, says, search.smallest_tau, started)


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


@dataclass
class _Search:
    domain: TheoremDomain
    boxes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("mean", "omega"):
            low, high = getattr(self.domain, name)
            if low != -high:
                raise ValueError(f"snn_proof: {name} must be symmetric around 0. Got {low} to {high}. Use its hull.")
        self.omega = _ball(self.domain.omega[1])
        (self.low_variance, self.high_variance), (self.low_tau, self.high_tau) = (
            (_ball(low), _ball(high)) for low, high in (self.domain.variance, self.domain.tau)
        )

    def norm(self, m: arb, v: arb) -> arb:
        """Spectral norm of the Jacobian at (m, v), at the worst omega and tau."""
        g, tau = Moments(m, v), self.largest_tau(v)
        p = self.omega**2 * (g.mean_m**2 + g.variance_m**2)
        q = tau**2 * (g.mean_v**2 + g.variance_v**2)
        pq = self.omega * tau * (g.mean_m * g.mean_v + g.variance_m * g.variance_v)
        return ((p + q) / 2 + (((p - q) / 2) ** 2 + pq**2).sqrt()).sqrt()

    @staticmethod
    def variance(m: arb, v: arb) -> arb:
        return moment_balls(m, v)[1]

    def largest_tau(self, v: arb) -> arb:
        return self.high_tau.min(v / self.low_variance)

    def smallest_tau(self, v: arb) -> arb:
        return self.low_tau.max(v / self.high_variance)

    def smallest_variance(self, v: arb) -> arb:
        return self.low_variance.max(v / self.high_tau)

    def largest_variance(self, v: arb) -> arb:
        return self.high_variance.min(v / self.low_tau)

    def ends(
        self, index: int, rectangle: Box, tolerance: float, wanted: tuple[float, float] = (-math.inf, math.inf)
    ) -> tuple[Bound, Bound]:
        """The lower end, with its sign turned, and the upper end of one of `OUTPUTS`."""
        low = self.maximum(lambda m, v: -moment_balls(m, v)[index], rectangle, limit=-wanted[0], tolerance=tolerance)
        high = self.maximum(lambda m, v: moment_balls(m, v)[index], rectangle, limit=wanted[1], tolerance=tolerance)
        return low, high

    def maximum(
        self,
        function: Function,
        rectangle: Box | None = None,
        *,
        limit: float = math.inf,
        tolerance: float = 1e-3,
    ) -> Bound:
        """Enclose a function's maximum over a rectangle; stop at once where it attains `limit`."""
        with ctx.workprec(_BITS):
            found = _maximum(function, rectangle or _rectangle(self.domain), limit, tolerance)
        self.boxes += found.boxes
        return found

    def witness(self, bound: Bound, value: float, tau: Callable[[arb], arb] | None = None) -> Counterexample:
        """The point of the domain that stands behind (m, v): with the largest tau if not told another."""
        m, v = bound.at
        weight, omega = float((tau or self.largest_tau)(arb(v)).mid()), self.domain.omega[1]
        point = {"mean": m / omega if omega else 0.0, "omega": omega, "variance": v / weight, "tau": weight}
        inside = {name: min(max(point[name], low), high) for name, (low, high) in self.domain.bounds.items()}
        return Counterexample(**inside, value=value, box=bound.box)

    def ratio(self, worst: Bound, limit: float, says: str, tau: Callable[[arb], arb], started: float) -> Proof:
        """The verdict of a theorem about a ratio of variances, which has the sign of `limit`."""
        ends = (worst.attained, worst.upper) if limit > 0 else (-worst.upper, -worst.attained)
        counterexample = None
        if worst.attained >= limit:
            counterexample = self.witness(worst, abs(worst.attained), tau)
            says = f"the variance becomes {abs(worst.attained):.4f} of what it was at {counterexample}"
        seconds = time.perf_counter() - started
        return _proof(self.domain, worst.upper < limit, says, {"ratio": ends}, self.boxes, seconds, counterexample)


def _maximum(function: Function, rectangle: Box, limit: float, tolerance: float) -> Bound:
    def look(box: Box) -> tuple[float, Box]:
        """The box's upper end, its sign turned so that the heap gives the largest first."""
        value = function(*_balls(box))
        return (-_up(value) if value.is_finite() else -math.inf), box

    heap, boxes = [look(rectangle)], 1
    attained, where = -math.inf, rectangle
    while True:
        upper = -heap[0][0]
        close = upper <= attained + tolerance and upper < limit
        if close or attained >= limit or boxes >= _MOST_BOXES:
            return Bound(upper, attained, _middle(where), where, boxes)
        for half in _halves(heapq.heappop(heap)[1]):
            m, v = _middle(half)
            value = -_up(-function(arb(m), arb(v)))
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


def _rectangle(
    domain: TheoremDomain, mean: tuple[float, float] | None = None, variance: tuple[float, float] | None = None
) -> Box:
    """Every m = mean * omega and v = variance * tau, rounded outward."""
    largest = max(abs(end) for end in mean or domain.mean)
    m = _up(_ball(largest) * _ball(domain.omega[1]))
    low, high = variance or domain.variance
    return -m, m, -_up(-_ball(low) * _ball(domain.tau[0])), _up(_ball(high) * _ball(domain.tau[1]))


def _balls(box: Box) -> tuple[arb, arb]:
    return arb(box[0]).union(arb(box[1])), arb(box[2]).union(arb(box[3]))


def _ball(number: float) -> arb:
    """The decimal number that is meant, 0.1, and the binary fraction beside it."""
    return arb(repr(number)).union(arb(number))


def _up(value: arb) -> float:
    """A float not below any number of the ball."""
    upper = value.upper()
    rounded = float(upper)
    step = 2.0**-52 * abs(rounded) + 5e-324
    return rounded if arb(rounded) >= upper else rounded + step


@cache
def _constants() -> tuple[arb, arb]:
    """alpha and lambda, eq. 14."""
    with ctx.workprec(2 * _BITS):
        e, pi = arb(1).exp(), arb.pi()
        one, two = (1 / arb(2).sqrt()).erfc(), arb(2).sqrt().erfc()
        rest = 1 - one * e.sqrt()
        inner = 2 * two * e**2 + pi * one**2 * e - 2 * (2 + pi) * one * e.sqrt() + pi + 2
        return (2 / pi).sqrt() / rest, rest * (2 * pi).sqrt() / inner.sqrt()


def _proof(
    domain: TheoremDomain,
    proved: bool,
    says: str,
    bounds: dict[str, tuple[float, float]],
    boxes: int,
    seconds: float,
    counterexample: Counterexample | None,
) -> Proof:
    if not proved and counterexample is None:
        says = f"undecided after {boxes:,} boxes: {says}"
    return Proof(domain.name, proved, says, bounds, boxes, seconds, counterexample)


def _spell(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.6f} to {ends[1]:.6f}"
