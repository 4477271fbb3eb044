"""A rehearsal: curvature against Hessians that are known, and what it leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import hooke
from hooke.rehearsal import rehearsal
from hooke.rehearsal.curvature import Losses, top_eigenvalue
from hooke.run import Run

# The eigenvalue -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-8.0, 0.0, 8.0])
def test_the_top_eigenvalue_is_the_largest_whatever_lies_below(shift: float) -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.randn(60, 60, generator=random)
    matrix = (a + a.T) / 2 + shift * torch.eye(60)
    products: list[int] = []

    def product(v: Tensor) -> Tensor:
        products.append(1)
        return matrix @ v

    value, error, x = top_eigenvalue(product, torch.randn(60, generator=random))
    expected = torch.linalg.eigvalsh(matrix)[-1].item()
    assert value == pytest.approx(expected, rel=1e-3)
    assert value <= expected + 1e-4
    assert error == pytest.approx((matrix @ x - value * x).norm().item(), abs=1e-3)
    assert error <= 1e-3 * abs(value) + 1e-5 and len(products) < 60


def test_it_settles_where_the_start_is_an_eigenvector_or_there_is_no_other() -> None:
    diagonal = torch.tensor([1.0, 5.0, 3.0])
    assert top_eigenvalue(lambda v: diagonal * v, torch.tensor([0.0, 2.0, 0.0]))[0] == 5
    assert top_eigenvalue(lambda v: 7 * v, torch.ones(1))[0] == pytest.approx(7)
    assert top_eigenvalue(lambda v: 0 * v, torch.ones(4))[0] == 0


def test_it_takes_no_more_products_than_it_may() -> None:
    products: list[int] = []

    def product(v: Tensor) -> Tensor:
        products.append(1)
        return torch.logspace(-6, 0, 500) * v

    top_eigenvalue(product, torch.ones(500), tolerance=0.0, most=7)
    assert len(products) == 7


# Through a worker -----------------------------------------------------------------------------------------------


class Script:
    """A user's loop, rehearsed in this process."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rehearsal, "TIMED_SECONDS", 0.0)
        self.run = Run(str(folder), str(folder / "center"), 0, 1, started=time.monotonic(), rehearses=True)
        self.run.files.rehearsal(0).parent.mkdir()
        for name, value in self.run.environment().items():
            patch.setenv(name, value)

    def __call__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[], None],
        rule: hooke.Rule | None = None,
        *,
        steps: int = 1000,
        period: int = 10,
        **settings: Any,
    ) -> dict[str, Any]:
        rule = hooke.EASGD() if rule is None else rule
        try:
            with hooke.Worker(model, optimizer, rule, communication_period=period, **settings) as worker:
                for _ in range(steps):
                    optimizer.zero_grad()
                    backward()
                    optimizer.step()
                    worker.record(examples=4)
        except SystemExit as done:
            assert done.code == 0
        else:
            assert steps < 1000, "the rehearsal did not stop the script"
        return json.loads(self.run.files.rehearsal(0).read_text())


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(tmp_path, monkeypatch)


class Bowl(nn.Module):
    """Half of x' H x, H diagonal."""

    def __init__(self, curvatures: list[float]) -> None:
        super().__init__()
        self.h, self.x = torch.tensor(curvatures), nn.Parameter(torch.ones(len(curvatures)))

    def forward(self) -> Tensor:
        return (self.h * self.x.square()).sum() / 2


def sgd(model: nn.Module, lr: float = 1e-4, **more: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **more)


def all_of(told: dict[str, Any]) -> list[float]:
    return [value for place in told["curvatures"] for value in place]


def test_a_bowl_s_curvature_is_exact(script: Script) -> None:
    model = Bowl([0.5, -3.0, 12.5, 2.0])
    told = script(model, sgd(model), lambda: model().backward())
    assert [len(place) for place in told["curvatures"]] == [rehearsal.BATCHES, rehearsal.BATCHES]
    assert all_of(told) == pytest.approx([12.5] * 6, rel=1e-3)
    assert told["curvature_failure"] is None and told["curvature_doubt"] < 1e-2


def data(features: int = 6, classes: int = 3, count: int = 20) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(count, features, generator=random)
    return x, torch.randint(classes, (count,), generator=random)


