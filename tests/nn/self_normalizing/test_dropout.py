"""Alpha dropout against its closed form, a literal reference, and torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hooke.nn.self_normalizing.dropout import AlphaDropout, FeatureAlphaDropout, alpha_dropout_affine

SATURATION = -1.7580993408473766
JIT = "ignore:.torch.jit.script. is deprecated:DeprecationWarning"  # torch's own, from forward-mode derivatives


def reference(x: Tensor, kept: Tensor, p: float, mean: float, variance: float, alpha: float, scale: float) -> Tensor:
    """The paper's text, one unit at a time."""
    q, saturation = 1 - p, -scale * alpha
    a = (variance / (q * ((1 - q) * (saturation - mean) ** 2 + variance))) ** 0.5
    b = mean - a * (q * mean + (1 - q) * saturation)
    units = zip(x.flatten(), kept.flatten().tolist(), strict=True)
    return torch.stack([a * (unit if keep else saturation + 0 * unit) + b for unit, keep in units]).view(x.shape)


def seeded(function: Callable[..., Tensor], seed: int = 0) -> Callable[..., Tensor]:
    """The same function, with the same random numbers at every call."""

    def again(*inputs: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return function(*inputs)

    return again


@pytest.mark.parametrize(
    ("p", "a", "b"), [(0.05, 0.954844, 0.083936), (0.1, 0.921285, 0.161970), (0.5, 0.886405, 0.779194)]
)
def test_the_affine_map_at_the_papers_rates(p: float, a: float, b: float) -> None:
    assert alpha_dropout_affine(p) == pytest.approx((a, b), abs=1.1e-6)
    assert (AlphaDropout(p).a, AlphaDropout(p).b) == alpha_dropout_affine(p)


rates, positives = st.floats(0.0, 0.99), st.floats(0.1, 10.0)


@given(p=rates, mean=st.floats(-3, 3), variance=positives, alpha=positives, scale=positives)
def test_the_affine_map_keeps_mean_and_variance_exactly(
    p: float, mean: float, variance: float, alpha: float, scale: float
) -> None:
    a, b = alpha_dropout_affine(p, mean, variance, alpha, scale)
    kept, dropped = a * mean + b, -a * scale * alpha + b
    new_mean = (1 - p) * kept + p * dropped
    spread = (1 - p) * (a * a * variance + (kept - new_mean) ** 2) + p * (dropped - new_mean) ** 2
    assert new_mean == pytest.approx(mean, abs=1e-9)
    assert spread == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("constants", [{}, {"alpha": 1.97126, "scale": 1.06071, "mean": -0.3, "variance": 2.0}])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_moments_and_share_of_a_large_sample(p: float, constants: dict[str, float]) -> None:
    n, mean, variance = 500_000, constants.get("mean", 0.0), constants.get("variance", 1.0)
    torch.manual_seed(0)
    dropout = AlphaDropout(p, **constants)  # pyright: ignore[reportArgumentType]
    out = dropout(mean + variance**0.5 * torch.randn(n, dtype=torch.float64))
    centered = out - mean
    assert abs(centered.mean()) < 5 * math.sqrt(variance / n)
    assert abs(centered.square().mean() - variance) < 5 * centered.square().std() / math.sqrt(n)
    dropped = (out - (dropout.a * -dropout.scale * dropout.alpha + dropout.b)).abs() < 1e-12
    assert abs(dropped.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_moments_on_an_accelerator(compiled: bool) -> None:
    torch.manual_seed(0)
    dropout: Callable[[Tensor], Tensor] = AlphaDropout(0.3)
    out = (torch.compile(dropout, fullgraph=True) if compiled else dropout)(torch.randn(1000, 1000, device="cuda"))
    assert abs(out.mean().item()) < 5e-3
    assert out.var().item() == pytest.approx(1, abs=1e-2)


def test_plain_dropout_would_not_pass() -> None:
    torch.manual_seed(0)
    assert nn.Dropout(0.1)(torch.randn(500_000)).var() > 1.1


def test_the_chance_is_finer_than_sixteen_bits() -> None:
    torch.manual_seed(0)
    x, calls, p = torch.empty(2**16), 400, 0.25 / 2**16
    dropped = sum(2**16 - int(torch.ops.hooke.kept_units(x, 1 - p).sum()) for _ in range(calls))
    assert abs(dropped - 0.25 * calls) < 65  # 5 standard deviations; rounding would give 0


@pytest.mark.parametrize("p", [0.2, 0.999999])
@pytest.mark.parametrize("inplace", [False, True])
def test_values_and_gradients_are_those_of_the_reference(p: float, inplace: bool) -> None:
    settings = (p, 0.3, 1.7, 2.1, 0.9)
    dropout = AlphaDropout(p, mean=0.3, variance=1.7, alpha=2.1, scale=0.9, inplace=inplace)
    x = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(x * 1.0)
    torch.manual_seed(1)
    wanted = reference(x, torch.ops.hooke.kept_units(x, 1 - p), *settings)
    torch.testing.assert_close(out, wanted)
    gradient = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, x, gradient), torch.autograd.grad(wanted, x, gradient))


