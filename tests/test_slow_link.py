"""benchmarks/slow_link.py and its page: what is counted, and what is said of it. The links themselves need root."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import linked
import slow_link
import slow_link_page
from slow_link import Cell

from hooke.launch.memory import MALLOC

ROWS = slow_link_page.machine.read(slow_link_page.RECORD)


@pytest.mark.skipif(not ROWS, reason="nothing has been measured")
def test_the_page_is_what_the_record_says() -> None:
    assert (slow_link_page.DOCS / "slow_link.md").read_text() == slow_link_page.page(ROWS)


def test_its_processes_keep_memory_as_those_of_hooke_run_do() -> None:
    assert slow_link.machine.KEPT == MALLOC


def test_every_shown_row_is_of_a_commit_without_changes() -> None:
    shown = [*slow_link_page.newest(ROWS, "speed"), *slow_link_page.newest(ROWS, "accuracy")]
    assert not [row for row in shown if not row["commit"] or row["commit"].endswith("+changes")]


def test_no_cell_is_measured_twice() -> None:
    for cells in (slow_link.speed_cells(), slow_link.accuracy_cells()):
        assert len(set(cells)) == len(cells)
        assert {cell.how for cell in cells} <= linked.WAYS.keys()


@pytest.mark.parametrize("kind", linked.MODELS)
def test_two_fragments_hold_each_parameter_once(kind: str) -> None:
    model = linked.MODELS[kind].make()
    parts = [id(p) for part in linked.halves(model) for p in part.parameters()]
    assert sorted(parts) == sorted(id(p) for p in model.parameters())
    assert kind != "transformer" or sum(p.numel() for p in model.parameters()) >= 10_000_000


@pytest.mark.parametrize("kind", linked.MODELS)
def test_a_job_takes_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked, "WIDTH", 24)
    asked = linked.argparse.Namespace(model=kind, seed=0, rank=0, lr=0.01, data=None)
    job = linked.job_of(asked)
    before = [p.detach().clone() for p in job.model.parameters()]
    assert linked.timed(job.step, 2, 0.0)["steps"] == 2
    assert not any(torch.equal(p, old) for p, old in zip(job.model.parameters(), before, strict=True))


def test_a_step_that_ends_too_late_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([0.0, 0.4, 0.8, 3.0])
    monkeypatch.setattr(linked.time, "perf_counter", lambda: next(ends))
    told = linked.timed(lambda: None, None, 1.0)
    assert (told["steps"], told["seconds"]) == (2, 0.8)


def part(steps: int, seconds: float, **counted: int) -> dict[str, Any]:
    return {"steps": steps, "seconds": seconds, "sent": 0, "received": 0, "lead": 10, **counted}


def test_figures_are_shares_of_the_base_around_them() -> None:
    train = [part(20, 2.0, sent=4000, received=8000), part(20, 4.0, sent=4000, received=8000)]
    before, after = {"exchanges": 1, "moved": [0, 0]}, {"exchanges": 7, "moved": [600, 300]}
    bases = [[part(10, 1.0), part(10, 1.0)], [part(20, 1.0), part(20, 1.0)]]
    made = slow_link.figures(Cell("hooke", 100), [(train, before, after)], bases, batch=2)
    assert made["examples_per_second"] == 30.0  # 20 * 2 / 2 + 20 * 2 / 4
    assert made["share"] == 0.5  # of 40 before and 80 after
    assert (made["sent_per_example"], made["received_per_example"]) == (100.0, 200.0)  # 40 steps of 2 examples
    assert made["center_bytes_per_example"] == 7.5  # 900 bytes for 60 steps of 2 examples, those of the lead, too
    assert made["steps_between_exchanges"] == 10.0


def test_segments_are_whole_periods() -> None:
    assert slow_link.amount(Cell("averager", 100), 10, 0.07, 5.0) == (10, 70, 5.0)
    assert slow_link.amount(Cell("averager", 10), 10, 2.0, 5.0) == (10, 10, 5.0)
    assert slow_link.amount(Cell("hooke", 10), 10, 2.0, 5.0) == (10, 20, 5.0)
    assert slow_link.amount(Cell("hooke", 10, period=0), 0, 0.1, 5.0) == (None, None, 15.0)


def row(how: str, mbits: float, share: float, every: float = 10.0, **more: Any) -> dict[str, Any]:
    made = {"section": "speed", **slow_link.asdict(Cell(how, mbits)), "share": share, "steps_between_exchanges": every}
    made |= {"sent_per_example": 1000.0, "received_per_example": 500.0, "center_bytes_per_example": 3000.0}
    made |= {"examples_per_second": 1000.0, "parameters": 1000, "batch": 64, "load": 0.0}
    made |= {"cores": 2, "cpu": "a", "torch": "2", "python": "3", "commit": "c", "at": "2026-01-01"}
    return {**made, **more}


def learned(mbits: float, codec: str, seed: int, accuracy: float) -> dict[str, Any]:
    more = {"section": "accuracy", "codec": codec, "seed": seed, "accuracy": accuracy, "examples": 10, "lr": 0.1}
    return row("hooke", mbits, 0.0, **more)


def test_the_page_says_what_was_missed() -> None:
    rows = [row("ddp", 100, 0.14), row("hooke", 100, 0.99, 23.0), row("hooke", 100, 0.9, codec="int8")]
    text = slow_link_page.page(rows)
    assert "| convnet: share at 100 Mbit/s, period 10 kept | 0.95 | 0.90, **missed** |" in text
    assert "| convnet: share at 10 Mbit/s, int4, own period | 0.90 | not measured |" in text
    assert "| DDP | **0.14**, 1.50 kB, 10 |" in text
    text = slow_link_page.page([*rows, row("hooke", 100, 0.96, codec="int8")])
    assert "period 10 kept | 0.95 | 0.96 |" in text


def test_a_way_that_failed_is_shown_with_its_reason() -> None:
    failed = {**row("hivemind", 10, 0.0), "failed": "no answer"}
    text = slow_link_page.page([row("ddp", 10, 0.1), failed])
    assert "| hivemind, local updates, fp16 | failed |" in text
    assert "- hivemind, local updates, fp16, 10 Mbit/s: `no answer`" in text


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.85, "all inside that"), (0.88, "none below that"), (0.8, "**not all inside that**")]
)
def test_the_spread_of_seeds_is_the_measure(accuracy: float, verdict: str) -> None:
    exact = [learned(1000, "float32", 0, 0.84), learned(1000, "float32", 1, 0.86)]
    text = slow_link_page.page([row("ddp", 100, 0.14), *exact, learned(10, "int4", 0, accuracy)])
    assert f"is 84.00 to 86.00 %, 2 seeds; the means of the others are int4 at 10 Mbit/s {100 * accuracy:.2f} %" in text
    assert verdict in text


def test_a_recorded_cell_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_link.machine, "RESULTS", tmp_path)
    monkeypatch.setattr(slow_link.machine, "commit", lambda: "c")
    ran: list[Cell] = []

    def measure(cell: Cell) -> dict[str, Any]:
        ran.append(cell)
        if cell.how == "hivemind":
            raise slow_link.Broken("no answer")
        return {"share": 1.0}

    cells: list[tuple[Cell, dict[str, Any]]] = [(Cell("ddp", 10), {}), (Cell("hivemind", 10), {})]
    slow_link.run("speed", cells, measure, again=False)
    slow_link.run("speed", [*cells, (Cell("ddp", 100), {})], measure, again=False)
    assert ran == [Cell("ddp", 10), Cell("hivemind", 10), Cell("ddp", 100)]
    rows = [json.loads(line) for line in (tmp_path / "slow_link.jsonl").read_text().splitlines()]
    assert [row.get("failed") for row in rows] == [None, "no answer", None]
    slow_link.run("speed", cells[:1], measure, again=True)
    assert len(ran) == 4
