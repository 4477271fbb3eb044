"""The judgments of `papers.zhang2015easgd`: each changes its verdict when the record says otherwise."""

from __future__ import annotations

import math

import pytest
from easgd_record import FULL, Row, changed, chosen, disadvantage, full, repeated, shifted, without

from hooke.claim import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, WORDS, Claim, Table
from papers.easgd.best import best
from papers.easgd.training_verdict import levels_of, speed_up_grows
from papers.zhang2015easgd import claims

SHORT_RATE = FULL["rates"]["DOWNPOUR"][1]
"""DOWNPOUR's best at period 1 in the made-up record."""


def claim(words: str) -> Claim:
    (found,) = [one for one in claims if words in one.sentence]
    return found


def shown() -> list[Row]:
    """A record that shows every claim: the plan's, and all seeds where the rate of short periods fails."""
    rows = full()
    for period in (16, 64):
        rows = repeated(rows, "periods", method="DOWNPOUR", period=period, lr=SHORT_RATE)
    return rows


def words_of(rows: list[Row]) -> dict[str, str]:
    return {one.sentence: one.judge(Table(rows)).word for one in claims}


def late(real: bool, at_most: int = 16) -> list[Row]:
    """EAMSGD gets in the end where MSGD has been long before; with up to so many workers."""
    rows = shown()
    for row in rows:
        method, few = row["settings"].get("method"), row["settings"].get("workers", 0) <= at_most
        if (row["study"] == "real") == real and few and method in ("MSGD", "EAMSGD"):
            error = row["result"]["error"]
            error[1:-1] = [error[-1] if method == "MSGD" else 0.9] * (len(error) - 2)
    return rows


def level_(rows: list[Row], value: float) -> None:
    """All curves flat and, at the best rates, equal."""
    for row in rows:
        for column in ("error", "average_error"):
            if column in row["result"]:
                row["result"][column] = [value + disadvantage(row["settings"]) for _ in row["result"][column]]


FASTER = "EAMSGD converges faster than MSGD."
REAL = "in real seconds too"
GROWS = "speed-up of EAMSGD"
BREAKS = "highly unstable"
CASES: dict[str, tuple[str, list[Row]]] = {
    "condition": ("if and only if", changed(shown(), "easgd map", {"agree": 24}, workers=3)),
    "admm": ("ADMM in the round-robin", changed(shown(), "admm map", {"unstable_share": 0.0}, workers=3)),
    "easgd there": ("stable where ADMM", changed(shown(), "admm map", {"easgd_largest": 1.0}, workers=8)),
    "example, radius": ("ADMM's path", changed(shown(), "admm example", {"radius": 0.9999}, workers=8)),
    "example, path": ("ADMM's path", changed(shown(), "admm example", {"last_over_first": 0.5}, workers=3)),
    "example, easgd": ("ADMM's path", changed(shown(), "admm example", {"easgd_radius": 1.1}, workers=3)),
    "bowl, closed form": ("on a quadratic", changed(shown(), "downpour map", {"closed": 0.801}, period=1)),
    "bowl, 4 unstable": ("on a quadratic", changed(shown(), "downpour map", {"factor": 1.2, "closed": 1.2}, period=4)),
    "bowl, 16 stable": (
        "on a quadratic",
        changed(shown(), "downpour map", dict.fromkeys(("factor", "closed"), -0.9), period=16),
    ),
    "bowl, easgd": ("on a quadratic", changed(shown(), "downpour map", {"easgd_radius": 1.2}, period=64)),
    "bowl, easgd's path": ("on a quadratic", changed(shown(), "downpour map", {"easgd_last": 1.2}, period=64)),
    "momentum": ("MSGD is the best", shifted(shown(), 0.2, method="MSGD")),
    "momentum, ASGD": ("MSGD is the best", shifted(shown(), -0.2, None, "average_error", method="SGD")),
    "momentum, MVASGD": ("MSGD is the best", shifted(shown(), -0.2, method="MVASGD")),
    "small": ("best at small periods", shifted(shown(), -0.3, method="DOWNPOUR", period=64)),
    "small, average": ("best at small", shifted(shown(), -0.3, None, "average_error", method="DOWNPOUR", period=16)),
    "small, moving": ("best at small periods", shifted(shown(), -0.3, method="MVADOWNPOUR", period=16)),
    "breaks": (BREAKS, shifted(shown(), -0.06, method="DOWNPOUR", period=16, lr=SHORT_RATE)),
    "breaks, one seed": (BREAKS, shifted(shown(), -0.06, method="DOWNPOUR", period=64, lr=SHORT_RATE, seed=2)),
    "stable": ("stay stable", shifted(shown(), 0.5, "periods", method="EASGD", period=16, lr=0.01)),
    "stable, a repeated run": ("stay stable", shifted(shown(), 0.6, "periods, repeated", method="EAMSGD", period=4)),
    "longer, EASGD": ("EASGD's test error gets", shifted(shown(), -0.1, method="EASGD", period=1)),
    "longer, EAMSGD": ("EAMSGD's test error gets", shifted(shown(), -0.1, method="EAMSGD", period=1)),
    "best, MSGD": ("lowest test error of all", shifted(shown(), -0.3, method="MSGD")),
    "best, MDOWNPOUR": ("lowest test error of all", shifted(shown(), -0.3, method="MDOWNPOUR", workers=4)),
    "best, an average": ("lowest test error of all", shifted(shown(), -0.3, method="MVADOWNPOUR", period=4)),
    "best, EASGD at 64": ("lowest test error of all", shifted(shown(), -0.2, method="EASGD", period=64)),
    "downpour, 16 workers": ("than DOWNPOUR, for", shifted(shown(), -0.2, "more workers", method="DOWNPOUR")),
    "downpour, 4 workers": ("than DOWNPOUR, for", shifted(shown(), 0.2, method="EASGD", workers=4, period=10)),
    "faster, EASGD": ("EASGD converges faster than SGD", shifted(shown(), 0.3, method="EASGD", workers=4, period=10)),
    "faster, EAMSGD": (FASTER, shifted(shown(), 0.3, method="EAMSGD", workers=4, period=10)),
    "faster, but later": (FASTER, late(real=False)),
    "more, EASGD": ("With more workers EASGD", shifted(shown(), 0.1, method="EASGD", workers=16)),
    "more, EAMSGD": ("With more workers EAMSGD", shifted(shown(), 0.1, method="EAMSGD", workers=16)),
    "grows": (GROWS, shifted(shown(), 0.1, method="EAMSGD", workers=16)),
    "grows, but 4 are slower than 1": (GROWS, late(real=False, at_most=4)),
    "grows, never": (GROWS, shifted(shown(), 0.5, method="EAMSGD", workers=16)),
    "real": (REAL, late(real=True)),
    "real, never": (REAL, shifted(shown(), 0.5, "real", method="EAMSGD")),
}
"""Words of the claim, and a record that refutes it."""

