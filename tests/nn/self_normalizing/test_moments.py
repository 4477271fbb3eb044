from __future__ import annotations

import math
from typing import Any

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooke.nn import moment_jacobian, moment_map
from hooke.nn.self_normalizing import moments
from hooke.nn.self_normalizing.moments import ALPHA, SCALE


def literal(m: float, v: float, digits: int = 60) -> tuple[Any, Any]:
    """Equations 4 and 5 as printed, with as many digits as they lose."""
    with mp.workdps(digits):
        m, v, alpha, scale = (mp.mpf(value) for value in (m, v, ALPHA, SCALE))
        s = mp.sqrt(v)
        root = mp.sqrt(2) * s
        e1 = mp.exp(m + v / 2) * mp.erfc((m + v) / root)
        e2 = mp.exp(2 * (m + v)) * mp.erfc((m + 2 * v) / root)
        erfc, bell = mp.erfc(m / root), mp.sqrt(2 / mp.pi) * mp.exp(-(m**2) / (2 * v))
        mean = scale / 2 * (m * mp.erf(m / root) + alpha * e1 - alpha * erfc + bell * s + m)
        square = scale**2 / 2 * ((m**2 + v) * (2 - erfc) + alpha**2 * (erfc - 2 * e1 + e2) + bell * m * s)
        return mean, square - mean**2


def off(got: Tensor, want: Any) -> float:
    with mp.workdps(60):
        return float(abs(mp.mpf(got.item()) / want - 1))


def test_alpha_and_scale_are_the_closed_forms() -> None:
    with mp.workdps(50):
        one, two, e = mp.erfc(1 / mp.sqrt(2)), mp.erfc(mp.sqrt(2)), mp.e
        alpha = -mp.sqrt(2 / mp.pi) / (one * mp.exp(0.5) - 1)
        inner = 2 * two * e**2 + mp.pi * one**2 * e - 2 * (2 + mp.pi) * one * mp.sqrt(e) + mp.pi + 2
        scale = (1 - one * mp.sqrt(e)) * mp.sqrt(2 * mp.pi) / mp.sqrt(inner)
    assert (float(alpha), float(scale)) == (ALPHA, SCALE)
    assert (float(alpha), float(scale)) == (1.6732632423543772, 1.0507009873554805)


def test_zero_one_is_the_fixed_point() -> None:
    mean, variance = moment_map(0.0, 1.0)
    assert abs(mean.item()) < 1e-15
    assert abs(variance.item() - 1) < 1e-15


HARD = [
    (0.0, 1e-8), (0.0, 0.0624), (0.0, 0.0626), (0.0, 1e8), (1e-9, 1e-8), (-1e-9, 0.5), (1e-4, 1e-8), (-1e-4, 1e-8),
    (0.01, 1e-4), (-0.01, 1e-4), (0.1, 0.3), (-0.1, 0.0624), (-0.1, 0.0626), (0.5, 1e4), (-0.5, 1e8), (1.0, 1e-8),
    (-1.0, 1e-8), (-1.0, 10.0), (2.0, 0.5), (-2.0, 1e6), (-3.0, 0.01), (3.0, 1.0), (5.0, 1e-8), (-8.0, 0.0624),
    (-8.0, 1.0), (8.0, 0.06), (-20.0, 0.1), (-20.0, 400.0), (30.0, 30.0), (-30.0, 1e-8), (100.0, 1e-8), (-100.0, 3.0),
    (1e3, 1e-8), (1e3, 1.0), (1e3, 1e6), (1e3, 1e8), (-300.0, 0.0626), (-300.0, 1e-8), (-300.0, 100.0),
    (-1e3, 1e3), (-1e3, 1e4), (-1e3, 1e6), (-1e3, 1e8), (1e5, 1e-8), (-1e5, 1e8),
]  # fmt: skip


@pytest.mark.parametrize(("m", "v"), HARD)
def test_the_map_is_equal_to_the_literal_equations_far_into_the_tails(m: float, v: float) -> None:
    want = literal(m, v, 700 if m < -15 else 60)
    got = moment_map(m, v, 1.0, 1.0)
    assert off(got[0], want[0]) < 1e-12
    assert off(got[1], want[1]) < 1e-12


def test_the_plain_difference_of_moments_would_fail_there() -> None:
    m, s = 1e3, 1e-5
    plain = SCALE**2 * (m**2 + s**2) - (SCALE * m) ** 2  # all mass is on z > 0
    assert abs(plain / (SCALE * s) ** 2 - 1) > 1e-2
    assert off(moment_map(m, s**2, 1.0)[1], literal(m, s**2)[1]) < 1e-12


