from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hooke.claim import (
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    SMOKE_NOTE,
    Claim,
    Missing,
    Row,
    Table,
    Verdict,
    identity,
    mean_interval,
    within,
)


def trial(study: str = "s", settings: dict[str, Any] | None = None, **result: Any) -> Row:
    return {"study": study, "settings": settings or {}, "result": result, "made": {}}


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


TABLE = Table(
    [trial(settings={"depth": depth, "seed": seed}, loss=depth / 10 + seed) for depth in (8, 16) for seed in (0, 1)]
)
CLAIM = Claim(
    "Depth 8, seed 0 loses 0.8.", "table 1", lambda t: within(t.where(depth=8, seed=0).one("loss"), 0.8, 0.01)
)


# Claims


def test_a_claim_that_should_hold_holds_and_one_that_should_fail_fails() -> None:
    assert CLAIM.judge(TABLE).word == REPRODUCED
    wrong = Claim("Depth 8, seed 0 loses 0.9.", "", lambda t: within(t.where(depth=8, seed=0).one("loss"), 0.9, 0.01))
    assert wrong.judge(TABLE).word == NOT_REPRODUCED


def test_one_number_of_the_record_changes_the_verdict(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *(json.dumps(row) for row in TABLE))
    assert CLAIM.judge(Table.read(path)).word == REPRODUCED
    path.write_text(path.read_text().replace('"loss": 0.8', '"loss": 0.82', 1))
    assert CLAIM.judge(Table.read(path)).word == NOT_REPRODUCED


def test_a_smoke_run_keeps_its_numbers_and_is_never_judged() -> None:
    verdict = CLAIM.judge(TABLE, smoke=True)
    assert (verdict.word, verdict.ours, verdict.paper, verdict.note) == (NOT_JUDGED, "0.8", "0.8", SMOKE_NOTE)


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        (lambda t: t.where(study="tox21").one("auc"), "No trial in the record where study='tox21'."),
        (lambda t: t.where(depth=8, seed=0).one("auc"), "No auc in the record where depth=8, seed=0."),
        (lambda t: t.where(depth=lambda d: d > 16).groups("seed"), "No trial in the record where depth as chosen."),
        (lambda t: t.groups("width"), "No width in the record."),
        (lambda t: mean_interval([]), "No value to take the mean of."),
    ],
)
def test_what_is_missing_is_said_and_not_judged(holds: Any, said: str) -> None:
    assert Claim("", "", holds).judge(TABLE) == Verdict(NOT_JUDGED, "", note=said)
    assert Claim("", "", holds).judge(Table()).word == NOT_JUDGED


def test_a_bug_of_a_claim_is_not_taken_for_missing_trials() -> None:
    with pytest.raises(KeyError):
        Claim("", "", lambda t: {}["typo"]).judge(TABLE)
    with pytest.raises(ValueError, match=r"^Table.one: exactly one trial must match. Got 2 where depth=8. Narrow it"):
        Claim("", "", lambda t: t.where(depth=8).one("loss")).judge(TABLE)


def test_a_verdict_has_one_of_three_words() -> None:
    with pytest.raises(ValueError, match=r"^Verdict: word must be one of 'reproduced', .* Got 'maybe'. Use one.$"):
        Verdict("maybe", "1")


# Tables


def test_rows_are_chosen_by_value_and_by_function() -> None:
    assert TABLE.where(depth=16).column("seed") == [0, 1]
    assert TABLE.where(loss=lambda loss: loss > 1).column("depth") == [8, 16, 16]
    assert len(TABLE.where(study="s")) == 4
    assert not TABLE.where(depth=32)
    assert not TABLE.where(width=8)  # rows that do not have it are left out
    assert TABLE.where(depth=16).where(seed=1).one("loss") == pytest.approx(2.6)
    assert repr(TABLE.where(depth=16).where(seed=1)) == "Table of 1 trials where depth=16, seed=1"
    assert [row["settings"]["seed"] for row in TABLE[1:3]] == [1, 0]
    assert TABLE[-1]["settings"] == {"depth": 16, "seed": 1}


