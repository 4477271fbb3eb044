"""Journal: what a worker writes down of its exchanges."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hooke.center import LocalCenter
from hooke.exchange import Outcome
from hooke.journal import Journal
from hooke.pacing import Choice
from hooke.record import read
from hooke.rule import EASGD
from hooke.run import Run
from hooke.spec import CenterSpec, Refused


@pytest.fixture
def joined(center: LocalCenter) -> LocalCenter:
    center.join(torch.zeros(3), CenterSpec((), 3))
    return center


def run(tmp_path: Path, **settings: Any) -> Run:
    return Run(str(tmp_path), "", worker=1, num_workers=2, started=time.monotonic(), **settings)


def rows(tmp_path: Path) -> dict[str, float]:
    return {row["name"]: row["value"] for row in read(tmp_path / "workers" / "1.jsonl")}


def test_an_exchange_leaves_its_seconds_its_bytes_and_how_many_others_came_between(
    joined: LocalCenter, tmp_path: Path
) -> None:
    other = LocalCenter(joined.path)
    other.join(torch.zeros(3), CenterSpec((), 3))
    journal = Journal(run(tmp_path), joined)
    for center in (other, other, joined):
        center.exchange(torch.ones(3), EASGD())
    journal.exchanged(Outcome(0.5, 0.25, None, 2.0), step=10)
    journal.close()
    other.close()
    moved = {"bytes_sent": 12.0, "bytes_received": 12.0}
    seconds = {"exchange_seconds": 0.5, "wait_seconds": 0.25}
    assert rows(tmp_path) == {"center_distance": 2.0, **seconds, **moved, "staleness": 2.0}


def test_a_refusal_is_a_row_with_its_reason_and_a_warning(joined: LocalCenter, tmp_path: Path) -> None:
    journal = Journal(run(tmp_path), joined)
    with pytest.warns(RuntimeWarning, match=r"an exchange was refused, training goes on\. 3 of 3"):
        journal.exchanged(Outcome(0.0, 0.0, Refused("3 of 3")), step=4)
    journal.close()
    (row,) = read(tmp_path / "workers" / "1.jsonl")
    assert (row["name"], row["step"], row["note"]) == ("refused", 4, "3 of 3")


def test_a_missed_exchange_is_a_row_and_nothing_else(joined: LocalCenter, tmp_path: Path) -> None:
    journal = Journal(run(tmp_path), joined)
    journal.exchanged(Outcome(0.0, 0.0, ConnectionResetError("cut")), step=4)
    journal.close()
    assert rows(tmp_path) == {"missed": 1.0}


def test_a_chosen_period_is_a_row_with_its_reason(joined: LocalCenter, tmp_path: Path) -> None:
    journal = Journal(run(tmp_path), joined)
    choice = Choice(period=17, step_seconds=0.004, exchange_seconds=0.06, busy_seconds=0.0)
    journal.paced(choice, step=40)
    journal.close()
    period, step = read(tmp_path / "workers" / "1.jsonl")
    assert (period["name"], period["value"], period["step"]) == ("communication_period", 17, 40)
    assert period["note"] == choice.why
    assert (step["name"], step["value"], step["step"]) == ("step_seconds", 0.004, 40)


def test_a_restart_is_the_first_row(joined: LocalCenter, tmp_path: Path) -> None:
    Journal(run(tmp_path, restarts=2), joined).close()
    assert rows(tmp_path) == {"restarted": 2.0}


def test_without_a_run_names_are_checked_all_the_same(joined: LocalCenter) -> None:
    journal = Journal(None, joined)
    journal.note("loss", 1.0, 1)
    with pytest.raises(ValueError, match="name must be one of"):
        journal.note("lss", 1.0, 1)
