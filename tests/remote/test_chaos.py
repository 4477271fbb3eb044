"""A few bad seconds: each kind of fault once, and training ends by itself. `benchmarks/chaos.py` is the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import chaos
import chaos_page
import machine


@pytest.mark.timeout(240)
def test_with_every_kind_of_fault_training_ends_and_nobody_waits_beyond_the_timeout() -> None:
    came_of_it = chaos.run(workers=3, steps=300, seed=1, every=0.8, longest=200, rounds=1)
    assert came_of_it["faults"] == dict.fromkeys(chaos.FAULTS, 1)
    assert came_of_it["center_starts"] == 2
    assert came_of_it["longest_blocked"] <= chaos.TIMEOUT + 1.0, "and a machine that is busy with other tests"
    assert came_of_it["accuracy"] > 0.6, "a tenth is chance"


def test_the_page_says_what_the_last_long_run_showed() -> None:
    row = machine.read(machine.RESULTS / "chaos.jsonl")[-1]
    assert chaos.verdict(row["quiet"], row["chaos"]) == []
    assert row["workers"] == 6
    page = chaos_page.PAGE.read_text()
    assert chaos_page.written(page, row) == page, "python benchmarks/chaos_page.py writes it"


def test_a_verdict_names_what_does_not_hold() -> None:
    quiet = {"loss": 0.3, "longest_blocked": 0.1}
    assert chaos.verdict(quiet, {"loss": 0.32, "longest_blocked": 2.0}) == []
    assert chaos.verdict(quiet, {"loss": 0.36, "longest_blocked": 2.5}) == [
        "the loss is 0.360, in quiet 0.300",
        "a step was held up for 2.50 s, its time-out is 2.0 s",
    ]
