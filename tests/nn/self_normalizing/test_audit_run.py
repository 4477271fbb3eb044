"""The audit's one run: what it accepts, what it refuses in one sentence, and that nothing of it remains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from audit_cases import Case, M, mlp, n, snn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hooke.nn import audit
from hooke.nn.self_normalizing.audit.ledger import sample_moments


def buffered(value: Tensor, use: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    model = M(use, net=mlp(16, 2))
    model.register_buffer("kept", value)
    model.net[0].weight.grad = torch.ones(16, 16)
    return model


def by_data(s: Any, x: Tensor) -> Tensor:
    s.kept.data.add_(1)
    return s.net(x)


def made_persistent(s: Any, x: Tensor) -> Tensor:
    s.register_buffer("kept", torch.zeros(3), persistent=False)
    return s.net(x)


@pytest.mark.parametrize(
    ("value", "use"),
    [
        (torch.ones(1, 1).expand(8, 8), lambda s, x: s.net(x)),
        (torch.full((3,), torch.nan), lambda s, x: s.net(x)),
        (torch.zeros(3), by_data),
        (torch.zeros(3), made_persistent),
    ],
    ids=["expanded", "not a number", "changed by .data", "made passing"],
)
def test_buffers_of_any_kind_come_back(value: Tensor, use: Callable[[Any, Tensor], Tensor]) -> None:
    model = buffered(value, use).eval()
    before = model.kept.clone()
    audit(model, n(8, 16))
    assert torch.equal(before.nan_to_num(7), model.kept.nan_to_num(7))  # pyright: ignore
    assert not model.training and torch.equal(model.net[0].weight.grad, torch.ones(16, 16))  # pyright: ignore
    assert "kept" in model.state_dict()


def test_gradients_and_modes_come_back_where_a_buffer_can_not() -> None:
    def broken(s: Any, x: Tensor) -> Tensor:
        s.kept.resize_(5)
        return s.net(x)

    model = buffered(torch.zeros(3), broken).eval()
    with pytest.raises(RuntimeError, match="size of tensor"):
        audit(model, n(8, 16))
    assert not model.training and torch.equal(model.net[0].weight.grad, torch.ones(16, 16))  # pyright: ignore


@pytest.mark.parametrize("training", [False, True])
def test_a_backward_pass_that_waits_still_works(training: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).train(training)
    weight = nn.Buffer(torch.randn(8, requires_grad=False))
    model.register_buffer("factor", weight)
    x = n(16, 8).requires_grad_()
    (wanted,) = torch.autograd.grad((model(x) * model.factor.sum()).sum(), x)  # pyright: ignore
    waiting = (model(x * model.factor / model.factor) * model.factor.sum()).sum()  # pyright: ignore
    audit(model, n(16, 8))
    torch.testing.assert_close(torch.autograd.grad(waiting, x)[0], wanted)


def recomputed(s: Any, x: Tensor) -> Tensor:
    return s.head(checkpoint(s.part, s.first(x), use_reentrant=True))  # pyright: ignore


def reentrant(forward: Callable[[Any, Tensor], Any] = recomputed) -> nn.Module:
    return M(forward, first=nn.Linear(16, 16), part=mlp(16, 2), head=nn.Linear(10, 2))


def scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="jit"):
        return torch.jit.script(nn.ReLU())


REFUSED: dict[str, tuple[Callable[[], Case], str]] = {
    "scripted": (
        lambda: (scripted(), n(8, 16)),
        "audit: every module must be written in Python. Got a model, which is",
    ),
    "scripted part": (
        lambda: (nn.Sequential(nn.Linear(16, 2), scripted()), n(8, 16)),
        "in Python. Got 1, which is scripted.",
    ),
    "lazy buffer": (
        lambda: (nn.Sequential(nn.Linear(16, 2), nn.LazyBatchNorm1d(affine=False)), n(8, 16)),
        "Got lazy 1.running_mean.",
    ),
    "meta": (lambda: (nn.Linear(16, 2, device="meta"), n(8, 16)), "must have values. Got on the meta device weight."),
    "complex": (lambda: (nn.Linear(16, 2, dtype=torch.complex64), n(8, 16)), "must be real. Got complex weight."),
    "complex inputs": (
        lambda: (nn.Linear(16, 2), n(8, 16) * 1j),
        "audit: inputs must be real numbers. Got complex ones.",
    ),
    "no examples": (lambda: (mlp(16, 2), torch.zeros(0, 16)), "audit: inputs must hold examples. Got shape (0, 16)."),
    "reentrant": (
        lambda: (reentrant(), n(8, 16)),
        "audit: checkpoints must let gradients of activations through. Got a r",
    ),
    "reentrant at the end": (
        lambda: (reentrant(lambda s, x: checkpoint(s.part, s.first(x), use_reentrant=True)), n(8, 16)),
        "Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False).",
    ),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_run_is_one_sentence(make: Callable[[], Case], says: str) -> None:
    model, x = make()
    with pytest.raises(ValueError) as caught:
        audit(model, x)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda y: y.mean().item(), "float"),
        (lambda y: y.mean().detach(), "shape (), detached"),
        (lambda y: y, "shape (8, 10)"),
    ],
)
def test_a_loss_without_a_gradient_is_refused(loss: Any, got: str) -> None:
    with pytest.raises(ValueError) as caught:
        audit(mlp(16, 2), n(8, 16), loss=loss)
    assert str(caught.value) == (
        f"audit: loss must return one number as a tensor with a gradient. Got {got}. "
        "Use e.g. lambda output: cross_entropy(output, y), without .item() or .detach()."
    )


def asks_for_gradients(s: Any, x: Tensor) -> Tensor:
    x = x[:, None]
    x.requires_grad = True
    return s.net(x)


def test_forward_may_ask_its_inputs_for_gradients() -> None:
    layers = audit(M(asks_for_gradients, net=mlp(16, 2)), n(8, 16)).layers
    assert all(layer.gradient_variance > 0 for layer in layers)


def test_compiled_models_are_unwrapped() -> None:
    report = audit(torch.compile(snn(2), backend="eager"), n(64, 64))  # pyright: ignore
    assert [layer.name for layer in report.layers] == ["linear1", "linear2", "output"]


@pytest.mark.parametrize("scale", [1e-35, 1e-25, 1e-12, 1.0, 1e12, 1e25, 1e35])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_moments_of_tensors_of_any_size(scale: float, shift: float) -> None:
    x = (shift + n(64, 64)) * scale
    mean, variance = (value.item() for value in sample_moments(x))
    wanted = x.double().var(correction=0).item()
    assert variance == pytest.approx(wanted, rel=1e-4, abs=0) and math.isfinite(mean)
    assert mean == pytest.approx(x.double().mean().item(), rel=1e-4, abs=1e-4 * wanted**0.5)


@pytest.mark.parametrize("shape", [(8, 16), (8, 5, 16)])
def test_gradients_pass_functions_in_place(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(True), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 2))
    x = torch.randn(shape)
    inplace = audit(model, x)
    model[1] = nn.ReLU()
    wanted = [layer.gradient_variance for layer in audit(model, x).layers]
    assert [layer.gradient_variance for layer in inplace.layers] == pytest.approx(wanted)
    assert inplace.findings == ()