def test_variance_zero_is_the_limit() -> None:
    m = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mean, variance = moment_map(m, v, 1.0)
    torch.testing.assert_close(mean, torch.nn.functional.selu(m), rtol=1e-15, atol=0)
    assert variance.tolist() == [0, 0, 0]
    by_m, by_v = torch.autograd.grad(mean[0] + mean[2] + variance[0] + variance[2], (m, v))
    slope = SCALE * ALPHA * math.exp(-1)
    assert by_m.tolist() == pytest.approx([SCALE, 0, slope], rel=1e-14)
    assert by_v.tolist() == pytest.approx([SCALE**2, 0, slope**2 + slope / 2], rel=1e-14)


@pytest.mark.parametrize(
    ("seed", "at"), [(0, (0.3, 1.3, -0.7, 0.9)), (1, (-2.0, 4.0, 0.8, 1.2)), (2, (5.0, 0.5, 0.1, 2.0))]
)
def test_the_map_is_the_monte_carlo_mean_of_ten_million(seed: int, at: tuple[float, float, float, float]) -> None:
    mean, variance, omega, tau = at
    generator, count, chunk = torch.Generator().manual_seed(seed), 10_000_000, 500_000
    want = moment_map(mean, variance, omega, tau)
    powers = torch.zeros(3, dtype=torch.float64)
    for _ in range(count // chunk):
        z = mean * omega + math.sqrt(variance * tau) * torch.randn(chunk, generator=generator)
        x = torch.nn.functional.selu(z).double() - want[0]
        powers += torch.stack([x.sum(), (x**2).sum(), (x**4).sum()]) / count
    shift, square, fourth = powers.tolist()
    assert abs(shift) < 4.5 * math.sqrt(square / count)
    assert abs(square - want[1].item()) < 4.5 * math.sqrt((fourth - square**2) / count)


def points(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_the_map_and_its_jacobian_are_differentiable_also_twice() -> None:
    at = (
        points(0.3, -0.2, 2.0, -5.0, 0.0, 0.01, -0.01, 30.0),
        points(1.0, 0.5, 0.04, 0.03, 0.7, 0.05, 50.0, 900.0),
        points(0.1, 1.0, 0.5, 1.0, -0.3, 0.2, 1.0, 1.0),
        points(1.0, 1.1, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0),
    )
    assert torch.autograd.gradcheck(moment_map, at)
    assert torch.autograd.gradgradcheck(moment_map, at)
    assert torch.autograd.gradcheck(moment_jacobian, at)


def test_the_jacobian_at_zero_one_is_the_papers() -> None:
    J = moment_jacobian(0.0, 1.0)
    assert J.flatten().tolist() == pytest.approx([0, 0.088834, 0, 0.782648], abs=1e-6)
    assert torch.linalg.matrix_norm(J, 2).item() == pytest.approx(0.7877, abs=5e-5)


GRID = torch.cartesian_prod(
    torch.tensor([0.0, 0.01, 0.7, 3.0, 20.0, 300.0, -0.01, -0.7, -3.0, -10.0], dtype=torch.float64),
    torch.tensor([1e-6, 1e-2, 0.06, 0.07, 1.0, 30.0, 1e4, 1e7], dtype=torch.float64),
)


def test_the_jacobian_is_the_one_of_autograd() -> None:
    mean, variance = GRID.T.clone().requires_grad_().unbind()
    outs = moment_map(mean, variance, 0.7, 1.1)
    rows = [torch.autograd.grad(out.sum(), (mean, variance), retain_graph=True) for out in outs]
    auto = torch.stack([torch.stack(row, -1) for row in rows], -2)
    torch.testing.assert_close(moment_jacobian(mean, variance, 0.7, 1.1), auto, rtol=1e-10, atol=1e-13)


def test_the_jacobian_is_the_one_of_finite_differences() -> None:
    J, size = moment_jacobian(GRID[:, 0], GRID[:, 1], 0.7, 1.1), GRID[:, 1].sqrt()
    for column, h in enumerate((1e-4 * size, 1e-4 * size**2)):
        step = torch.zeros_like(GRID).index_copy_(1, torch.tensor([column]), h[:, None])
        at = [(GRID + sign * step).unbind(-1) for sign in (1, -1)]
        up, down = (torch.stack(moment_map(m, v, 0.7, 1.1), -1) for m, v in at)
        error = ((up - down) / (2 * h[:, None]) - J[..., column]).abs()
        rounding = 1e-15 * up.abs() / h[:, None]
        assert (error < 1e-6 * J[..., column].abs().amax(-1, keepdim=True) + rounding).all()


@pytest.mark.parametrize(("m", "v"), [(8.0, 0.5), (1e3, 1e8), (-20.0, 400.0), (-5.0, 0.01), (-0.1, 1e6), (3.0, 1e-4)])
def test_the_jacobian_is_exact_in_the_tails(m: float, v: float) -> None:
    J, h = moment_jacobian(m, v, 1.0), mp.mpf(10) ** -100
    for column, (dm, dv) in enumerate(((h, 0), (0, h))):
        with mp.workdps(700):
            up, down = literal(mp.mpf(m) + dm, mp.mpf(v) + dv, 700), literal(mp.mpf(m) - dm, mp.mpf(v) - dv, 700)
            want = [(a - b) / (2 * h) for a, b in zip(up, down, strict=True)]
        for row in range(2):
            assert abs(want[row]) < 1e-300 or off(J[row, column], want[row]) < 2e-12


finite = st.floats(-1e3, 1e3)
positive = st.floats(1e-8, 1e8)


@given(st.lists(finite, min_size=1, max_size=4), st.lists(positive, min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_floats_and_tensors_broadcast(means: list[float], variances: list[float]) -> None:
    mean, variance = moment_map(torch.tensor(means)[:, None], torch.tensor(variances), 1.0)
    J = moment_jacobian(torch.tensor(means)[:, None], torch.tensor(variances), 1.0)
    assert mean.dtype == torch.float64
    assert mean.shape == variance.shape == (len(means), len(variances))
    assert J.shape == (*mean.shape, 2, 2)
    m, v = torch.tensor(means)[-1].item(), torch.tensor(variances)[-1].item()  # as float32 has them
    assert (mean[-1, -1].item(), variance[-1, -1].item()) == pytest.approx(
        [one.item() for one in moment_map(m, v, 1.0)], rel=1e-13
    )


@given(finite, positive, st.floats(1e-6, 1e2))
@settings(max_examples=40, deadline=None)
def test_the_mean_rises_with_the_mean_and_the_variance_is_between_the_slopes(m: float, v: float, step: float) -> None:
    """selu rises, with slopes between 0 and lambda alpha."""
    mean, variance = moment_map(torch.tensor([m, m + step], dtype=torch.float64), v, 1.0)
    assert mean[1] >= mean[0] - 1e-15 * mean[0].abs()
    assert (mean[1] - mean[0]) <= SCALE * ALPHA * step + 1e-12 * mean.abs().max()
    assert (variance >= 0).all()
    assert (variance <= (SCALE * ALPHA) ** 2 * v * (1 + 1e-12)).all()


@given(finite, positive)
@settings(max_examples=40, deadline=None)
def test_without_alpha_it_is_the_rectified_normal(m: float, v: float) -> None:
    mean, variance = moment_map(m, v, 1.0, alpha=0.0, scale=1.0)
    s = math.sqrt(v)
    above, density = math.erfc(-m / s / math.sqrt(2)) / 2, math.exp(-(m**2) / v / 2) / math.sqrt(2 * math.pi)
    assert mean.item() == pytest.approx(m * above + s * density, rel=1e-9, abs=1e-13 * (abs(m) + s))
    square = (m**2 + v) * above + m * s * density
    assert variance.item() + mean.item() ** 2 == pytest.approx(square, rel=1e-9, abs=1e-13 * (m**2 + v))


def test_it_runs_under_vmap_and_functional_derivatives() -> None:
    at = torch.tensor([0.1, 1.2], dtype=torch.float64)
    J = torch.func.jacrev(lambda x: torch.stack(moment_map(x[0], x[1], 0.1)))(at)
    torch.testing.assert_close(J, moment_jacobian(0.1, 1.2, 0.1))


@pytest.mark.parametrize("function", [moment_map, moment_jacobian])
def test_negative_variances_and_weights_are_refused(function) -> None:
    name = function.__name__
    with pytest.raises(ValueError, match=rf"^{name}: variance must be at least 0\. Got -0\.5\. Use 1\.0\.$"):
        function(0.0, torch.tensor([1.0, -0.5]))
    with pytest.raises(
        ValueError, match=rf"^{name}: tau must be at least 0\. Got -1\. Use the sum of squared weights\.$"
    ):
        function(0.0, 1.0, 0.0, -1.0)


@pytest.mark.parametrize("x", [-0.5, 0.0, 0.7, 2.99, 3.01, 6.0, 40.0, 1e4])
def test_tails_are_the_integrals(x: float) -> None:
    for n in range(5):
        with mp.workdps(30):
            want = mp.quad(
                lambda t, n=n: t**n * mp.exp(-x * t - t * t / 2), [0, 1 / (1 + abs(x)), 8 / (1 + abs(x)), 20]
            )
        assert off(moments._tail(torch.tensor(x, dtype=torch.float64), n), want) < (1e-13 if n < 4 else 1e-12)