TRAINING = [one for one in claims if one.where.startswith("section 5") and "quadratic" not in one.sentence]


def test_every_claim_has_its_case() -> None:
    assert {claim(words).sentence for words, _ in CASES.values()} == {one.sentence for one in claims}


def test_the_record_shows_every_claim() -> None:
    for one in claims:
        verdict = one.judge(Table(shown()))
        assert verdict.word == REPRODUCED, verdict
        assert verdict.ours
    assert all(one.judge(Table(shown())).seeds == 3 for one in TRAINING)


@pytest.mark.parametrize(("words", "rows"), CASES.values(), ids=CASES.keys())
def test_the_record_decides(words: str, rows: list[Row]) -> None:
    verdict = claim(words).judge(Table(rows))
    assert verdict.word == NOT_REPRODUCED, verdict
    assert verdict.ours


def test_an_empty_record_is_not_judged() -> None:
    for one in claims:
        verdict = one.judge(Table())
        assert verdict.word == NOT_JUDGED
        assert verdict.note


@pytest.mark.parametrize("seeds", [(2,), (1, 2), (0,)])
def test_fewer_than_three_seeds_reproduce_nothing(seeds: tuple[int, ...]) -> None:
    rows = shown()
    for seed in seeds:
        rows = without(rows, seed=seed)
    assert {one.judge(Table(rows)).word for one in TRAINING} == {NOT_JUDGED}


def test_what_is_missing_leaves_a_verdict_or_none() -> None:
    """Without a study, a method, a period, a number of workers: as before, or not judged; nothing crashes."""
    rows, whole = shown(), words_of(shown())
    parts: list[Row] = [{"study": study} for study in {row["study"] for row in rows}]
    for name in ("method", "period", "workers"):
        parts += [{name: value} for value in {row["settings"].get(name) for row in rows} if value is not None]
    for part in parts:
        words = words_of(without(rows, **part))
        assert {words[one] for one in words if words[one] != whole[one]} <= {NOT_JUDGED}, part


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("if and only if", {"workers": 8}),
        ("ADMM in the round-robin", {"study": "admm map", "workers": 3}),
        ("stable where ADMM", {"study": "admm map", "workers": 8}),
        ("ADMM's path", {"study": "admm example", "workers": 8}),
        ("on a quadratic", {"study": "downpour map", "period": 16}),
        ("MSGD is the best", {"study": "averages"}),
        ("best at small", {"method": "MVADOWNPOUR", "period": 64}),
        (BREAKS, {"method": "DOWNPOUR", "period": 64, "lr": SHORT_RATE}),
        ("stay stable", {"method": "EASGD", "period": 4}),
        ("lowest test error of all", {"method": "MDOWNPOUR", "workers": 4}),
        ("than DOWNPOUR, for", {"method": "DOWNPOUR", "workers": 8}),
        (REAL, {"study": "real", "method": "EAMSGD", "seed": 1}),
        (REAL, {"study": "growth"}),
    ],
)
def test_a_record_that_lacks_a_part_is_not_judged(words: str, part: Row) -> None:
    assert claim(words).judge(Table(without(shown(), **part))).word == NOT_JUDGED


