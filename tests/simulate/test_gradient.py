"""Gradients of several models at once against one model after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hooke
from hooke.simulate import Cluster, Simulation
from hooke.simulate.gradient import Gradients

CPU = torch.device("cpu")


class Tied(nn.Module):
    """An encoder and a decoder of one weight, a frozen layer, a buffer that stays, a parameter without use."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.frozen = nn.Linear(6, 4), nn.Linear(4, 6, bias=False), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.bias = nn.Parameter(torch.zeros(6))
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen.requires_grad_(False)
        self.register_buffer("scale", torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.frozen(torch.tanh(nn.functional.linear(x * self.scale, self.encode.weight, self.encode.bias)))
        return nn.functional.linear(hidden, self.decode.weight.t(), self.bias)


def convolutions() -> nn.Module:
    body = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 3)]
    return nn.Sequential(*body).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def rebuild(model: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), x)


def classify(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def pixels(worker: int, step: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * worker + step)
    return {"x": torch.randn(4, 1, 8, 8, generator=generator), "y": torch.randint(3, (4,), generator=generator)}


def vectors(worker: int, step: int = 0) -> Tensor:
    return torch.randn(4 + worker // 2, 6, generator=torch.Generator().manual_seed(100 * worker + step))


PROBLEMS = [(Tied, rebuild, vectors), (convolutions, classify, pixels)]


def models_of(make: Callable[[], nn.Module], count: int) -> list[nn.Module]:
    """Copies of one model with values of their own; frozen parameters and buffers stay the first one's."""
    torch.manual_seed(0)
    models = [copy.deepcopy(model) for model in [make()] * count]
    for model in models:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return models


@pytest.mark.parametrize(("make", "loss", "batches"), PROBLEMS, ids=["tied", "convolutions"])
def test_stacked_gradients_equal_those_of_one_model_after_the_other(make: Any, loss: Any, batches: Any) -> None:
    """Also where workers have batches of different sizes; what the loss does not reach has no gradient."""
    together, apart = models_of(make, 5), models_of(make, 5)
    data = [batches(worker) for worker in range(5)]
    losses = Gradients(loss, True, CPU).compute_(together, data, range(5))
    assert losses == pytest.approx(Gradients(loss, False, CPU).compute_(apart, data, range(5)), rel=1e-5)
    assert len(set(losses)) == 5
    for ours, theirs in zip(together, apart, strict=True):
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None) == (name == "unused" or not one.requires_grad)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("make", "loss", "batches"), PROBLEMS, ids=["tied", "convolutions"])
def test_a_stacked_simulation_equals_one_that_goes_worker_by_worker(
    make: Any, loss: Any, batches: Any, overlap: bool
) -> None:
    cluster = Cluster(3, [1.0, 1.3, 1.9], jitter=0.3, bandwidth=1e4, latency=0.3)

    def center(stacked: bool) -> Tensor:
        torch.manual_seed(0)
        model, options = make(), {"communication_period": 2, "overlap": overlap, "stacked": stacked}
        with Simulation(
            model,
            loss,
            batches,
            hooke.EASGD(),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
            cluster=cluster,
            **options,
        ) as simulation:
            simulation.run(25.0)
            assert simulation.exchanges > 10
            return simulation.center

    torch.testing.assert_close(center(stacked=True), center(stacked=False), rtol=1e-5, atol=1e-5)


def test_each_row_draws_its_own_dropout() -> None:
    models = models_of(lambda: nn.Sequential(nn.Linear(6, 50), nn.Dropout(), nn.Linear(50, 6)), 1) * 3
    models = [copy.deepcopy(model) for model in models]
    gradients = Gradients(rebuild, True, CPU)
    losses = gradients.compute_(models, [vectors(0)] * 3, [1, 2, 3])
    assert len(set(losses)) == 3
    assert gradients.compute_(models, [vectors(0)] * 3, [1, 2, 3]) == losses
    assert gradients.compute_(models, [vectors(0)] * 3, [2, 2, 3]) != losses


def branch(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out.square().mean() if out.mean() > 0 else out.mean()


REFUSED = [
    (
        lambda: nn.BatchNorm1d(6),
        rebuild,
        vectors(0),
        "Simulation: stacked=True needs a model whose buffers stay as they are in training. Got running_mean that "
        "changes. Use stacked=False.",
    ),
    (lambda: nn.Linear(6, 6), branch, vectors(0), "Simulation: stacked=True needs what torch.func.vmap can do. Got: "),
    (
        lambda: nn.Linear(6, 6),
        lambda model, batch: rebuild(model, batch[0]) * batch[1],
        (vectors(0), 2.0),
        "Simulation: stacked=True needs batches of tensors. Got a float in one. Use stacked=False.",
    ),
]


@pytest.mark.parametrize(("make", "loss", "batch", "sentence"), REFUSED, ids=["buffers", "branches", "numbers"])
def test_what_cannot_be_stacked_is_refused_where_it_was_asked_for(
    make: Any, loss: Any, batch: Any, sentence: str
) -> None:
    models = models_of(make, 2)
    with pytest.raises(ValueError) as caught:
        Gradients(loss, True, CPU).compute_(models, [batch] * 2, [0, 1])
    assert str(caught.value).startswith(sentence)
    by_itself = Gradients(loss, None, CPU)
    by_itself.stacked = True  # as on an accelerator
    losses = by_itself.compute_(models, [batch] * 2, [0, 1])
    assert not by_itself.stacked
    assert losses == Gradients(loss, False, CPU).compute_(models, [batch] * 2, [0, 1])


@pytest.mark.gpu
def test_on_an_accelerator_workers_are_stacked_and_equal_those_on_the_cpu() -> None:
    def center(device: str) -> Tensor:
        torch.manual_seed(0)
        with Simulation(
            convolutions().to(device),
            lambda model, batch: classify(model, {name: tensor.to(device) for name, tensor in batch.items()}),
            pixels,
            hooke.EASGD(),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
            cluster=Cluster(3, [1.0, 1.3, 1.9], bandwidth=5e3),
            communication_period=2,
        ) as simulation:
            before = torch.cuda.get_rng_state()
            simulation.run(25.0)
            assert torch.equal(torch.cuda.get_rng_state(), before)
            assert simulation._members._gradients.stacked == (device == "cuda")
            return simulation.center.cpu()

    torch.testing.assert_close(center("cuda"), center("cpu"), rtol=1e-3, atol=1e-4)