def test_groups_come_in_the_order_of_first_appearance() -> None:
    groups = Table([*TABLE[2:], *TABLE[:2]]).groups("depth", "seed")
    assert list(groups) == [(16, 0), (16, 1), (8, 0), (8, 1)]
    assert groups[8, 1].one("loss") == pytest.approx(1.8)
    assert {key: len(rows) for key, rows in TABLE.groups("seed").items()} == {(0,): 2, (1,): 2}
    with pytest.raises(Missing, match=r"^No auc in the record where depth=8, seed=1.$"):
        groups[8, 1].one("auc")


def test_lists_are_keys_and_values_too() -> None:
    table = Table([trial(settings={"grid": [256, 512]}, curve=[1.0, 0.5])])
    assert list(table.groups("grid")) == [((256, 512),)]
    assert table.where(grid=(256, 512)).one("curve") == [1.0, 0.5]


def test_a_record_is_read_as_it_was_meant(tmp_path: Path) -> None:
    again = trial(settings={"seed": 0, "depth": 8}, loss=2)
    lines = [
        json.dumps(trial(settings={"depth": 8, "seed": 0}, loss=1)),
        json.dumps(trial(settings={"depth": 9, "seed": 0}, loss="nan", curve=["inf", {"low": "-inf"}], name="info")),
        json.dumps(again),
        json.dumps(again)[:-9],
    ]
    table = Table.read(write(tmp_path / "r.jsonl", *lines))
    assert table.column("depth") == [8, 9]
    assert table.where(depth=8).one("loss") == 2  # the last of two counts
    odd = table.where(depth=9)
    assert math.isnan(odd.one("loss"))
    assert odd.one("curve") == [math.inf, {"low": -math.inf}]
    assert odd.one("name") == "info"


@pytest.mark.parametrize(
    "line", ["3", "[]", '{"study": 3, "settings": {}, "result": {}}', '{"study": "s", "result": {}}']
)
def test_a_line_that_is_no_trial_is_refused(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "r.jsonl", json.dumps(trial()), line)
    with pytest.raises(ValueError, match=r"^Table.read: a line must hold study, .* line 2\. Remove the line"):
        Table.read(path)


def test_the_order_of_settings_is_no_part_of_a_trial() -> None:
    assert identity("s", {"a": 1, "b": [0.5]}) == identity("s", {"b": [0.5], "a": 1})
    others = [
        identity("t", {"a": 1}),
        identity("s", {"a": 2}),
        identity("s", {"a": "1"}),
        identity("s", {"a": 1, "b": None}),
    ]
    assert len({identity("s", {"a": 1}), *others}) == 5


# Numbers


def test_the_interval_is_students(tmp_path: Path) -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(size=7).tolist()
    found = mean_interval(values, confidence=0.9)
    low, high = stats.t.interval(0.9, 6, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.mean, found.n) == (pytest.approx(np.mean(values)), 7)
    assert found.interval == (found.low, found.high)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(3.0, 2.0, size=(1000, 4))
    held = sum(found.low <= 3.0 <= found.high for found in map(mean_interval, draws))
    assert 925 <= held <= 975


def test_what_one_value_or_a_diverged_run_cannot_tell() -> None:
    one = mean_interval([2.0])
    assert (one.mean, one.n, one.interval) == (2.0, 1, None)
    assert math.isnan(mean_interval([1.0, math.nan]).mean)
    assert mean_interval([math.inf, -math.inf]).interval is None
    with pytest.raises(ValueError, match=r"^mean_interval: confidence must be in \(0, 1\). Got 95. Use 0.95.$"):
        mean_interval([1.0], confidence=95)


def test_a_constant_is_within_its_tolerance_or_not() -> None:
    assert within(1.0, 1.25, 0.25).word == REPRODUCED
    assert within(1.0, 1.25, 0.249).word == NOT_REPRODUCED
    assert within(math.nan, 1.25, 1e9).word == NOT_REPRODUCED
    verdict = within(1.6732632423543772, 1.67326324235, 1e-11, digits=12)
    assert (verdict.ours, verdict.paper) == ("1.67326324235", "1.67326324235")
    assert verdict.note == "4.4e-12 apart; at most 1e-11 is allowed."