def test_a_seed_that_is_missing_leaves_pairs_of_the_same_seed() -> None:
    """Seeds 1 of the one and 2 of the other are no pair."""
    rows = shown()
    for row in chosen(rows, method="EASGD"):
        row["result"]["error"] = [error + 0.2 * row["settings"]["seed"] ** 2 for error in row["result"]["error"]]
    rows = without(rows, "growth, repeated", method="DOWNPOUR", seed=1)
    rows = without(rows, "periods, repeated", method="DOWNPOUR", seed=1)
    rows = without(rows, "more workers", method="DOWNPOUR", seed=1)
    verdict = claim("than DOWNPOUR, for").judge(Table(rows))
    assert verdict.seeds == 2
    assert verdict.ours.startswith("p = 4: 79.4 % against 45.9 % (-33.5)")


def test_a_tie_is_no_lead() -> None:
    rows = shown()
    level_(rows, 0.5)
    words = words_of(rows)
    stable = claim("stay stable").sentence
    assert words[stable] == REPRODUCED
    for one in TRAINING:
        assert one.sentence == stable or words[one.sentence] != REPRODUCED, one.sentence
    assert words[claim("MSGD is the best").sentence] == NOT_JUDGED
    assert words[claim(FASTER).sentence] == NOT_JUDGED
    assert words[claim(GROWS).sentence] == NOT_JUDGED


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_numbers_that_are_none_crash_nothing_and_show_nothing(value: float) -> None:
    for method in ("EASGD", "EAMSGD", "MSGD", "SGD", "DOWNPOUR", "MDOWNPOUR", None):
        rows = shown()
        for row in chosen(rows, **({} if method is None else {"method": method})):
            for column in ("error", "average_error"):
                if column in row["result"]:
                    row["result"][column] = [value for _ in row["result"][column]]
        words = words_of(rows)
        assert set(words.values()) <= set(WORDS)
        if method in ("EASGD", "EAMSGD"):
            ours = [one.sentence for one in TRAINING if one.sentence.split("'s")[0].split()[0] == method]
            assert ours
            assert all(words[sentence] != REPRODUCED for sentence in ours)
            assert words[claim("stay stable").sentence] == NOT_REPRODUCED


def test_nobody_has_learned_nothing_is_judged() -> None:
    """Errors at guessing: who comes first to 90 % says nothing."""
    rows = shown()
    level_(rows, 0.88)
    for workers in (2, 4, 8, 16):
        shifted(rows, -0.001 * workers, workers=workers)  # more are there earlier
    for words in (GROWS, FASTER, REAL, "EASGD converges faster than SGD"):
        verdict = claim(words).judge(Table(rows))
        assert verdict.word == NOT_JUDGED
        assert verdict.ours


def test_workers_of_runs_in_real_seconds_are_no_number_of_workers() -> None:
    for words in ("With more workers EASGD", "With more workers EAMSGD", GROWS, "than DOWNPOUR, for"):
        verdict = claim(words).judge(Table(shown()))
        said = verdict.ours + verdict.note
        assert "p = 2" not in said
        assert "16" in said


def test_speed_up_by_hand() -> None:
    """At half of the way the level: one worker needs 4 seconds, four 2, eight never."""
    made = {"seconds": [2.0, 4.0, 6.0], "average_error": [], "refused": 0}
    curves = {("MSGD", 1, 1): [0.8, 0.6, 0.4], ("EAMSGD", 4, 10): [0.6, 0.4, 0.2], ("EAMSGD", 8, 10): [0.6, 0.5, 0.5]}
    rows = [
        {"study": f"{'periods' if method == 'MSGD' else 'growth'}{', repeated' * (seed > 0)}", "made": {},
         "settings": {"method": method, "workers": workers, "period": period, "lr": 0.1, "seed": seed},
         "result": made | {"error": error}}
        for (method, workers, period), error in curves.items() for seed in range(3)
    ]  # fmt: skip
    assert levels_of(best(Table(rows), "MSGD", 1, 1)) == [0.6, 0.4]
    verdict = speed_up_grows(Table(rows))
    assert verdict.ours == "to 60.0 %: 2.00, 2.00; to 40.0 %: 1.50, never"
    assert verdict.word == NOT_REPRODUCED


def test_runs_that_lost_a_worker_are_counted() -> None:
    rows = changed(shown(), "periods", {"refused": 3}, method="EASGD", period=64)
    verdict = claim("stay stable").judge(Table(rows))
    assert verdict.note.endswith("became infinite: 4.")


def test_claims_say_when_they_are_reproduced() -> None:
    assert all(one.condition for one in claims)
