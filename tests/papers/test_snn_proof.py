from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from flint import arb, ctx

from hooke.nn import THEOREMS, TheoremDomain, moment_jacobian, moment_map
from hooke.nn.self_normalizing.moments import ALPHA, SCALE
from papers.snn import enclosure
from papers.snn.proof import (
    PAPER_BOX,
    Counterexample,
    Proof,
    contraction,
    falling_variance,
    image,
    moment_balls,
    prove,
    rising_variance,
)

ONE, TWO = THEOREMS["theorem 1"], THEOREMS["theorem 2"]
THREE, LARGER = THEOREMS["theorem 3"], THEOREMS["theorem 3, larger tau"]


def within(inner: tuple[float, float], outer: tuple[float, float]) -> bool:
    return outer[0] < inner[0] < inner[1] < outer[1]


def test_theorem_1_is_proved() -> None:
    proof = prove("theorem 1")
    assert proof.proved
    assert proof.counterexample is None
    assert 0.897 < proof.bounds["norm"][0] < proof.bounds["norm"][1] < 0.899
    assert proof.bounds["mean"] == pytest.approx((-0.0310605, 0.0677251), abs=3e-7)
    assert proof.bounds["variance"] == pytest.approx((0.803712, 1.481575), abs=1e-6)
    for name, box in PAPER_BOX.items():
        assert within(proof.bounds[f"fixed {name}"], box)
    assert proof.says.startswith("spectral norm at most 0.8986; image: mean -0.031061 to 0.067725, ")


def test_the_papers_box_is_rounded_inward_at_one_end() -> None:
    """The fixed points are inside it, but the image leaves it by 5e-7."""
    proof = image(ONE, PAPER_BOX["mean"], PAPER_BOX["variance"])
    assert not proof.proved
    assert proof.counterexample is not None
    assert reached(proof.counterexample)[0] < PAPER_BOX["mean"][0]
    assert proof.says.startswith("the outputs' mean reaches -0.03106")
    assert image(ONE, (-0.03107, 0.06773), PAPER_BOX["variance"]).proved


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("theorem 2", 0.9601),
        ("theorem 3", 1.1589),
        ("theorem 3, larger tau", 1.2081),
        ("theorem 3, appendix", 1.1589),
        ("theorem 3, larger tau, appendix", 1.2081),
    ],
)
def test_theorems_2_and_3_are_proved(name: str, ratio: float) -> None:
    proof = prove(name)
    assert proof.proved
    assert proof.name == name
    assert proof.bounds["ratio"] == pytest.approx((ratio, ratio), abs=1.1e-3)
    assert proof.bounds["ratio"][0] <= proof.bounds["ratio"][1]
    assert proof.counterexample is None
    assert proof.boxes > 100
    assert proof.says.endswith("of what it was")


def test_theorem_3_holds_far_below_the_papers_bounds_but_not_down_to_zero() -> None:
    assert rising_variance(replace(THREE, variance=(7e-5, 0.16))).proved
    assert rising_variance(replace(LARGER, variance=(3e-5, 0.24))).proved
    for domain, low in ((THREE, 5e-5), (LARGER, 1e-5)):
        assert refuted(
            rising_variance(replace(domain, variance=(low, 0.1))), domain=replace(domain, variance=(low, 0.1))
        )


def reached(point: Counterexample) -> tuple[float, float]:
    mean, variance = moment_map(point.mean, point.variance, point.omega, point.tau)
    return mean.item(), variance.item()


def refuted(proof: Proof, domain: TheoremDomain) -> Counterexample:
    """The counterexample, which must lie in its box and in the domain."""
    point = proof.counterexample
    assert not proof.proved
    assert point is not None
    assert domain.contains(point.mean, point.variance, point.omega, point.tau)
    m0, m1, v0, v1 = point.box
    slack = 1e-12
    assert m0 - slack <= point.mean * point.omega <= m1 + slack
    assert v0 * (1 - slack) <= point.variance * point.tau <= v1 * (1 + slack)
    assert str(point) in proof.says
    return point


def test_false_statements_about_the_variance_get_a_counterexample() -> None:
    point = refuted(falling_variance(TWO, factor=0.95), TWO)
    assert reached(point)[1] >= 0.95 * point.variance
    point = refuted(rising_variance(THREE, factor=1.17), THREE)
    assert reached(point)[1] <= 1.17 * point.variance
    wider = replace(TWO, variance=(1.0, 16.0))
    point = refuted(falling_variance(wider), wider)
    assert reached(point)[1] >= point.variance
    proof = rising_variance(replace(THREE, variance=(0.02, 1.5)))
    point = refuted(proof, replace(THREE, variance=(0.02, 1.5)))
    assert reached(point)[1] <= point.variance
    assert proof.says.startswith(f"the variance becomes {point.value:.4f} of what it was at mean ")


