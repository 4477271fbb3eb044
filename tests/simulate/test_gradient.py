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


class Late(nn.Module):
    """Uses one of its parameters from some examples on, another only before."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.late, self.early = (nn.Parameter(torch.ones(1)) for _ in range(3))


def late_use(model: Any, x: Tensor) -> Tensor:
    """Shapes tell what is used, as a mode of the batch would: `vmap` allows that."""
    other = model.late if x.shape[0] > 4 else model.early
    return ((model.always + other) * x).square().mean()


def test_a_parameter_that_is_used_later_is_trained_as_one_model_alone_does() -> None:
    together, apart = models_of(Late, 3), models_of(Late, 3)
    ours, theirs = Gradients(late_use, True, CPU), Gradients(late_use, False, CPU)
    for rows, value in ((4, 1.0), (6, 1.0), (4, 0.0)):  # the last: gradients that are there, and zero
        data = [torch.full((rows, 1), value)] * 3
        assert ours.compute_(together, data, range(3)) == pytest.approx(theirs.compute_(apart, data, range(3)))
        for one, other in zip(together, apart, strict=True):
            used = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
            assert set(used) == {"always", "early" if rows == 4 else "late"}
            assert set(used) == {name for name, p in one.named_parameters() if p.grad is not None}
            for name, gradient in used.items():
                torch.testing.assert_close(one.get_parameter(name).grad, gradient)
    assert ours.stacked


class Alias(nn.Module):
    """Keeps its weight in a list, too, as torch's recurrent nets do: `functional_call` does not reach that one."""

    def __init__(self, chance: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.also = [self.weight]
        self.dropout = nn.Dropout(chance)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x * self.weight * self.also[0])


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_what_comes_to_something_else_when_stacked_is_refused(chance: float) -> None:
    """With dropout, too: then evaluation is compared."""
    sentence = (
        r"^Simulation: stacked=True needs gradients that equal those of one model alone\. Got others at the first "
        r"batch\. Use stacked=False\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        Gradients(rebuild, True, CPU).compute_([Alias(chance)] * 2, [vectors(0)] * 2, [0, 1])
    by_itself = Gradients(rebuild, None, CPU)
    by_itself.stacked = True  # as on an accelerator
    by_itself.compute_([Alias(chance)], [vectors(0)], [0])
    assert not by_itself.stacked


@pytest.mark.parametrize("stacked", [False, True])
def test_a_loss_that_does_not_know_its_model_is_refused_and_leaves_the_users_alone(stacked: bool) -> None:
    users = nn.Linear(6, 6)
    other = copy.deepcopy(users)
    sentence = (
        r"^Simulation: loss must depend on the model that it is given\. Got a loss that reaches none of its "
        r"parameters\. Compute it with the first argument of loss\(model, batch\), not with a model from outside\.$"
    )
    for loss in (lambda model, x: rebuild(users, x), lambda model, x: x.mean()):
        with pytest.raises(ValueError, match=sentence):
            Gradients(loss, stacked, CPU).compute_([other], [vectors(0)], [0])
    assert users.weight.grad is None
    both = Gradients(lambda model, x: (model(x) - users(x)).square().mean() + model(x).mean(), stacked, CPU)
    both.compute_([other], [vectors(0)], [0])
    assert users.weight.grad is None
    assert other.weight.grad is not None


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    sentence = r"^Simulation: loss must give one scalar tensor\. Got shape \(4, 6\)\. Use the mean over the batch\.$"
    with pytest.raises(ValueError, match=sentence):
        Gradients(lambda model, x: model(x), False, CPU).compute_([nn.Linear(6, 6)], [vectors(0)], [0])
