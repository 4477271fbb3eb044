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
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flint import arb, ctx

from hooke.nn import THEOREMS, TheoremDomain
from papers.snn.enclosure import BITS, Bound, Box, Function, Moments, ball, maximum, moment_balls, rounded_up

PAPER_BOX = {"mean": (-0.03106, 0.06773), "variance": (0.80009, 1.48617)}
"""Where the paper's theorem 1 has the fixed points."""

OUTPUTS = ("mean", "variance")


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


@dataclass
class _Search:
    domain: TheoremDomain
    boxes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("mean", "omega"):
            low, high = getattr(self.domain, name)
            if low != -high:
                raise ValueError(f"proof: {name} must be symmetric around 0. Got {low} to {high}. Use its hull.")
        self.omega = ball(self.domain.omega[1])
        (self.low_variance, self.high_variance), (self.low_tau, self.high_tau) = (
            (ball(low), ball(high)) for low, high in (self.domain.variance, self.domain.tau)
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
        with ctx.workprec(BITS):
            found = maximum(function, rectangle or _rectangle(self.domain), limit, tolerance)
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


def _rectangle(
    domain: TheoremDomain, mean: tuple[float, float] | None = None, variance: tuple[float, float] | None = None
) -> Box:
    """Every m = mean * omega and v = variance * tau, rounded outward."""
    largest = max(abs(end) for end in mean or domain.mean)
    m = rounded_up(ball(largest) * ball(domain.omega[1]))
    low, high = variance or domain.variance
    return -m, m, -rounded_up(-ball(low) * ball(domain.tau[0])), rounded_up(ball(high) * ball(domain.tau[1]))


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