@pytest.mark.filterwarnings(JIT)
@pytest.mark.parametrize(
    "dropout", [AlphaDropout(0.3), FeatureAlphaDropout(0.3, spatial_dims=1)], ids=["unit", "feature"]
)
def test_derivatives_forward_backward_and_twice(dropout: nn.Module) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded(dropout), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(seeded(lambda x: dropout(x.sin())), x)


@pytest.mark.filterwarnings(JIT)
def test_under_vmap_masks_differ_or_not_as_asked() -> None:
    dropout, x = AlphaDropout(0.5), torch.ones(4, 50)
    slope = torch.func.grad(lambda x: dropout(x).sum())
    assert torch.func.vmap(slope, randomness="different")(x).unique(dim=0).shape[0] == 4
    assert torch.func.vmap(slope, randomness="same")(x).unique(dim=0).shape[0] == 1
    with pytest.raises(RuntimeError, match=r"vmap must say how masks differ. Got randomness='error'. Use 'different'."):
        torch.func.vmap(dropout)(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("inplace", [False, True])
def test_types_are_kept_and_the_seed_decides(dtype: torch.dtype, inplace: bool) -> None:
    dropout, x = AlphaDropout(0.3, inplace=inplace), torch.randn(50, 3).to(dtype)
    out = seeded(dropout)(x.clone())
    assert out.dtype == dtype
    assert torch.equal(out, seeded(dropout)(x.clone()))
    assert not torch.equal(out, seeded(dropout, seed=1)(x.clone()))
    close = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-6)
    torch.testing.assert_close(out.double(), seeded(dropout)(x.double()), atol=2 * close, rtol=close)


def test_inplace_overwrites_the_input_and_the_default_does_not() -> None:
    x = torch.randn(100)
    before = x.clone()
    AlphaDropout(0.5)(x)
    assert torch.equal(x, before)
    assert AlphaDropout(0.5, inplace=True)(x).data_ptr() == x.data_ptr()
    assert not torch.equal(x, before)


def test_nothing_is_dropped_in_eval_mode_or_at_rate_0() -> None:
    x = torch.randn(20)
    assert AlphaDropout(0.5).eval()(x) is x
    assert AlphaDropout(0.0)(x) is x


def test_a_changed_rate_changes_the_affine_map() -> None:
    dropout = AlphaDropout(0.1)
    dropout.p = 0.5
    assert (dropout.a, dropout.b) == alpha_dropout_affine(0.5)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 7), (2, 3, 4)])
def test_any_shape_and_layout(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).movedim(0, -1) if len(shape) > 1 else torch.randn(shape)
    assert AlphaDropout(0.5)(x).shape == x.shape


