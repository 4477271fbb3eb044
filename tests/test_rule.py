"""The pure rules, in float64: against the literal references to 1e-12, and each form of an exchange."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import reference
import torch
from cases import ALPHA, ETA, RULES, Quadratic, RuleCase
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooke.rule import EAMSGD, EASGD, Average, Downpour, LocalSGD, Rule, State

STEPS, SIZE = 100, 9
FORMS = ("delta and settle", "exchange_ in place", "exchange_ with out")


PROBLEMS = [Quadratic(SIZE, worker, torch.float64) for worker in range(4)]


def gradient(worker: int, x: np.ndarray) -> np.ndarray:
    """Worker i's gradient on a quadratic of its own."""
    return PROBLEMS[worker].A.numpy() @ (x - PROBLEMS[worker].b.numpy())


def start() -> Tensor:
    return PROBLEMS[0].x.detach().clone()


def correction_of(form: str, rule: Rule, x: Tensor, center: Tensor, state: State) -> tuple[Tensor, State]:
    """One exchange in one of its three forms: what leaves x, and what the worker remembers."""
    if form == "delta and settle":
        delta = rule.delta(x, center, state)
        center += delta
        correction = rule.settle(x, delta, center, state)
        return correction, rule.init(x - correction)
    out = torch.empty_like(x) if form == "exchange_ with out" else None
    moved = x.clone()
    rule.exchange_(moved, center, state, out)
    return (x - moved if out is None else out), state


