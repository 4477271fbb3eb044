"""Rules with an outer optimizer: their steps against torch's own optimizers, their settings, what each refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hooke.outer import AsyncDiLoCo, DiLoCo, Lookahead, MDownpour, SlowMo
from hooke.rule import Average, Rule

WITH_MEMORY = [SlowMo(0.5), DiLoCo(), AsyncDiLoCo(), MDownpour()]


def ways(steps: int) -> Tensor:
    return torch.randn(steps, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def absorbed(rule: Rule, each: Tensor) -> list[Tensor]:
    """Where the center is after each of the deltas."""
    center = torch.ones(5, dtype=torch.float64)
    memory, seen = rule.init_center(center), []
    for delta in each:
        rule.absorb_(center, delta, memory)
        seen.append(center.clone())
    return seen


def by_torch(each: Tensor, **settings: float) -> list[Tensor]:
    """The same with minus each delta as the gradient of torch's own SGD."""
    center = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    optimizer, seen = torch.optim.SGD([center], **settings), []  # type: ignore[arg-type]
    for delta in each:
        center.grad = -delta
        optimizer.step()
        seen.append(center.detach().clone())
    return seen


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (DiLoCo(), {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
        (DiLoCo(1.5, 0.2), {"lr": 1.5, "momentum": 0.2, "nesterov": True}),
        (SlowMo(0.6, slow_lr=0.8), {"lr": 0.8, "momentum": 0.6}),
        (MDownpour(0.9), {"lr": 1.0, "momentum": 0.9, "nesterov": True}),
    ],
    ids=repr,
)
def test_the_outer_step_is_that_of_torchs_optimizer(rule: Rule, settings: dict) -> None:
    for ours, theirs in zip(absorbed(rule, ways(30)), by_torch(ways(30), **settings), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_a_round_of_delayed_steps_is_one_step_with_their_mean(delay: int) -> None:
    """Each arrival brings one part in `delay` of its way; after the round the center is where `DiLoCo` would be."""
    each = ways(6 * delay)
    delayed = absorbed(AsyncDiLoCo(0.6, 0.8, delay=delay), each / delay)
    whole = absorbed(DiLoCo(0.6, 0.8), each.reshape(6, delay, 5).mean(1))
    for ours, theirs in zip(delayed[delay - 1 :: delay], whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_between_two_momentum_steps_the_center_takes_plain_steps() -> None:
    each = ways(5)
    seen = absorbed(AsyncDiLoCo(0.5, 0.9, delay=3), each)
    torch.testing.assert_close(seen[1], 1 + 0.5 * each[:2].sum(0))
    torch.testing.assert_close(seen[4] - seen[2], 0.5 * each[3:].sum(0))
    assert not torch.allclose(seen[2] - seen[1], 0.5 * each[2])


def test_elements_that_are_not_due_yet_wait_for_their_own_round() -> None:
    """A stopped process may have held one block when the others arrived."""
    rule = AsyncDiLoCo(1.0, 0.5, delay=2)
    for counts in ([1.0, 0.0], [1.0, 1.0], [0.0, 0.0], []):
        arrivals = torch.tensor(counts)
        center, momentum = torch.zeros_like(arrivals), torch.full_like(arrivals, 3.0)
        rule.absorb_(center, torch.ones_like(arrivals), (momentum, arrivals))
        assert center.tolist() == [1 + 0.5 * 4 if count else 1 for count in counts]
        assert momentum.tolist() == [2 if count else 4 for count in counts]
        assert arrivals.tolist() == [0 if count else 1 for count in counts]


@pytest.mark.parametrize("rule", WITH_MEMORY, ids=repr)
def test_a_delta_is_left_as_it_was(rule: Rule) -> None:
    """Where all workers exchange at once it is the sum that a center still needs."""
    center, delta = torch.zeros(3), torch.ones(3)
    bound = rule.bind(1)
    bound.absorb_(center, delta, bound.init_center(center))
    assert delta.tolist() == [1, 1, 1]
    assert center.all()


@pytest.mark.parametrize("rule", WITH_MEMORY, ids=repr)
def test_what_a_center_keeps_begins_at_zero_and_its_buffers_are_averaged(rule: Rule) -> None:
    memory = rule.init_center(torch.ones(3))
    assert len(memory) == len(rule.center_memory)
    assert not any(vector.any() for vector in memory)
    assert rule.buffer_rule() == Average()
    assert rule.bind(2).center_memory == rule.center_memory


@pytest.mark.parametrize("rule", [Lookahead(), SlowMo(0.5), DiLoCo()], ids=repr)
def test_each_worker_brings_its_part_of_the_mean(rule: Rule) -> None:
    x, start = torch.tensor([5.0]), torch.tensor([1.0])
    whole = rule.bind(1).delta(x, start, (start,))
    assert rule.bind(4).delta(x, start, (start,)).item() == pytest.approx(whole.item() / 4)
    assert rule.bind(0) == rule.bind(1)
    fixed = dataclasses.replace(rule, num_workers=2)  # type: ignore[type-var]
    assert fixed.bind(7) == fixed


def test_the_rest_follows_the_number_of_workers_or_not() -> None:
    assert AsyncDiLoCo().bind(3) == AsyncDiLoCo(delay=3)
    assert AsyncDiLoCo(delay=2).bind(3) == AsyncDiLoCo(delay=2)
    assert AsyncDiLoCo().bind(0) == AsyncDiLoCo(delay=1)
    assert MDownpour(0.5).bind(9) == MDownpour(0.5)


def test_the_papers_settings() -> None:
    assert (DiLoCo().outer_lr, DiLoCo().outer_momentum) == (0.7, 0.9)
    assert (Lookahead().alpha, SlowMo(0.5).slow_lr, MDownpour().momentum) == (0.5, 1.0, 0.99)
    assert DiLoCo(0.7, 0.9) == DiLoCo()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Lookahead(0.0), "Lookahead: alpha must be in (0, 1]. Got 0.0. Use the paper's alpha=0.5."),
        (lambda: Lookahead(1.1), "Lookahead: alpha must be in (0, 1]. Got 1.1. Use the paper's alpha=0.5."),
        (lambda: Lookahead(num_workers=0), "Lookahead: num_workers must be at least 1. Got 0. Leave it out."),
        (lambda: SlowMo(1.0), "SlowMo: slow_momentum must be in [0, 1). Got 1.0. Use e.g. slow_momentum=0.5."),
        (lambda: SlowMo(0.5, 0.0), "SlowMo: slow_lr must be finite and above 0. Got 0.0. Use the paper's slow_lr=1.0."),
        (lambda: SlowMo(0.5, num_workers=-1), "SlowMo: num_workers must be at least 1. Got -1. Leave it out."),
        (
            lambda: DiLoCo(outer_momentum=-0.1),
            "DiLoCo: outer_momentum must be in [0, 1). Got -0.1. Use the paper's outer_momentum=0.9.",
        ),
        (
            lambda: DiLoCo(outer_lr=float("inf")),
            "DiLoCo: outer_lr must be finite and above 0. Got inf. Use the paper's outer_lr=0.7.",
        ),
        (lambda: DiLoCo(num_workers=0), "DiLoCo: num_workers must be at least 1. Got 0. Leave it out."),
        (
            lambda: AsyncDiLoCo(outer_momentum=float("nan")),
            "AsyncDiLoCo: outer_momentum must be in [0, 1). Got nan. Use DiLoCo's outer_momentum=0.9.",
        ),
        (
            lambda: AsyncDiLoCo(outer_lr=-1.0),
            "AsyncDiLoCo: outer_lr must be finite and above 0. Got -1.0. Use DiLoCo's outer_lr=0.7.",
        ),
        (lambda: AsyncDiLoCo(delay=0), "AsyncDiLoCo: delay must be at least 1. Got 0. Leave it out."),
        (
            lambda: MDownpour(momentum=1.0),
            "MDownpour: momentum must be in [0, 1). Got 1.0. Use the paper's momentum=0.99.",
        ),
    ],
)
def test_a_wrong_setting_gets_a_sentence_with_the_repair(make: Callable[[], Rule], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()
