"""Schedule: every fragment once a period, evenly spread, and together the whole vector."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooke.schedule import Schedule


def due(schedule: Schedule, steps: range) -> dict[int, int | None]:
    """The steps at which something is due, and what."""
    return {step: schedule.due(step) for step in steps if schedule.due(step) is not None}


def test_one_fragment_is_due_whenever_the_period_divides_the_step() -> None:
    assert due(Schedule.of(4), range(10)) == {0: 0, 4: 0, 8: 0}
    assert due(Schedule.of(1), range(3)) == {0: 0, 1: 0, 2: 0}


def test_fragments_take_turns() -> None:
    assert due(Schedule.of(6, 3), range(1, 13)) == {2: 0, 4: 1, 6: 2, 8: 0, 10: 1, 12: 2}
    assert due(Schedule.of(7, 3), range(8)) == {0: 2, 2: 0, 4: 1, 7: 2}
    assert due(Schedule.of(3, 3), range(4)) == {0: 2, 1: 0, 2: 1, 3: 2}


def test_each_phase_begins_with_an_exchange_and_counts_from_there() -> None:
    assert list(due(Schedule.of({0: 1, 3: 4}), range(13))) == [0, 1, 2, 3, 7, 11]
    assert list(due(Schedule.of({5: 2, 0: 3}), range(10))) == [0, 3, 5, 7, 9]
    assert due(Schedule.of({0: 2, 4: 5}, 2), range(15)) == {0: 1, 1: 0, 2: 1, 3: 0, 4: 1, 6: 0, 9: 1, 11: 0, 14: 1}


@given(st.integers(1, 60).flatmap(lambda period: st.tuples(st.just(period), st.integers(1, period))))
def test_each_fragment_once_a_period_and_evenly_spread(setting: tuple[int, int]) -> None:
    period, fragments = setting
    seen = due(Schedule.of(period, fragments), range(1, period + 1))
    assert list(seen.values()) == list(range(fragments))
    assert list(seen) == [period * (turn + 1) // fragments for turn in range(fragments)]
    assert Schedule.of(period, fragments).due(0) == fragments - 1


@given(st.integers(0, 200).flatmap(lambda numel: st.tuples(st.just(numel), st.integers(2, max(2, numel)))))
def test_the_parts_are_the_whole_vector_and_of_one_length(setting: tuple[int, int]) -> None:
    numel, fragments = setting
    parts = [Schedule.of(fragments, fragments).part(turn, numel) for turn in range(fragments)]
    elements = [element for part in parts if part is not None for element in range(numel)[part]]
    assert elements == list(range(numel))
    assert {part.stop - part.start for part in parts if part} <= {numel // fragments, numel // fragments + 1}


def test_one_fragment_is_the_whole_vector() -> None:
    assert Schedule.of(5).part(0, 7) is None


def test_it_is_told_in_words() -> None:
    assert str(Schedule.of(10)) == "period 10, 1 fragment"
    assert str(Schedule.of({0: 1, 1000: 16}, 1)) == "period 1 from step 0, 16 from step 1000, 1 fragment"
    assert str(Schedule.of({0: 4, 9: 8}, 4)) == "period 4 from step 0, 8 from step 9, 4 fragments"
    assert Schedule.of({0: 10}) == Schedule.of(10)


PHASES = (
    "Worker: phases of communication_period must be whole numbers of steps, the first at 0. Got {}. Use e.g. "
    "{{0: 1, 1000: 16}}."
)
MANY = (
    "Worker: fragments must be at most communication_period, so that one at a time is exchanged. Got {} fragments and "
    "a period of {}. Use at most {}."
)


@pytest.mark.parametrize(
    ("period", "fragments", "sentence"),
    [
        (0, 1, "Worker: communication_period must be a whole number of steps, at least 1. Got 0. Use e.g. 10."),
        ({0: 1, 9: 2.5}, 1, "Worker: communication_period must be a whole number of steps, at least 1. Got 2.5. Use "
         "e.g. 10."),
        ({}, 1, PHASES.format([])),
        ({5: 1}, 1, PHASES.format([5])),
        ({0: 1, -3: 4}, 1, PHASES.format([-3, 0])),
        ({0: 1, 2.5: 4}, 1, PHASES.format([0, 2.5])),
        (4, 0, "Worker: fragments must be a whole number, at least 1. Got 0. Use e.g. 4."),
        (4, 2.0, "Worker: fragments must be a whole number, at least 1. Got 2.0. Use e.g. 4."),
        (4, True, "Worker: fragments must be a whole number, at least 1. Got True. Use e.g. 4."),
        (4, 5, MANY.format(5, 4, 4)),
        ({0: 1, 100: 16}, 4, MANY.format(4, 1, 1)),
    ],
)  # fmt: skip
def test_a_wrong_setting_gets_a_sentence_with_the_repair(period: Any, fragments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Schedule.of(period, fragments)


def test_more_fragments_than_elements_get_one_too() -> None:
    Schedule.of(9, 5).check_fits(5)
    Schedule.of(9).check_fits(0)
    sentence = (
        "Worker: fragments must be at most the elements of the model's vector. Got 5 fragments of 4 elements. "
        "Use fewer."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Schedule.of(9, 5).check_fits(4)
