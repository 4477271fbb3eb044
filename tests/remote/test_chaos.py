"""A few bad seconds: each kind of fault once, and training ends by itself. `benchmarks/chaos.py` is the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import chaos


@pytest.mark.timeout(240)
def test_with_every_kind_of_fault_training_ends_and_nobody_waits_beyond_the_timeout() -> None:
    came_of_it = chaos.run(workers=3, steps=300, seed=1, every=0.8, longest=200, rounds=1)
    assert came_of_it["faults"] == dict.fromkeys(chaos.FAULTS, 1)
    assert came_of_it["center_starts"] == 2
    assert came_of_it["longest_blocked"] <= chaos.TIMEOUT + 1.0, "and a machine that is busy with other tests"
    assert came_of_it["accuracy"] > 0.6, "a tenth is chance"
