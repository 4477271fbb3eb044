"""The page docs/which_method.md: made from the records, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hooke.claim import Row, Table, mean_interval

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import comparison
import language
import which_method
from language_page import Language
from own_data_page import OwnData


def test_the_page_is_what_the_records_say() -> None:
    assert (which_method.DOCS / "which_method.md").read_text() == which_method.page()


def test_every_shown_run_is_of_a_commit_without_changes() -> None:
    rows = [row for table in which_method.records().values() for row in table]
    assert rows
    assert not [row for row in rows if not row["made"]["commit"] or row["made"]["commit"].endswith("+changes")]


def row(method: str, period: int, seed: int, **result: Any) -> Row:
    settings = {"method": method, "period": period, "seed": seed, "lr": 0.01, "setting": []}
    return {"study": "rates", "settings": {**settings, **language.FULL.cell}, "result": result, "made": {}}


def record() -> Table:
    """Every setup with three seeds; DDP's loss falls to 1 while 100 MB are sent, that of the others to 2 with 4 MB."""
    rows = []
    for setup in language.FULL.setups:
        end = 100e6 if setup["method"] == "DDP" else 4e6
        losses = [5.0, 1.0] if setup["method"] == "DDP" else [5.0, 2.0]
        rows += [
            row(**setup, seed=seed, bytes=[end / 2, end], loss=[loss + seed for loss in losses], validation=1.0)
            for seed in (0, 1, 2)
        ]
    early = row("DDP", 10, 0, bytes=[1e6, 2e6], loss=[9.0, 8.0], validation=1.0)
    early["settings"]["steps"] = 20
    return Table([*rows, {**early, "study": language.BEGINNING}])


def test_differences_are_taken_seed_by_seed() -> None:
    runs = Language(record())
    assert runs.at_end("Local SGD", 10) == mean_interval([2.0, 3.0, 4.0])
    lost = runs.lost("Local SGD", 10)
    assert (lost.mean, lost.low, lost.high, lost.n) == (1.0, 1.0, 1.0, 3)
    without_one = [one for one in runs.ddp if one["settings"]["seed"] != 1]
    assert comparison.minus(runs.runs["EASGD", 10], without_one, "loss").n == 2


def test_the_loss_after_some_bytes_is_the_last_one_recorded_by_then() -> None:
    runs = Language(record())
    mine = runs.runs["EASGD", 10]
    assert [runs.after(mine, sent) for sent in (1e6, 2e6, 3e6, 4e6, 5e6)] == [
        "",
        "6.000",
        "6.000",
        "3.000",
        "3.000 (ended)",
    ]


def test_the_first_steps_of_ddp_are_part_of_its_curve() -> None:
    runs = Language(record())
    assert runs.points(runs.ddp[0]) == [(1e6, 9.0), (2e6, 8.0), (50e6, 5.0), (100e6, 1.0)]
    assert runs.points(runs.ddp[1]) == [(50e6, 6.0), (100e6, 2.0)]
    assert runs.share("DiLoCo", 50) == 0.04


def test_a_sentence_that_the_record_does_not_bear_out_stops_the_page() -> None:
    assert comparison.says("Springs pull.", True) == "Springs pull."
    with pytest.raises(ValueError, match=r"^which_method: the record must .*\. Got one it does not: Springs push\.$"):
        comparison.says("Springs push.", False)


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert comparison.number(mean_interval([1.0, 2.0, 3.0]), 2) == "2.00 [-0.48, 4.48]"
    assert comparison.number(mean_interval([0.5]), 1, 100, "+") == "+50.0 (one seed)"


def test_better_is_better_with_every_seed() -> None:
    runs = Language(record())
    local, ddp = runs.runs["Local SGD", 10], runs.ddp
    assert comparison.ahead(ddp, local, "loss", -1)
    assert not comparison.ahead(local, ddp, "loss", -1)
    assert comparison.ahead(local, ddp, "loss", 1)
    assert not comparison.ahead(local[:2], ddp, "loss", 1)  # of other seeds
    one_worse = [*ddp[:2], {**ddp[2], "result": {**ddp[2]["result"], "loss": [5.0, 4.5]}}]
    assert not comparison.ahead(one_worse, local, "loss", -1)


def test_an_interval_around_nothing_tells_nothing() -> None:
    assert comparison.apart(mean_interval([1.0, 1.1]))
    assert not comparison.apart(mean_interval([-1.0, 1.0]))
    assert not comparison.apart(mean_interval([1.0]))


def test_an_average_is_shown_beside_the_center_of_the_same_runs() -> None:
    runs = OwnData(which_method.records()["own_data"])
    text = (which_method.DOCS / "which_method.md").read_text().split("### A moving average of the center")[1]
    for method, dealt, period in runs.runs:
        if dealt == "by class" and method != "DDP":
            accuracy = comparison.number(runs.at_end(method, dealt, period), 1, 100)
            assert f"| {method} | {period} | {accuracy} |" in text