def test_bounds_tightened_beyond_the_truth_are_not_proved() -> None:
    assert falling_variance(TWO, factor=0.9601).proved
    assert not falling_variance(TWO, factor=0.96008).proved
    assert rising_variance(THREE, factor=1.15878).proved
    assert not rising_variance(THREE, factor=1.1588).proved
    assert not image(ONE, (-0.03107, 0.06772), (0.8, 1.5)).proved
    assert not image(ONE, (-0.03107, 0.06773), (0.8038, 1.5)).proved


def test_a_domain_that_does_not_contract_gets_a_counterexample() -> None:
    wider = replace(ONE, variance=(0.1, 1.5))
    point = refuted(contraction(wider), wider)
    J = moment_jacobian(point.mean, point.variance, point.omega, point.tau)
    assert torch.linalg.matrix_norm(J, 2).item() == pytest.approx(point.value, rel=1e-9)
    assert point.value >= 1


def test_a_domain_that_is_left_gets_a_counterexample() -> None:
    tight = replace(ONE, mean=(-0.06, 0.06))
    proof = contraction(tight)
    assert reached(refuted(proof, tight))[0] > 0.06
    assert proof.bounds["norm"][1] < 1
    assert "the outputs' mean reaches 0.06" in proof.says


def test_a_search_that_is_cut_short_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclosure, "_MOST_BOXES", 3)
    proof = falling_variance(TWO)
    assert not proof.proved
    assert proof.counterexample is None
    assert proof.says.startswith("undecided after 3 boxes: ")


def test_an_interval_that_is_not_symmetric_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^proof: omega must be symmetric around 0\. Got -0\.1 to 0\.2\. Use its hull\.$"
    ):
        falling_variance(replace(TWO, omega=(-0.1, 0.2)))


def contains(ball: arb, number: float, rel: float = 1e-12) -> bool:
    """Whether the ball holds the number, give or take the float's own error."""
    return float(ball.lower()) - rel * abs(number) - 1e-15 <= number <= float(ball.upper()) + rel * abs(number) + 1e-15


def test_random_points_lie_in_their_enclosures() -> None:
    chance, cases = random.Random(0), []
    for _ in range(300):
        m, v = chance.uniform(-0.1, 0.1), 10 ** chance.uniform(-4, 1.3)
        size = 10 ** chance.uniform(-4, -0.5)
        box = m - size * v**0.5, m + size * v**0.5, v * (1 - size), v * (1 + size)
        cases += [(box, chance.uniform(*box[:2]), chance.uniform(*box[2:])) for _ in range(3)]
    at = torch.tensor([case[1:] for case in cases], dtype=torch.float64).T
    moments, slopes = moment_map(at[0], at[1], 1.0), moment_jacobian(at[0], at[1], 1.0).flatten(1).T
    numbers = torch.stack([*moments, *slopes], -1).tolist()
    for (box, *_), point in zip(cases, numbers, strict=True):
        d = enclosure.Moments(*enclosure._balls(box))
        balls = *moment_balls(*enclosure._balls(box)), d.mean_m, d.mean_v, d.variance_m, d.variance_v
        for ball, number in zip(balls, point, strict=True):
            assert contains(ball, number)


def test_enclosures_shrink_with_their_boxes() -> None:
    widths = []
    for size in (0.1, 0.01):
        mean, variance = moment_balls(*enclosure._balls((-size / 10, size / 10, 1 - size, 1 + size)))
        widths.append((float(mean.rad()), float(variance.rad())))
    assert widths[1][0] < widths[0][0] / 8
    assert widths[1][1] < widths[0][1] / 8


def test_the_constants_are_enclosed() -> None:
    alpha, scale = enclosure._constants()
    assert float(alpha.mid()) == ALPHA
    assert float(scale.mid()) == SCALE
    assert float(alpha.rad()) < 1e-30


def test_floats_are_rounded_up() -> None:
    with ctx.workprec(80):
        for number in (arb(sign) / k for k in range(3, 60) for sign in (1, -1)):
            up = enclosure.rounded_up(number)
            assert arb(up) >= number.upper()
            assert up <= math.nextafter(float(number.mid()), math.inf)
