"""LeCun-normal weights, SELU for any constants, and the MLP that keeps its moments."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hooke.nn.self_normalizing.dropout import AlphaDropout
from hooke.nn.self_normalizing.layers import SELU, SelfNormalizingMLP, lecun_normal_
from hooke.nn.self_normalizing.moments import ALPHA, SCALE

JIT = "ignore:.torch.jit.script. is deprecated:DeprecationWarning"  # torch's own, from forward-mode derivatives


@pytest.mark.parametrize(
    ("module", "fan_in"),
    [
        (nn.Linear(200, 300), 200),
        (nn.Conv1d(30, 200, 7), 210),
        (nn.Conv2d(40, 80, 5, groups=4), 250),
        (nn.Conv3d(9, 40, 3), 243),
    ],
    ids=lambda value: type(value).__name__,
)
def test_lecun_normal_has_variance_one_over_fan_in(module: nn.Module, fan_in: int) -> None:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    assert lecun_normal_(weight, generator=torch.Generator().manual_seed(0)) is weight
    assert weight.requires_grad and weight.grad_fn is None
    n = weight.numel()
    assert abs(weight.mean()) < 5 / math.sqrt(n * fan_in)
    assert weight.square().mean().item() * fan_in == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    kurtosis = weight.pow(4).mean() / weight.square().mean() ** 2
    assert kurtosis.item() == pytest.approx(3, abs=5 * math.sqrt(24 / n))


def test_lecun_normal_follows_its_generator_and_torchs_seed() -> None:
    def drawn(**settings: torch.Generator) -> Tensor:
        return lecun_normal_(torch.empty(4, 5), **settings)

    torch.manual_seed(3)
    first = drawn()
    torch.manual_seed(3)
    assert torch.equal(first, drawn())
    assert torch.equal(first, drawn(generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("alpha", "scale"), [(ALPHA, SCALE), (1.97126, 1.06071), (0.5, 3.0)])
def test_selu_is_the_formula(alpha: float, scale: float, dtype: torch.dtype, inplace: bool) -> None:
    x = torch.linspace(-5, 5, 41).to(dtype)
    z = x.double()
    wanted = scale * torch.where(z > 0, z, alpha * torch.expm1(z))
    out = SELU(alpha, scale, inplace=inplace)(x)
    assert out.dtype == dtype
    assert (out.data_ptr() == x.data_ptr()) == inplace
    torch.testing.assert_close(out, wanted.to(dtype))


def test_default_selu_is_torchs_own() -> None:
    x = torch.randn(1000)
    assert torch.equal(SELU()(x), nn.SELU()(x))


@pytest.mark.filterwarnings(JIT)
@pytest.mark.parametrize("selu", [SELU(), SELU(2.0, 0.8)], ids=["default", "other"])
def test_selu_derivatives_forward_backward_and_twice(selu: SELU) -> None:
    x = torch.tensor([-3.0, -0.5, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(selu, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(selu, x)


@pytest.mark.parametrize("selu", [SELU(), SELU(2.0, 0.8)], ids=["default", "other"])
def test_selu_saturates_at_its_saturation(selu: SELU) -> None:
    assert selu(torch.tensor(-100.0)).item() == pytest.approx(selu.saturation, rel=1e-6)
    assert selu.saturation == -selu.alpha * selu.scale


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_selu_and_dropout_are_the_eager_ones(dynamic: bool) -> None:
    torch._dynamo.reset()
    pair = nn.Sequential(SELU(), AlphaDropout(0.2), SELU(2.0, 0.8), AlphaDropout(0.2, 2.0, 0.8))
    compiled = torch.compile(pair, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = torch.randn(8, 9, requires_grad=True)
    found = []
    for function in (compiled, pair):
        torch.manual_seed(0)
        out = function(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(*found)


def moments_by_layer(net: SelfNormalizingMLP, inputs: Tensor) -> list[tuple[float, float]]:
    found = []
    for part in net:
        inputs = part(inputs)
        if isinstance(part, SELU):
            found.append((inputs.mean().item(), inputs.var().item()))
    return found


def leaves(hidden: int, seed: int, dropout: float = 0.0) -> bool:
    """Whether any of 64 layers leaves mean 0 by 0.1 or variance 1 by 0.3."""
    torch.manual_seed(seed)
    with torch.no_grad():
        found = moments_by_layer(SelfNormalizingMLP(32, 4, hidden, 64, dropout=dropout), torch.randn(256, 32))
    assert len(found) == 64
    return any(abs(mean) > 0.1 or abs(variance - 1) > 0.3 for mean, variance in found)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_64_layers_keep_mean_and_variance_over_20_seeds(dropout: float) -> None:
    assert [seed for seed in range(20) if leaves(256, seed, dropout)] == []


def test_narrow_layers_leave_as_the_docstring_says() -> None:
    assert 5 <= sum(leaves(64, seed) for seed in range(20)) <= 15


def test_torchs_default_weights_do_not_keep_the_variance() -> None:
    torch.manual_seed(0)
    net = SelfNormalizingMLP(32, 4, 128, 16)
    for part in net:
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    with torch.no_grad():
        assert moments_by_layer(net, torch.randn(256, 32))[-1][1] < 0.1


def test_another_fixed_point_is_kept_too() -> None:
    torch.manual_seed(0)
    net = SelfNormalizingMLP(200, 4, 400, 16, alpha=1.9712557, scale=1.0607091, variance=2.0, dropout=0.1)
    with torch.no_grad():
        mean, variance = moments_by_layer(net, 2**0.5 * torch.randn(300, 200))[-1]
    assert mean == pytest.approx(0, abs=0.1)
    assert variance == pytest.approx(2, abs=0.2)


def test_parts_of_the_net() -> None:
    net = SelfNormalizingMLP(5, 3, hidden=7, depth=2, dropout=0.1)
    assert list(dict(net.named_children())) == [
        "linear1", "selu1", "dropout1", "linear2", "selu2", "dropout2", "output",
    ]  # fmt: skip
    assert [(part.in_features, part.out_features) for part in net if isinstance(part, nn.Linear)] == [
        (5, 7), (7, 7), (7, 3),
    ]  # fmt: skip
    assert all((part.bias == 0).all() for part in net if isinstance(part, nn.Linear))
    assert net(torch.randn(4, 5)).shape == (4, 3)
    assert not any(isinstance(part, AlphaDropout) for part in SelfNormalizingMLP(5, 3))


def test_default_sizes() -> None:
    assert SelfNormalizingMLP(5, 3).widths == (256,) * 8


@pytest.mark.parametrize(
    ("out_features", "hidden", "depth", "widths"),
    [(1, 256, 4, (256, 64, 16, 4)), (10, 1000, 3, (1000, 215, 46)), (64, 8, 3, (8, 16, 32)), (3, 512, 1, (512,))],
)
def test_conic_widths_are_a_geometric_progression(
    out_features: int, hidden: int, depth: int, widths: tuple[int, ...]
) -> None:
    net = SelfNormalizingMLP(5, out_features, hidden, depth, shape="conic")
    assert net.widths == widths
    assert net(torch.randn(2, 5)).shape == (2, out_features)


def test_slices_are_plain_sequentials_of_the_same_children() -> None:
    net = SelfNormalizingMLP(5, 3, hidden=7, depth=2)
    body = net[:-1]
    assert type(body) is nn.Sequential
    assert body.linear1 is net[0] is net.linear1
    x = torch.randn(2, 5)
    assert torch.equal(net[-1](body(x)), net(x))


def test_weights_load_whatever_the_dropout() -> None:
    net, other = SelfNormalizingMLP(5, 3, 7, 2, dropout=0.1), SelfNormalizingMLP(5, 3, 7, 2)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(other(x), net.eval()(x))


def test_copies_and_files_are_the_same_net() -> None:
    net, x, file = SelfNormalizingMLP(5, 3, 7, 2, dropout=0.1).eval(), torch.randn(2, 5), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert other.widths == net.widths
        assert torch.equal(other(x), net(x))


def test_reset_parameters_draws_anew() -> None:
    torch.manual_seed(0)
    net = SelfNormalizingMLP(5, 3, 7, 2)
    before = copy.deepcopy(net.state_dict())
    nn.init.ones_(net[-1].bias)
    torch.manual_seed(0)
    net.reset_parameters()
    assert not torch.equal(net[0].weight, before["linear1.weight"])
    assert torch.equal(net[-1].bias, before["output.bias"])


def test_device_and_dtype() -> None:
    net = SelfNormalizingMLP(5, 3, 7, 2, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {("meta", torch.float64)}


def test_repr() -> None:
    assert repr(SELU()) == "SELU(alpha=1.67326, scale=1.0507)"
    assert repr(SELU(2.0, 1.0, inplace=True)) == "SELU(alpha=2, scale=1, inplace=True)"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: lecun_normal_(torch.empty(3)),
            "lecun_normal_: tensor must have at least 2 dimensions, (out, in, ...). Got 1. Use it for weights; fill "
            "biases with torch.nn.init.zeros_.",
        ),
        (
            lambda: lecun_normal_(torch.empty(3, 0)),
            "lecun_normal_: every unit must have at least 1 weight. Got shape (3, 0). Give the layer at least one "
            "input.",
        ),
        (lambda: SELU(alpha=-1.0), "SELU: alpha must be a positive number. Got -1.0. Use 1.6733."),
        (lambda: SELU(True), "SELU: alpha must be a positive number. Got True. Use 1.6733."),
        (lambda: SELU(scale=math.nan), "SELU: scale must be a positive number. Got nan. Use 1.0507."),
        (
            lambda: SelfNormalizingMLP(5, 3, depth=0),
            "SelfNormalizingMLP: depth must be a whole number, 1 or more. Got 0. Use e.g. 64.",
        ),
        (
            lambda: SelfNormalizingMLP(5, 3, hidden=128.0),  # pyright: ignore[reportArgumentType]
            "SelfNormalizingMLP: hidden must be a whole number, 1 or more. Got 128.0. Use e.g. 64.",
        ),
        (
            lambda: SelfNormalizingMLP(5, 3, dropout=None),  # pyright: ignore[reportArgumentType]
            "SelfNormalizingMLP: dropout must be in [0, 1). Got None. Use 0.05 or 0.1.",
        ),
        (
            lambda: SelfNormalizingMLP(5, 3, mean=0.3, variance=2.0),
            "SelfNormalizingMLP: mean and variance must be left out without dropout. Got mean 0.3 and variance 2.0. "
            "Drop them: alpha and scale alone make the fixed point.",
        ),
        (
            lambda: SelfNormalizingMLP(5, 3, dropout=0.1, variance=2.0),
            "SelfNormalizingMLP: mean and variance must be the fixed point of alpha and scale. Got mean 0.0 and "
            "variance 2.0, which one layer takes to 0.0896 and 1.71. Take both from hooke.nn.fixed_point.",
        ),
        (
            lambda: SelfNormalizingMLP(0, 3),
            "SelfNormalizingMLP: in_features must be a whole number, 1 or more. Got 0. Use e.g. 64.",
        ),
        (
            lambda: SelfNormalizingMLP(5, 3, shape="round"),  # pyright: ignore[reportArgumentType]
            "SelfNormalizingMLP: shape must be 'rectangular' or 'conic'. Got 'round'. Use 'rectangular'.",
        ),
        (
            lambda: SelfNormalizingMLP(5, 3, dropout=1.0),
            "SelfNormalizingMLP: dropout must be in [0, 1). Got 1.0. Use 0.05 or 0.1.",
        ),
    ],
)
def test_error_sentences(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == sentence