@pytest.mark.parametrize(
    "dropout", [AlphaDropout(0.3), FeatureAlphaDropout(0.3, spatial_dims=2)], ids=["unit", "feature"]
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_draws_the_same_mask(dropout: nn.Module, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(dropout, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = torch.randn(4, 5, 6, 7, requires_grad=True)
    torch.testing.assert_close(seeded(compiled)(x), seeded(dropout)(x))
    mine, wanted = (torch.autograd.grad(seeded(f)(x).square().sum(), x) for f in (compiled, dropout))
    torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (6,)], ids=["one example", "batch"])
def test_whole_channels_are_dropped(spatial_dims: int, batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(*batch, 40, *(3, 4, 5)[:spatial_dims])
    dropout = FeatureAlphaDropout(0.5, spatial_dims=spatial_dims)
    out = dropout(x).flatten(len(batch) + 1)
    dropped = (out - (dropout.a * SATURATION + dropout.b)).abs() < 1e-5
    assert torch.equal(dropped.all(-1), dropped.any(-1))
    assert 0.25 < dropped.all(-1).float().mean() < 0.75
    kept = ~dropped.all(-1)
    torch.testing.assert_close(out[kept], dropout.a * x.flatten(len(batch) + 1)[kept] + dropout.b)


def test_torch_masks_parts_of_a_channel_of_one_example() -> None:
    """The reason for `FeatureAlphaDropout`. If this fails, torch is mended, and its docstring should say so."""
    torch.manual_seed(0)
    out = nn.FeatureAlphaDropout(0.5)(torch.ones(8, 10, 3, 3))
    assert max(channel.unique().numel() for channel in out) == 2


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_torchs_reference_has_the_sign_of_b_wrong(p: float) -> None:
    """`torch._refs`, which decompositions use, shifts the mean by 2 a p saturation; eager torch does not."""
    refs = pytest.importorskip("torch._refs.nn.functional")
    torch.manual_seed(0)
    mean = refs.alpha_dropout(torch.randn(200_000), p, training=True).mean().item()
    assert mean == pytest.approx(2 * alpha_dropout_affine(p)[0] * p * SATURATION, abs=0.02)


def test_a_rate_changed_to_1_is_refused_in_its_own_name() -> None:
    dropout = AlphaDropout(0.1)
    dropout.p = 1.0
    with pytest.raises(ValueError, match=r"^AlphaDropout: p must be in \[0, 1\)\. Got 1\.0"):
        dropout(torch.ones(3))


def test_repr() -> None:
    assert repr(AlphaDropout(0.1)) == "AlphaDropout(p=0.1)"
    assert repr(AlphaDropout(0.1, alpha=2.0, inplace=True)) == "AlphaDropout(p=0.1, alpha=2.0, inplace=True)"
    assert repr(FeatureAlphaDropout(spatial_dims=2)) == "FeatureAlphaDropout(p=0.05, spatial_dims=2)"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AlphaDropout(1.5), "AlphaDropout: p must be in [0, 1). Got 1.5. Use 0.05 or 0.1."),
        (lambda: AlphaDropout(1.0), "AlphaDropout: p must be in [0, 1). Got 1.0. Use 0.05 or 0.1."),
        (lambda: AlphaDropout(math.nan), "AlphaDropout: p must be in [0, 1). Got nan. Use 0.05 or 0.1."),
        (lambda: AlphaDropout(0.1, True), "AlphaDropout: alpha must be a positive number. Got True. Use 1.6733."),
        (lambda: AlphaDropout(scale=0.0), "AlphaDropout: scale must be a positive number. Got 0.0. Use 1.0507."),
        (lambda: AlphaDropout(variance=0.0), "AlphaDropout: variance must be a positive number. Got 0.0. Use 1.0."),
        (lambda: AlphaDropout(mean=math.inf), "AlphaDropout: mean must be finite. Got inf. Use 0.0."),
        (lambda: alpha_dropout_affine(-0.1), "alpha_dropout_affine: p must be in [0, 1). Got -0.1. Use 0.05 or 0.1."),
        (
            lambda: FeatureAlphaDropout(2, spatial_dims=2),
            "FeatureAlphaDropout: p must be in [0, 1). Got 2. Use 0.05 or 0.1.",
        ),
        (
            lambda: FeatureAlphaDropout(spatial_dims=4),
            "FeatureAlphaDropout: spatial_dims must be 1, 2 or 3. Got 4. Use 2 for images; AlphaDropout where there is "
            "no space.",
        ),
        (
            lambda: FeatureAlphaDropout(spatial_dims=2)(torch.ones(2, 3)),
            "FeatureAlphaDropout: input must have 4 dimensions (batch, channel, 2 of space), or 3 without a batch. Got "
            "2. Set spatial_dims to the number behind the channels.",
        ),
    ],
)
def test_error_sentences(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == sentence