def dense(model: nn.Module, loss: Callable[[dict[str, Tensor]], Tensor]) -> np.ndarray:
    """The Hessian, built whole."""
    parts = {name: value.detach() for name, value in model.named_parameters()}

    def of(flat: Tensor) -> Tensor:
        pieces = flat.split([value.numel() for value in parts.values()])
        return loss({name: piece.view_as(parts[name]) for name, piece in zip(parts, pieces, strict=True)})

    return torch.autograd.functional.hessian(of, nn.utils.parameters_to_vector(parts.values())).numpy()


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))


def test_a_small_net_s_curvature_is_that_of_its_dense_hessian(script: Script) -> None:
    model, (x, y) = network(), data()
    expected = np.linalg.eigvalsh(dense(model, lambda p: cross_entropy(functional_call(model, p, (x,)), y)))[-1]
    told = script(model, sgd(model, 1e-7), lambda: cross_entropy(model(x), y).backward())
    assert all_of(told) == pytest.approx([expected] * 6, rel=1e-3)


def test_decay_and_groups_count_as_the_optimizer_uses_them(script: Script) -> None:
    model, (x, y) = network(), data()
    lrs = [1e-7, 1e-7, 4e-7, 4e-7]
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 1e-7}, {"params": model[2].parameters(), "weight_decay": 0.3}],
        lr=4e-7,
    )
    whole = dense(model, lambda p: cross_entropy(functional_call(model, p, (x,)), y))
    sizes = [p.numel() for p in model.parameters()]
    share = np.repeat(np.array(lrs) / 4e-7, sizes)
    whole += np.diag(np.repeat([0, 0, 0.3, 0.3], sizes))
    steps = np.sqrt(share)[:, None] * whole * np.sqrt(share)  # as lr * H has eigenvalues
    told = script(model, optimizer, lambda: cross_entropy(model(x), y).backward())
    assert told["lr"] == 4e-7 and told["weight_decay"] == 0.3
    assert all_of(told) == pytest.approx([np.linalg.eigvalsh(steps)[-1]] * 6, rel=1e-3)


def test_accumulated_scaled_and_clipped_gradients_have_the_loss_s_curvature(script: Script) -> None:
    model = Bowl([1.0, 6.0])

    def backward() -> None:
        for _ in range(2):
            (model() / 2 * 1024).backward()
        assert model.x.grad is not None
        model.x.grad /= 1024  # as GradScaler does before the step

    assert all_of(script(model, sgd(model), backward)) == pytest.approx([6.0] * 6, rel=1e-3)


def test_clipping_is_not_taken_for_a_scale(script: Script) -> None:
    model = Bowl([1.0, 6.0])

    def backward() -> None:
        model().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    assert all_of(script(model, sgd(model), backward)) == pytest.approx([6.0] * 6, rel=1e-3)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[None].chunk(3, -1)
        return scaled_dot_product_attention(q[None], k[None], v[None])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@pytest.mark.parametrize("kind", [Attention, Recurrent])
def test_fused_kernels_are_replaced_where_they_have_no_second_derivative(script: Script, kind: type) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(9, 8)
    told = script(model, sgd(model), lambda: model(x).square().mean().backward())
    assert told["curvature_failure"] is None and len(all_of(told)) == 6
    assert torch.backends.mkldnn.enabled


