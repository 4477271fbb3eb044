"""What a simulated run leaves: rows as of a real run, readable and drawable as such, in virtual seconds."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Quadratic
from torch import Tensor, nn

import hooke
from hooke.record import Row, read
from hooke.report.read import read_run
from hooke.simulate import Cluster, Failure, Simulation

LINK = Cluster(2, [1.0, 1.5], bandwidth=16 * 32 / 0.5, latency=0.25)
"""An exchange takes half a second up, half a second down and twice the latency; a bowl of 9 values is 16 long."""


def bowl(model: nn.Module, b: Tensor) -> Tensor:
    return (model.x - b).square().mean()


def simulate(rows: Path, cluster: Cluster, until: float, *, period: int = 4, bad: int = -1, **options: Any) -> None:
    def batches(worker: int, step: int) -> Tensor:
        return torch.full((9, 9), torch.nan if worker == bad and step > 2 else float(worker))

    with Simulation(
        Quadratic(9, 0),
        bowl,
        batches,
        hooke.EASGD(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        cluster=cluster,
        communication_period=period,
        rows=rows,
        **options,
    ) as simulation:
        simulation.run(until / 2)
        simulation.record(accuracy=0.25, test_loss=1.5)
        simulation.run(until)


def rows_of(folder: Path, worker: int, name: str) -> list[Row]:
    return [row for row in read(folder / "workers" / f"{worker}.jsonl") if row["name"] == name]


def times(rows: list[Row]) -> list[tuple[float, int, float]]:
    return [(row["t"], row["step"], row["value"]) for row in rows]


def test_rows_tell_the_clock_of_workers_that_wait(tmp_path: Path) -> None:
    """Worker 0 exchanges at 0 and comes back at 1.5; worker 1 has waited for the link half a second."""
    simulate(tmp_path, LINK, 10.0)
    assert times(rows_of(tmp_path, 0, "exchange_seconds")) == [(1.5, 0, 1.5), (7.0, 4, 1.5)]
    assert times(rows_of(tmp_path, 0, "wait_seconds")) == [(1.5, 0, 1.5), (7.0, 4, 1.5)]
    assert times(rows_of(tmp_path, 1, "exchange_seconds")) == [(2.0, 0, 2.0), (9.5, 4, 1.5)]
    assert times(rows_of(tmp_path, 1, "staleness")) == [(2.0, 0, 1), (9.5, 4, 1)]
    assert times(rows_of(tmp_path, 1, "examples")) == [(0.0, 0, 9), (8.0, 4, 45)]
    assert times(rows_of(tmp_path, 1, "bytes_sent")) == [(2.0, 0, 64), (9.5, 4, 64)]
    distances = [value for _, _, value in times(rows_of(tmp_path, 1, "center_distance"))]
    assert distances[0] == 0 < distances[1]


def test_rows_of_overlapped_exchanges_come_when_they_are_back(tmp_path: Path) -> None:
    """Period 1: exchanges that come due meanwhile are missed; steps never fall, or it would look like a restart."""
    simulate(tmp_path, LINK, 20.0, period=1, overlap=True)
    back = rows_of(tmp_path, 0, "exchange_seconds")
    assert times(back)[0] == (1.5, 2, 1.5)
    assert {row["value"] for row in rows_of(tmp_path, 0, "wait_seconds")} == {0.0}
    missed = rows_of(tmp_path, 0, "missed")
    assert (missed[0]["t"], missed[0]["step"]) == (1.0, 1)
    assert {row["note"] for row in missed} == {"the exchange before is still under way"}
    for worker in range(2):
        steps = [row["step"] for row in read(tmp_path / "workers" / f"{worker}.jsonl")]
        assert steps == sorted(steps)


def test_what_is_lost_refused_or_started_again_leaves_its_rows(tmp_path: Path) -> None:
    cluster = Cluster(3, failures=(Failure(2, 5.0, back=7.0), Failure(2, 12.0, back=13.0)), lost=0.3)
    with pytest.warns(RuntimeWarning, match="an exchange was refused"):
        simulate(tmp_path, cluster, 40.0, bad=1)
    assert {row["note"] for row in rows_of(tmp_path, 0, "missed")} == {"the exchange was lost on its way"}
    refused = rows_of(tmp_path, 1, "refused")
    assert refused[0]["note"].startswith("center: x must be finite and below 1e+30. Got 9 of 16 values that are not.")
    assert all(row["t"] >= 4 for row in refused)
    assert times(rows_of(tmp_path, 2, "restarted")) == [(7.0, 0, 1), (13.0, 0, 2)]


def test_a_simulated_run_is_drawn_as_a_real_one(tmp_path: Path) -> None:
    cluster = Cluster(3, [1.0, 1.2, 2.0], bandwidth=4e3, failures=(Failure(2, 15.0, back=20.0),))
    simulate(tmp_path / "runs" / "slow", cluster, 40.0)
    run = read_run(tmp_path / "runs" / "slow")
    assert (run.name, len(run.workers)) == ("slow", 3)
    assert run.end("accuracy") == 0.25
    assert run.workers[2].restarts == 1
    assert run.workers[0].steps == 36 and run.workers[0].examples == 37 * 9
    assert 38 < run.seconds <= 40
    page = hooke.write_report(tmp_path / "runs" / "slow").read_text()
    assert "3 workers" in page
    about = json.loads((tmp_path / "runs" / "slow" / "run.json").read_text(), parse_constant=pytest.fail)
    assert about["settings"]["seed"] == 0
    assert about["simulated"]["bandwidth"] == 4e3
    assert "latency" not in about["simulated"]


def test_names_are_those_that_a_real_worker_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path / "simulated", Cluster(1), 10.0)
    run = hooke.Run(str(tmp_path / "real"), str(tmp_path / "center"), 0, 1, 0.0)
    for name, value in run.environment().items():
        monkeypatch.setenv(name, value)
    model = Quadratic(9, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hooke.Worker(model, optimizer, hooke.EASGD(), communication_period=4) as worker:
        for _ in range(10):
            bowl(model, torch.ones(9)).backward()
            optimizer.step()
            worker.record(loss=1.0, examples=9)
        worker.record(of="center", accuracy=0.25, test_loss=1.5)
    worker.center.close()
    names = [{row["name"] for row in read(tmp_path / kind / "workers" / "0.jsonl")} for kind in ("real", "simulated")]
    assert names[0] == names[1]


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    simulate(tmp_path, LINK, 4.0)
    sentence = f"Simulation: rows must be a directory without a run. Got {tmp_path}. Use another, or remove it."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        simulate(tmp_path, LINK, 4.0)


@pytest.mark.parametrize("rows", [False, True])
def test_divergence_is_written_down_by_each_worker_and_said_once(rows: bool, tmp_path: Path) -> None:
    with (
        warnings.catch_warnings(record=True) as said,
        Simulation(
            Quadratic(9, 0),
            lambda model, b: ((model.x - b) ** 2).sum() / 2,
            lambda worker, step: torch.full((9,), float(worker)),
            hooke.Downpour(),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            cluster=Cluster(8),
            communication_period=16,
            rows=tmp_path if rows else None,
        ) as simulation,
    ):
        warnings.simplefilter("always")
        simulation.run(400.0)
    (one,) = [warning for warning in said if "stable region" in str(warning.message)]
    assert str(one.message).startswith("Worker: the run must stay in its stable region. Got a distance")
    assert one.filename == __file__
    if rows:
        for worker in range(8):
            (row,) = rows_of(tmp_path, worker, "diverging")
            assert row["value"] > 100 and "8 workers" in row["note"] and row["t"] == row["step"] > 16