def round_robin(case: RuleCase, form: str, p: int, tau: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Workers one after the other; Nesterov momentum is 0 unless the case has some."""
    rule, center = case.rule.bind(p), start()
    x, v = [start() for _ in range(p)], [torch.zeros(SIZE, dtype=torch.float64) for _ in range(p)]
    states = [rule.init(start()) for _ in range(p)]
    for t in range(STEPS):
        for i in range(p):
            pull = torch.zeros_like(center)
            if rule.order == "jacobi" and t % tau == 0:
                pull, states[i] = correction_of(form, rule, x[i], center, states[i])
            v[i] = case.momentum * v[i] - ETA * torch.tensor(gradient(i, (x[i] + case.momentum * v[i]).numpy()))
            x[i] = x[i] + v[i] - pull
            if rule.order == "gauss-seidel" and (t + 1) % tau == 0:
                pull, states[i] = correction_of(form, rule, x[i], center, states[i])
                x[i] = x[i] - pull
    return [xi.numpy() for xi in x], center.numpy()


def synchronous(rule: Rule, p: int, tau: int) -> tuple[list[np.ndarray], np.ndarray]:
    """All workers' deltas enter the center at once."""
    rule, center = rule.bind(p), start()
    x, states = [start() for _ in range(p)], [rule.init(start()) for _ in range(p)]

    def exchange() -> list[Tensor]:
        deltas = [rule.delta(x[i], center, states[i]) for i in range(p)]
        center.add_(sum(deltas))
        pulls = [rule.settle(x[i], deltas[i], center, states[i]) for i in range(p)]
        states[:] = [rule.init(x[i] - pulls[i]) for i in range(p)]
        return pulls

    for t in range(STEPS):
        steps = [ETA * torch.tensor(gradient(i, x[i].numpy())) for i in range(p)]
        if rule.order == "jacobi" and t % tau == 0:
            steps = [step + pull for step, pull in zip(steps, exchange(), strict=True)]
        x = [xi - step for xi, step in zip(x, steps, strict=True)]
        if rule.order == "gauss-seidel" and (t + 1) % tau == 0:
            x = [xi - pull for xi, pull in zip(x, exchange(), strict=True)]
    return [xi.numpy() for xi in x], center.numpy()


def assert_equal(got: tuple, expected: tuple) -> None:
    for ours, theirs in zip([*got[0], got[1]], [*expected[0], expected[1]], strict=True):
        assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tau", [1, 4, 16])
@pytest.mark.parametrize("p", [1, 4])
@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_round_robin_equals_the_reference(case: RuleCase, p: int, tau: int, form: str) -> None:
    x0 = start().numpy()
    assert_equal(round_robin(case, form, p, tau), case.expected(x0, gradient, p=p, tau=tau, steps=STEPS))


@pytest.mark.parametrize("tau", [1, 4, 16])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_synchronous_rules_equal_the_reference(p: int, tau: int) -> None:
    settings = {"p": p, "eta": ETA, "tau": tau, "steps": STEPS}
    x0 = start().numpy()
    elastic = reference.easgd_synchronous(x0, gradient, alpha=ALPHA, **settings)
    assert_equal(synchronous(EASGD(moving_rate=ALPHA), p, tau), elastic)
    assert_equal(synchronous(LocalSGD(), p, tau), reference.local_sgd(x0, gradient, **settings))


RATES = [EASGD(moving_rate=alpha) for alpha in (1e-3, 0.3, 0.5, 0.5000001, 0.9, 1.0)]
OTHERS = [EAMSGD(moving_rate=0.25), EASGD(moving_rate=0.7, order="gauss-seidel"), Downpour(), LocalSGD(num_workers=3)]


@pytest.mark.parametrize("given_scratch", [False, True])
@pytest.mark.parametrize("where", ["in place", "out", "out is x"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [*RATES, *OTHERS], ids=repr)
def test_exchange_equals_delta_and_settle(rule: Rule, dtype: torch.dtype, where: str, given_scratch: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, center, began = (torch.randn(33, generator=generator, dtype=dtype) for _ in range(3))
    expected_center, state = center.clone(), rule.init(began)
    correction, expected_state = correction_of("delta and settle", rule, x, expected_center, state)
    expected_x = x - correction

    state, moved = rule.init(began), x.clone()
    out = {"in place": None, "out": torch.full_like(x, torch.nan), "out is x": moved}[where]
    scratch = torch.full_like(x, torch.nan) if given_scratch else None
    rule.exchange_(moved, center, state, out, scratch)

    close = {"rtol": 0.0, "atol": 1e-12 if dtype == torch.float64 else 1e-6}
    torch.testing.assert_close(center, expected_center, **close)
    torch.testing.assert_close(moved if out is None else out, expected_x if out is None else correction, **close)
    for ours, theirs in zip(state, expected_state, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    if where == "out":
        assert torch.equal(moved, x)


@given(
    alpha=st.floats(1e-6, 1.0),
    values=st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), max_size=8),
    in_place=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_what_leaves_the_worker_enters_the_center(alpha: float, values: list, in_place: bool) -> None:
    x = torch.tensor([x for x, _ in values], dtype=torch.float64)
    center = torch.tensor([center for _, center in values], dtype=torch.float64)
    total, out = x + center, None if in_place else torch.empty_like(x)
    EASGD(moving_rate=alpha).exchange_(x, center, (), out)
    now = x + center if out is None else x - out + center
    torch.testing.assert_close(now, total, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", [EASGD(moving_rate=0.3), EASGD(moving_rate=0.8), Downpour(), LocalSGD(2)], ids=repr)
def test_a_rule_is_elementwise_so_slices_give_the_whole(rule: Rule) -> None:
    x, center, began = (torch.randn(10, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    whole, sliced = [(x.clone(), center.clone(), rule.init(began)) for _ in range(2)]
    rule.exchange_(*whole, None)
    for part in (slice(0, 3), slice(3, 4), slice(4, 10)):
        rule.exchange_(sliced[0][part], sliced[1][part], tuple(memory[part] for memory in sliced[2]), None)
    assert torch.equal(whole[0], sliced[0])
    assert torch.equal(whole[1], sliced[1])
    assert all(torch.equal(a, b) for a, b in zip(whole[2], sliced[2], strict=True))


def test_alpha_follows_the_number_of_workers_and_is_at_most_1() -> None:
    assert EASGD().beta == 0.9
    assert [EASGD().bind(p).moving_rate for p in (0, 1, 2, 4)] == [0.9, 0.9, 0.45, 0.225]
    assert EASGD(beta=1.5).bind(1).moving_rate == 1.0
    assert EASGD(moving_rate=0.2).bind(8).moving_rate == 0.2
    assert LocalSGD().bind(4).num_workers == 4
    assert LocalSGD(3).bind(4).num_workers == 3
    assert LocalSGD().bind(0).num_workers == 1
    assert Downpour().bind(7) == Downpour()


def test_binding_keeps_everything_else() -> None:
    bound = EAMSGD(beta=0.8, order="gauss-seidel").bind(2)
    assert bound == EAMSGD(moving_rate=0.4, order="gauss-seidel")
    assert bound.plain_point
    assert not EASGD().plain_point


def test_rho_is_alpha_over_the_learning_rate() -> None:
    assert EASGD(beta=0.9).rho(lr=0.1, num_workers=3) == pytest.approx(3.0)


def test_buffers_are_pulled_by_the_same_rate_and_never_summed() -> None:
    assert EASGD(beta=0.7, order="gauss-seidel").buffer_rule() == EASGD(beta=0.7)
    assert EAMSGD(moving_rate=0.2).buffer_rule() == EASGD(moving_rate=0.2)
    assert Downpour().buffer_rule() == LocalSGD().buffer_rule() == Average()


def test_a_rule_remembers_a_copy_not_the_worker_itself() -> None:
    for rule in (Downpour(), LocalSGD(2)):
        x = torch.zeros(3)
        (began,) = rule.init(x)
        x += 1
        assert not began.any()
    assert EASGD().init(torch.zeros(3)) == ()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: EASGD(moving_rate=1.8),
            "EASGD: moving_rate must be in (0, 1]. Got 1.8. Use beta / num_workers, e.g. 0.9 / 4 = 0.225.",
        ),
        (
            lambda: EAMSGD(moving_rate=0.0),
            "EAMSGD: moving_rate must be in (0, 1]. Got 0.0. Use beta / num_workers, e.g. 0.9 / 4 = 0.225.",
        ),
        (
            lambda: EASGD(moving_rate=float("nan")),
            "EASGD: moving_rate must be in (0, 1]. Got nan. Use beta / num_workers, e.g. 0.9 / 4 = 0.225.",
        ),
        (
            lambda: EASGD(beta=-0.9),
            "EASGD: beta must be in (0, 2]. Got -0.9. Use the paper's beta=0.9; beyond 2 the synchronous form is "
            "unstable for any learning rate.",
        ),
        (
            lambda: EAMSGD(beta=2.1),
            "EAMSGD: beta must be in (0, 2]. Got 2.1. Use the paper's beta=0.9; beyond 2 the synchronous form is "
            "unstable for any learning rate.",
        ),
        (
            lambda: EASGD(beta=0.9, moving_rate=0.2),
            "EASGD: give beta or moving_rate, not both. Got beta=0.9 and moving_rate=0.2. Drop one: moving_rate = "
            "beta / num_workers.",
        ),
        (
            lambda: EASGD(order="newton"),  # type: ignore[arg-type]
            "EASGD: order must be 'jacobi' or 'gauss-seidel'. Got 'newton'. Use 'jacobi'.",
        ),
        (lambda: LocalSGD(0), "LocalSGD: num_workers must be at least 1. Got 0. Leave it out."),
    ],
)
def test_a_wrong_setting_gets_a_sentence_with_the_repair(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


def test_the_borders_of_the_rates_are_allowed() -> None:
    assert EASGD(moving_rate=1.0).moving_rate == 1
    assert EASGD(beta=2.0).beta == 2


def test_a_rule_is_frozen_and_compares_by_value() -> None:
    rule = EASGD(beta=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.beta = 0.9  # type: ignore[misc]
    assert rule == EASGD(beta=0.5)
    assert rule != EAMSGD(beta=0.5)
