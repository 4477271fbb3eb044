"""The pure rules, in float64: against the literal references to 1e-12, and each form of an exchange."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from cases import RULES, SYNCHRONOUS, RuleCase
from hypothesis import given, settings
from hypothesis import strategies as st
from pure import FORMS, STEPS, assert_equal, correction_of, gradient, round_robin, start, synchronous

from hooke.outer import AsyncDiLoCo, DiLoCo, Lookahead, MDownpour, SlowMo
from hooke.rule import EAMSGD, EASGD, Average, Downpour, LocalSGD, Rule, State


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tau", [1, 4, 16])
@pytest.mark.parametrize("p", [1, 4])
@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_round_robin_equals_the_reference(case: RuleCase, p: int, tau: int, form: str) -> None:
    x0 = start().numpy()
    assert_equal(
        round_robin(case.rule, p, tau, form, case.momentum), case.expected(x0, gradient, p=p, tau=tau, steps=STEPS)
    )


@pytest.mark.parametrize("tau", [1, 4, 16])
@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("case", SYNCHRONOUS, ids=lambda case: case.name)
def test_synchronous_rules_equal_the_reference(case: RuleCase, p: int, tau: int) -> None:
    expected = case.expected(start().numpy(), gradient, p=p, tau=tau, steps=STEPS)
    assert_equal(synchronous(case.rule, p, tau), expected)


RATES = [EASGD(moving_rate=alpha) for alpha in (1e-3, 0.3, 0.5, 0.5000001, 0.9, 1.0)]
OTHERS = [EAMSGD(moving_rate=0.25), EASGD(moving_rate=0.7, order="gauss-seidel"), Downpour(), LocalSGD(num_workers=3)]
MIXED = [LocalSGD(2, mixing=0.3), DiLoCo(num_workers=2, mixing=0.6)]
WITH_MEMORY = [
    SlowMo(0.6, slow_lr=0.8, num_workers=3),
    DiLoCo(num_workers=3),
    AsyncDiLoCo(delay=1),
    AsyncDiLoCo(delay=2),
    MDownpour(0.9),
]


def memory_of(rule: Rule, like: torch.Tensor) -> State:
    """What a center may keep after a while; of `AsyncDiLoCo(delay=2)`, some elements are due and some are not."""
    generator = torch.Generator().manual_seed(4)
    kept = {
        "momentum": torch.randn(like.shape, generator=generator, dtype=like.dtype),
        "arrivals": torch.arange(like.numel()).remainder(2).to(like.dtype),
    }
    return tuple(kept[name] for name in rule.center_memory)


@pytest.mark.parametrize("given_scratch", [False, True])
@pytest.mark.parametrize("where", ["in place", "out", "out is x"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [*RATES, *OTHERS, Lookahead(num_workers=3), *WITH_MEMORY, *MIXED], ids=repr)
def test_exchange_equals_delta_and_settle(rule: Rule, dtype: torch.dtype, where: str, given_scratch: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, center, began = (torch.randn(33, generator=generator, dtype=dtype) for _ in range(3))
    expected_center, state, expected_memory = center.clone(), rule.init(began), memory_of(rule, x)
    correction, expected_state = correction_of("delta and settle", rule, x, expected_center, state, expected_memory)
    expected_x = x - correction

    state, moved, memory = rule.init(began), x.clone(), memory_of(rule, x)
    out = {"in place": None, "out": torch.full_like(x, torch.nan), "out is x": moved}[where]
    scratch = torch.full_like(x, torch.nan) if given_scratch else None
    rule.exchange_(moved, center, state, out, scratch, memory)

    close = {"rtol": 0.0, "atol": 1e-12 if dtype == torch.float64 else 1e-6}
    torch.testing.assert_close(center, expected_center, **close)
    torch.testing.assert_close(moved if out is None else out, expected_x if out is None else correction, **close)
    for ours, theirs in zip([*state, *memory], [*expected_state, *expected_memory], strict=True):
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


SLICED = [EASGD(moving_rate=0.3), EASGD(moving_rate=0.8), Downpour(), LocalSGD(2), *WITH_MEMORY, *MIXED]


@pytest.mark.parametrize("rule", SLICED, ids=repr)
def test_a_rule_is_elementwise_so_slices_give_the_whole(rule: Rule) -> None:
    x, center, began = (torch.randn(10, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    whole, sliced = [([x.clone(), center.clone()], rule.init(began), memory_of(rule, x)) for _ in range(2)]
    rule.exchange_(*whole[0], whole[1], None, memory=whole[2])
    for part in (slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 10)):
        cut = [[vector[part] for vector in vectors] for vectors in sliced]
        rule.exchange_(*cut[0], tuple(cut[1]), None, memory=tuple(cut[2]))
    for ours, theirs in zip(sliced, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


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
        (lambda: LocalSGD(mixing=1.0), "LocalSGD: mixing must be in [0, 1). Got 1.0. Leave it out, or use e.g. 0.5."),
        (lambda: DiLoCo(mixing=-0.1), "DiLoCo: mixing must be in [0, 1). Got -0.1. Leave it out, or use e.g. 0.5."),
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
