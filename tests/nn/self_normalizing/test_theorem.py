from __future__ import annotations

import math

import pytest

from hooke.nn import THEOREMS, TheoremDomain, moment_map


def test_the_domains_are_the_papers() -> None:
    bounds = {name: tuple(domain.bounds.values()) for name, domain in THEOREMS.items()}
    small = (-0.1, 0.1)
    assert bounds == {
        "theorem 1": (small, small, (0.8, 1.5), (0.95, 1.1)),
        "theorem 2": ((-1, 1), small, (3, 16), (0.8, 1.25)),
        "theorem 3": (small, small, (0.02, 0.16), (0.8, 1.25)),
        "theorem 3, larger tau": (small, small, (0.02, 0.24), (0.9, 1.25)),
        "theorem 3, appendix": (small, small, (0.05, 0.16), (0.8, 1.25)),
        "theorem 3, larger tau, appendix": (small, small, (0.05, 0.24), (0.9, 1.25)),
    }
    assert all(domain.name == name and domain.where and domain.statement for name, domain in THEOREMS.items())


def test_bounds_belong_to_the_domain_and_nothing_beyond() -> None:
    domain = THEOREMS["theorem 1"]
    for at in ((-0.1, 0.8, 0.1, 0.95), (0.1, 1.5, -0.1, 1.1), (0.0, 1.0, 0.0, 1.0)):
        assert domain.contains(*at)
        assert domain.distance(*at) == {"mean": 0, "omega": 0, "variance": 0, "tau": 0}
    assert not domain.contains(0.0, 1.0, 0.0, math.nan)


@pytest.mark.parametrize("name", ["mean", "variance", "omega", "tau"])
def test_the_distance_has_a_side(name: str) -> None:
    inside = {"mean": 0.0, "variance": 1.0, "omega": 0.0, "tau": 1.0}
    low, high = THEOREMS["theorem 1"].bounds[name]
    for value, want in ((low - 0.25, -0.25), (high + 0.5, 0.5)):
        at = inside | {name: value}
        distance = THEOREMS["theorem 1"].distance(**at)
        assert distance[name] == pytest.approx(want)
        assert [distance[other] for other in distance if other != name] == [0, 0, 0]
        assert not THEOREMS["theorem 1"].contains(**at)


def test_not_a_number_is_at_no_distance_that_could_be_mistaken_for_inside() -> None:
    assert math.isnan(THEOREMS["theorem 1"].distance(math.nan, 1.0, 0.0, 1.0)["mean"])


def corners(domain: TheoremDomain) -> list[tuple[float, float, float, float]]:
    return [(m, v, o, t) for m in domain.mean for v in domain.variance for o in domain.omega for t in domain.tau]


@pytest.mark.parametrize("name", THEOREMS)
def test_the_theorems_hold_in_the_corners(name: str) -> None:
    domain = THEOREMS[name]
    for mean, variance, omega, tau in corners(domain):
        got_mean, got_variance = (one.item() for one in moment_map(mean, variance, omega, tau))
        if name == "theorem 1":
            assert domain.contains(got_mean, got_variance, omega, tau)
        else:
            assert (got_variance < variance) == (name == "theorem 2")
