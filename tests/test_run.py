import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hooke.run import Run, RunDirectory

RUN = Run(
    directory="runs/ä b", center="/dev/shm/hooke", worker=3, num_workers=8, started=12.5, checkpoint_every=7.0,
    resume=True, restarts=2,
)  # fmt: skip


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("HOOKE_RUN", raising=False)
    return monkeypatch


def test_no_run_without_the_variable(nowhere: pytest.MonkeyPatch) -> None:
    assert Run.current() is None
    nowhere.setenv("HOOKE_RUN", "")
    assert Run.current() is None


def test_the_environment_carries_every_field(nowhere: pytest.MonkeyPatch) -> None:
    variables = RUN.environment()
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in variables.items())
    for key, value in variables.items():
        nowhere.setenv(key, value)
    assert Run.current() == RUN
    assert Run.current() != replace(RUN, restarts=3)


def test_the_environment_is_plain_json() -> None:
    [text] = RUN.environment().values()
    assert json.loads(text)["worker"] == 3


def test_seconds_count_from_the_start() -> None:
    assert 50.0 <= replace(RUN, started=time.monotonic() - 50.0).seconds < 80.0


def test_every_file_has_its_place() -> None:
    files = RunDirectory(Path("runs/a"))
    assert files.description == Path("runs/a/run.json")
    assert files.center == Path("runs/a/center.safetensors")
    assert files.report == Path("runs/a/report.html")
    assert files.rows(2) == Path("runs/a/workers/2.jsonl")
    assert files.log(2) == Path("runs/a/workers/2.log")
    assert files.checkpoint(2) == Path("runs/a/workers/2.safetensors")
    assert RUN.files == RunDirectory(Path("runs/ä b"))


def test_row_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    assert files.all_rows() == []
    files.rows(0).parent.mkdir()
    for worker in (10, 2, 0, 1):
        files.rows(worker).touch()
        files.log(worker).touch()
    assert files.all_rows() == [files.rows(worker) for worker in (0, 1, 2, 10)]
