import json
import math
import time
from pathlib import Path

import pytest

from hooke.record import NAMES, Record, parse, read


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_row_is_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "workers" / "3.jsonl"
    with Record(path, worker=3, started=time.monotonic() - 100.0) as record:
        record.write("loss", 2, step=10)
        record.write("accuracy", 0.5, step=11, worker="center")
        record.write("refused", 1, step=12, note="2 of 8 values are not finite")
    first, second, third = (json.loads(line) for line in lines(path))
    assert first.keys() == {"t", "worker", "step", "name", "value"}
    assert (first["worker"], first["step"], first["name"], first["value"]) == (3, 10, "loss", 2.0)
    assert 100.0 <= first["t"] < 160.0
    assert second["worker"] == "center"
    assert third["note"] == "2 of 8 values are not finite"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_come_back_and_the_file_stays_strict_json(tmp_path: Path, value: float) -> None:
    path = tmp_path / "0.jsonl"
    with Record(path, worker=0) as record:
        record.write("loss", value, step=1)

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    json.loads(lines(path)[0], parse_constant=refuse)
    [row] = read(path)
    assert isinstance(row["value"], float)
    assert row["value"] == value or (math.isnan(row["value"]) and math.isnan(value))


def test_an_unknown_name_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with Record(tmp_path / "0.jsonl", worker=0) as record:
        with pytest.raises(ValueError, match=r"^Record: name must be one of loss, .*\. Got 'losss'\. Use the nearest"):
            record.write("losss", 1.0, step=1)
        for name in NAMES:
            record.write(name, 1.0, step=1)
    assert [row["name"] for row in read(tmp_path / "0.jsonl")] == list(NAMES)


def test_rows_wait_in_memory_until_a_flush(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    record = Record(path, worker=0, flush_seconds=3600.0)
    record.write("loss", 1.0, step=1)
    assert len(lines(path)) == 1, "the first row is written at once"
    record.write("loss", 1.0, step=2)
    assert len(lines(path)) == 1
    record.flush()
    assert len(lines(path)) == 2
    record.write("loss", 1.0, step=3)
    record.close()
    record.close()
    assert [row["step"] for row in read(path)] == [1, 2, 3]


def test_rows_reach_the_file_without_close_once_they_are_old_enough(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    record = Record(path, worker=0, flush_seconds=0.0)
    time.sleep(0.002)
    record.write("loss", 1.0, step=1)
    assert [row["step"] for row in read(path)] == [1]
    record.close()


def test_a_cut_last_line_is_skipped_and_ended_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    whole = '{"t": 1.0, "worker": 0, "step": 5, "name": "loss", "value": 2.0}'
    path.write_text(f'{whole}\n{{"t": 2.0, "worker": 0, "st')
    assert [row["step"] for row in read(path)] == [5]
    with Record(path, worker=0) as record:
        record.write("loss", 1.0, step=6)
    assert [row["step"] for row in read(path)] == [5, 6]
    assert len(lines(path)) == 3


def test_a_second_writer_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        with Record(tmp_path / "0.jsonl", worker=0) as record:
            record.write("loss", 1.0, step=step)
    assert [row["step"] for row in read(tmp_path / "0.jsonl")] == [1, 2]
    assert len(lines(tmp_path / "0.jsonl")) == 2


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "7",
        '"text"',
        '{"t": 1, "worker": 0, "step": 1, "name": "loss"}',
        '{"t": 1, "worker": 0, "name": "loss", "value": 1}',
        '{"t": 1, "worker": 0, "step": 1, "name": "loss", "value": null}',
        '{"t": 1, "worker": 0, "step": 1, "name": "loss", "value": "much"}',
        '{"t": null, "worker": 0, "step": 1, "name": "loss", "value": 1}',
        '{"t": NaN, "worker": 0, "step": 1, "name": "loss", "value": 1}',
        '{"t": 1, "worker": [0], "step": 1, "name": "loss", "value": 1}',
        '{"t": 1, "worker": 0, "step": "first", "name": "loss", "value": 1}',
        '{"t": 1, "worker": 0, "step": 1e999, "name": "loss", "value": 1}',
        '{"t": 1, "worker": 0, "step": 1, "name": ["loss"], "value": 1}',
    ],
)
def test_what_is_no_row_is_none(line: str) -> None:
    assert parse(line) is None


def test_what_is_a_row_is_parsed() -> None:
    row = parse('{"t": 1, "worker": "center", "step": 2, "name": "loss", "value": "nan", "note": "why"}\n')
    assert row is not None
    assert math.isnan(row.pop("value"))
    assert row == {"t": 1.0, "worker": "center", "step": 2, "name": "loss", "note": "why"}
