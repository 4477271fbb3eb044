from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hooke.nn import fixed_point, moment_jacobian, moment_map, selu_parameters
from hooke.nn.self_normalizing.fixed_point import moments
from hooke.nn.self_normalizing.moments import ALPHA, SCALE


@pytest.mark.parametrize(
    ("mean", "variance", "omega", "alpha", "scale"),
    [
        (0.0, 2.0, 0.0, 1.97126, 1.06071),  # the paper's appendix
        (0.0, 2.0, 0.7, 1.97126, 1.06071),
        (-0.1, 2.0, 1.0, 1.97690, 1.07385),  # the author's notebook
        (-0.1, 2.0, 0.0, 2.32699, 0.98218),
        (0.1, 1.0, 0.0, 1.31196, 1.16086),
    ],
)
def test_parameters_of_published_fixed_points(
    mean: float, variance: float, omega: float, alpha: float, scale: float
) -> None:
    found = selu_parameters(mean, variance, omega=omega)
    assert (found.alpha, found.scale) == pytest.approx((alpha, scale), abs=6e-6)
    assert found.residual < 1e-14


def test_parameters_of_zero_one_are_the_constants() -> None:
    found = selu_parameters()
    assert (found.alpha, found.scale) == pytest.approx((ALPHA, SCALE), abs=1e-15)
    assert selu_parameters(tau=2.0).alpha != pytest.approx(ALPHA, abs=1e-3)


