"""The domains for which the paper proves its three theorems, as data. `papers/snn/proof.py` proves them again."""

from __future__ import annotations

from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True)
class TheoremDomain:
    """For which inputs and weights of a unit a theorem holds; every bound belongs to the domain.

    Attributes:
        name: What the theorem is called here.
        where: Its place in the paper.
        statement: What holds there, for alpha and lambda with fixed point (0, 1).
        mean: Lowest and highest mean of the unit's inputs.
        omega: Of the sum of its weights.
        variance: Of the variance of its inputs.
        tau: Of the sum of its squared weights.

    Example:
        >>> theorem = THEOREMS["theorem 1"]
        >>> theorem.contains(0.0, 1.0, 0.0, 1.0)
        True
        >>> theorem.distance(0.0, 2.0, 0.0, 0.75)
        {'mean': 0.0, 'omega': 0.0, 'variance': 0.5, 'tau': -0.2}
    """

    name: str
    where: str
    statement: str
    mean: Interval
    omega: Interval
    variance: Interval
    tau: Interval

    def contains(self, mean: float, variance: float, omega: float, tau: float) -> bool:
        """Whether the point is in the domain; a bound is, not a number is not."""
        point = {"mean": mean, "omega": omega, "variance": variance, "tau": tau}
        return all(low <= point[name] <= high for name, (low, high) in self.bounds.items())

    def distance(self, mean: float, variance: float, omega: float, tau: float) -> dict[str, float]:
        """How far each coordinate lies outside: above 0 beyond the upper bound, below 0 beneath the lower, else 0."""
        point = {"mean": mean, "omega": omega, "variance": variance, "tau": tau}
        return {name: _outside(point[name], *bounds) for name, bounds in self.bounds.items()}

    @property
    def bounds(self) -> dict[str, Interval]:
        """The four intervals by name."""
        return {"mean": self.mean, "omega": self.omega, "variance": self.variance, "tau": self.tau}


def _outside(value: float, low: float, high: float) -> float:
    if low <= value <= high:
        return 0.0
    return round(value - (low if value < low else high), 15)


_FIXED = "Mean and variance of the outputs stay in this domain and approach one fixed point, fast: the map contracts."
_FALLS = "The variance of the outputs is below that of the inputs."
_RISES = "The variance of the outputs is above that of the inputs."
_SMALL = (-0.1, 0.1)

THEOREMS: dict[str, TheoremDomain] = {
    domain.name: domain
    for domain in (
        TheoremDomain("theorem 1", "Theorem 1", _FIXED, _SMALL, _SMALL, (0.8, 1.5), (0.95, 1.1)),
        TheoremDomain("theorem 2", "Theorem 2", _FALLS, (-1.0, 1.0), _SMALL, (3.0, 16.0), (0.8, 1.25)),
        TheoremDomain("theorem 3", "Theorem 3, main text", _RISES, _SMALL, _SMALL, (0.02, 0.16), (0.8, 1.25)),
        TheoremDomain(
            "theorem 3, larger tau", "Theorem 3, main text", _RISES, _SMALL, _SMALL, (0.02, 0.24), (0.9, 1.25)
        ),
        TheoremDomain("theorem 3, appendix", "Theorem 3, appendix", _RISES, _SMALL, _SMALL, (0.05, 0.16), (0.8, 1.25)),
        TheoremDomain(
            "theorem 3, larger tau, appendix", "Theorem 3, appendix", _RISES, _SMALL, _SMALL, (0.05, 0.24), (0.9, 1.25)
        ),
    )
}
"""By name. The paper's main text and its appendix give theorem 3 different lower bounds, 0.02 and 0.05: both are here.

Reference: Klambauer et al., "Self-normalizing neural networks", arXiv 1706.02515.
"""