class Squared(torch.autograd.Function):
    """A square with a handwritten derivative that can't be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def test_what_can_not_be_differentiated_twice_says_so_and_is_still_timed(script: Script) -> None:
    model = Bowl([1.0, 2.0])
    told = script(model, sgd(model), lambda: Squared.apply(model.x).square().sum().backward())  # type: ignore[attr-defined]
    assert told["curvatures"] == [] and "once_differentiable" in told["curvature_failure"]
    assert told["step_seconds"] > 0 and model.x.grad is not None


def test_recomputed_activations_train_on(script: Script) -> None:
    model, (x, y) = network(), data()
    for reentrant in (False, True):

        def backward(reentrant: bool = reentrant) -> None:
            hidden = checkpoint(model[0], x.clone().requires_grad_(), use_reentrant=reentrant)
            cross_entropy(model[2](hidden), y).backward()

        told = script(model, sgd(model), backward)
        if reentrant:
            assert told["curvature_failure"].startswith("a part of the model is checkpointed with use_reentrant=True")
        else:
            assert told["curvature_failure"] is None
        script.run.files.rehearsal(0).unlink()


def test_without_backward_there_is_no_curvature(script: Script) -> None:
    model = Bowl([1.0])

    def backward() -> None:
        model.x.grad = model.x.detach().clone()

    assert script(model, sgd(model), backward)["curvature_failure"] == "no backward() was seen before optimizer.step()"


def test_a_loss_that_curves_nowhere_upward_says_so(script: Script) -> None:
    model = Bowl([-1.0, -2.0])
    assert "no direction of this loss curves upward (largest eigenvalue -1" in str(
        script(model, sgd(model), lambda: model().backward())["curvature_failure"]
    )


# What it reads, and what it leaves ------------------------------------------------------------------------------


def test_what_is_known_of_the_worker(script: Script) -> None:
    model = Bowl([1.0, 2.0])
    told = script(
        model,
        sgd(model, 0.01, momentum=0.9, nesterov=True),
        lambda: model().backward(),
        hooke.Averaged(hooke.EAMSGD(moving_rate=0.3)),
        period=7,
    )
    expected = {"rule": "EAMSGD", "period": 7, "optimizer": "SGD", "lr": 0.01, "momentum": 0.9, "nesterov": True}
    expected |= {
        "parameters": 16,
        "batch": 4.0,
        "device": "cpu",
        "synchronous": False,
        "overlap": False,
        "automatic": False,
    }
    assert {name: told[name] for name in expected} == expected
    assert told["rule_settings"] == {"beta": None, "moving_rate": 0.3, "order": "jacobi"}
    assert told["timed_steps"] >= 20 and told["exchanges"] >= rehearsal.EXCHANGES
    assert 0 < told["exchange_seconds"] < 1 and 0 < told["step_seconds"] < 1


def test_an_exchange_is_no_part_of_the_step(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = hooke.LocalCenter.exchange_

    def exchange_(*words: Any) -> None:
        time.sleep(0.05)
        slow(*words)

    monkeypatch.setattr(hooke.LocalCenter, "exchange_", exchange_)
    model = Bowl([1.0])
    told = script(model, sgd(model), lambda: model().backward(), hooke.LocalSGD(), period=2)
    assert told["exchange_seconds"] > 0.05 > 2 * told["step_seconds"]


def test_a_schedule_is_noticed(script: Script) -> None:
    model = Bowl([1.0])
    optimizer = sgd(model, 1e-3)

    def backward() -> None:
        optimizer.param_groups[0]["lr"] += 1e-3
        model().backward()

    told = script(model, optimizer, backward)
    assert told["lr_changes"] and told["lr"] == pytest.approx(1e-3 * (1 + told["steps"]))


def test_a_script_that_ends_early_leaves_what_there_is(script: Script) -> None:
    model = Bowl([3.0])
    told = script(model, sgd(model), lambda: model().backward(), steps=12)
    assert told["steps"] == 12 and told["timed_steps"] > 0 and len(told["curvatures"]) == 1
    script.run.files.rehearsal(0).unlink()
    told = script(model, sgd(model), lambda: model().backward(), steps=2)
    assert told["timed_steps"] == 0 and told["step_seconds"] is None and told["curvatures"] == []


def test_it_leaves_torch_and_the_random_state_as_they_were(script: Script) -> None:
    before = torch.autograd.backward
    model = Bowl([1.0, 2.0])
    torch.manual_seed(5)
    script(model, sgd(model), lambda: model().backward())
    drawn = torch.rand(3)
    assert torch.autograd.backward is before
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_losses_are_forgotten_when_a_step_is_over() -> None:
    x = torch.ones(2, requires_grad=True)
    with Losses([x]) as losses:
        x.pow(3).sum().backward()
        assert losses.seen
        losses.clear()
        assert not losses.seen
        (5 * x.square()).sum().backward()
        assert losses.product(torch.ones(2)).tolist() == [10, 10]
        assert losses.gradient().tolist() == [10, 10]
    assert x.grad is not None and x.grad.tolist() == [13, 13]  # the loop's own gradients are what they would be


def test_a_run_is_not_rehearsed(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Run(**{**vars(script.run), "rehearses": False})
    monkeypatch.setenv("HOOKE_RUN", plain.environment()["HOOKE_RUN"])
    model = Bowl([1.0])
    with hooke.Worker(model, sgd(model), hooke.EASGD()) as worker:
        assert worker._rehearsal is None