@given(st.floats(-0.7, 0.6), st.floats(1e-3, 1e3), st.floats(-1, 1), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_parameters_keep_any_reachable_point(ratio: float, variance: float, omega: float, tau: float) -> None:
    mean = ratio * math.sqrt(variance) * 0.1
    found = selu_parameters(mean, variance, omega=omega, tau=tau)
    assert found.alpha > 0
    assert found.scale > 0
    got = moment_map(mean, variance, omega, tau, alpha=found.alpha, scale=found.scale)
    residual = max(abs(got[0].item() - mean), abs(got[1].item() - variance))
    assert found.residual == residual
    assert residual < 1e-12 * max(1, variance)


def test_what_no_selu_reaches_is_refused_and_just_inside_is_not() -> None:
    message = (
        r"^selu_parameters: mean must be in \(-0\.8033, 0\.6833\), the reach of a SELU for variance 1\.0 and inputs "
        r"N\(0, 1\)\. Got 0\.7\. Use a mean nearer 0 or a larger variance\.$"
    )
    with pytest.raises(ValueError, match=message):
        selu_parameters(0.7, 1.0)
    with pytest.raises(ValueError, match=r"Got -0\.81"):
        selu_parameters(-0.81, 1.0)
    assert selu_parameters(0.683, 1.0).residual < 1e-12
    assert selu_parameters(-0.803, 1.0).residual < 1e-9


@pytest.mark.parametrize("name", ["variance", "tau"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_parameters_need_a_variance_and_weights(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^selu_parameters: {name} must be above 0 and finite\. Got {value}\. Use 1\.0\.$"
    ):
        selu_parameters(**{name: value})


# Quadrature ------------------------------------------------------------------------------------------------------


@given(st.floats(-20, 20), st.floats(1e-4, 1e4))
@settings(max_examples=60, deadline=None)
def test_quadrature_is_equal_to_the_closed_forms(mean: float, std: float) -> None:
    want_mean, want_variance = (one.item() for one in moment_map(mean, std**2, 1.0))
    got_mean, got_variance = moments(nn.SELU(), mean, std)
    assert got_mean == pytest.approx(want_mean, rel=1e-12, abs=1e-13 * std)
    assert got_variance == pytest.approx(want_variance, rel=1e-10)


@pytest.mark.parametrize("std", [1e-3, 1.0, 1e3])
def test_quadrature_of_other_activations(std: float) -> None:
    mean, variance = moments(torch.relu, 0.0, std)
    assert mean == pytest.approx(std / math.sqrt(2 * math.pi), rel=1e-13)
    assert variance == pytest.approx(std**2 * (0.5 - 0.5 / math.pi), rel=1e-13)
    mean, variance = moments(torch.erf, 0.0, std)
    assert mean == pytest.approx(0, abs=1e-15)
    assert variance == pytest.approx(2 / math.pi * math.asin(2 * std**2 / (1 + 2 * std**2)), rel=1e-12)
    mean, variance = moments(torch.sign, 0.0, std)
    assert (mean, variance) == pytest.approx((0, 1), abs=1e-13)
    mean, _ = moments(nn.Hardtanh(), 1.0, std, kinks=(-1.0, 1.0))
    fine, _ = moments(nn.Hardtanh(), 1.0, std, kinks=(-1.0, -0.5, 0.3, 1.0))
    assert mean == pytest.approx(fine, rel=1e-13)


def test_a_kink_that_is_not_told_costs_digits() -> None:
    told, _ = moments(nn.Hardtanh(-0.77, 0.77), 0.3, 1.0, kinks=(-0.77, 0.77))
    untold, _ = moments(nn.Hardtanh(-0.77, 0.77), 0.3, 1.0)
    assert 1e-9 < abs(told - untold) < 1e-3


# Fixed points ----------------------------------------------------------------------------------------------------


def test_selu_rests_at_zero_one() -> None:
    point = fixed_point(nn.SELU(), start=(0.5, 3.0))
    assert (point.mean, point.variance) == pytest.approx((0, 1), abs=1e-12)
    assert point.residual < 1e-14
    torch.testing.assert_close(point.jacobian, moment_jacobian(0.0, 1.0), rtol=0, atol=1e-12)
    assert point.singular_value == pytest.approx(0.78767, abs=1e-5)
    assert point.spectral_radius == pytest.approx(0.782648, abs=1e-6)
    assert point.backward_factor == pytest.approx(1.07157, abs=5e-6)
    assert point.normalizes


@pytest.mark.parametrize(
    ("tau", "mean", "variance"),
    [(2.0, 1.78, 18.5), (0.5625, -0.028, 0.0268), (0.774, -0.054, 0.351)],
    ids=["He", "torch's gain for selu", "truncated normal, not corrected"],
)
def test_selu_under_other_initializations(tau: float, mean: float, variance: float) -> None:
    point = fixed_point(nn.SELU(), tau=tau)
    assert point.mean == pytest.approx(mean, abs=6e-3 if tau == 2 else 6e-4)
    assert point.variance == pytest.approx(variance, rel=3e-3)
    assert point.normalizes
    got = [one.item() for one in moment_map(point.mean, point.variance, 0.0, tau)]
    assert got == pytest.approx([point.mean, point.variance], rel=1e-10)


def test_selu_under_the_default_of_linear_dies_out() -> None:
    point = fixed_point(nn.SELU(), tau=1 / 3)
    assert (point.mean, point.variance, point.residual) == (0, 0, 0)
    assert not point.normalizes


@pytest.mark.parametrize(
    ("activation", "mean", "radius"),
    [
        (nn.ReLU(), 0.0, 0.5 - 0.5 / math.pi),
        (nn.ReLU(inplace=True), 0.0, 0.5 - 0.5 / math.pi),
        (nn.LeakyReLU(0.01), 0.0, 0.5 * (1 + 1e-4) - 0.99**2 / (2 * math.pi)),
        (torch.sigmoid, 0.5, 1 / 16),
        (nn.GELU(), 0.0, 0.25),
        (nn.Softplus(), math.log(2), 0.25),
    ],
)
def test_activations_that_let_the_variance_die_out(activation, mean: float, radius: float) -> None:
    point = fixed_point(activation)
    assert (point.mean, point.variance) == pytest.approx((mean, 0), abs=1e-12)
    assert point.spectral_radius == pytest.approx(radius, rel=1e-6)
    assert point.is_attracting
    assert not point.normalizes


def test_gradients_keep_their_size_under_he_with_relu() -> None:
    assert fixed_point(nn.ReLU(), tau=2.0).backward_factor == pytest.approx(1, abs=1e-12)
    assert fixed_point(nn.ReLU(), tau=1.0).backward_factor == pytest.approx(0.5, abs=1e-12)


def test_tanh_dies_out_ever_more_slowly_and_its_slopes_do_not_say_so() -> None:
    point = fixed_point(torch.tanh)
    assert point.variance == 0
    assert point.spectral_radius == pytest.approx(1, abs=1e-9)
    assert not point.is_attracting
    assert not point.normalizes


def test_scaled_tanh_does_normalize() -> None:
    """The paper says it of tanh; a gain above 1 gives it a point that attracts, like any tau above 1."""
    second = moments(torch.tanh, 0.0, 1.0)[1]
    point = fixed_point(lambda x: torch.tanh(x) / math.sqrt(second))
    assert (point.mean, point.variance) == pytest.approx((0, 1), abs=1e-12)
    assert point.singular_value < 0.5
    assert point.normalizes
    assert point.backward_factor > 1.07157  # at the price of gradients


def test_the_identity_keeps_any_variance_and_attracts_to_none() -> None:
    point = fixed_point(nn.Identity(), start=(0.0, 3.0))
    assert point.variance == pytest.approx(3, rel=1e-12)
    assert point.spectral_radius == pytest.approx(1, abs=1e-12)
    assert not point.is_attracting


def test_slow_convergence_is_finished_by_newton() -> None:
    point = fixed_point(torch.tanh, tau=1.001)
    assert point.residual < 1e-12
    assert point.variance > 4e-4
    assert point.normalizes


def test_a_fixed_point_with_omega() -> None:
    point = fixed_point(nn.SELU(), omega=0.1, tau=1.05, start=(0.1, 1.4))
    got = [one.item() for one in moment_map(point.mean, point.variance, 0.1, 1.05)]
    assert got == pytest.approx([point.mean, point.variance], abs=1e-12)
    torch.testing.assert_close(
        point.jacobian, moment_jacobian(point.mean, point.variance, 0.1, 1.05), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize(
    ("activation", "tau", "what"),
    [(nn.Identity(), 2.0, "they grow without end"), (torch.exp, 1.0, "they grow without end"),
     (nn.ReLU(), 3.0, r"one more layer changes mean .* and variance .* by .*")],
)  # fmt: skip
def test_growth_without_end_is_refused(activation, tau: float, what: str) -> None:
    start = r"^fixed_point: no fixed point was reached from start \(0\.0, 1\.0\): "
    message = rf"{start}{what}\. Use a smaller tau, or another start\.$"
    with pytest.raises(ValueError, match=message):
        fixed_point(activation, tau=tau)


def test_what_is_no_activation_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^fixed_point: activation must be elementwise and without randomness\. Got \[0\.02"
    ):
        fixed_point(lambda x: torch.softmax(x, 0))
    with pytest.raises(
        ValueError, match=r"^fixed_point: activation must be continuous\. Got a jump from -1 to 1 at 0\.0\."
    ):
        fixed_point(torch.sign)
    with pytest.raises(ValueError, match=r"^fixed_point: tau must be above 0 and finite\. Got 0\.0\."):
        fixed_point(torch.tanh, tau=0.0)
    with pytest.raises(
        ValueError, match=r"^fixed_point: start must be a mean and a variance above 0\. Got \(0\.0, 0\.0\)\."
    ):
        fixed_point(torch.tanh, start=(0.0, 0.0))
    with pytest.raises(
        ValueError, match=r"^fixed_point: activation must take float64 tensors of any size\. Got one that"
    ):
        fixed_point(nn.PReLU())
    assert fixed_point(nn.PReLU().double()).variance == 0


@pytest.mark.parametrize(("mean", "omega", "name"), [(math.nan, 0.0, "mean"), (0.0, math.inf, "omega")])
def test_what_is_no_number_is_refused(mean: float, omega: float, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^selu_parameters: {name} must be finite\. Got (nan|inf)\. Use 0\.0\.$"):
        selu_parameters(mean, omega=omega)
