import json
import math
from pathlib import Path

from hooke.launch.progress import Line, Meter, Tail, total


def row(name: str, value: float, *, t: float = 0.0, step: int = 1, worker: int | str = 0) -> dict[str, object]:
    return {"t": t, "worker": worker, "step": step, "name": name, "value": value}


def test_a_tail_gives_each_new_row_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    path.write_text(json.dumps(row("loss", 9.0)) + "\n")
    tail, later = Tail(path), Tail(tmp_path / "1.jsonl")
    assert tail.rows() == [] and later.rows() == []
    line = json.dumps(row("loss", 1.0)) + "\n"
    with path.open("a") as file:
        file.write(line + line[:10])
        file.flush()
        assert [r["value"] for r in tail.rows()] == [1.0]
        assert tail.rows() == []
        file.write(line[10:])
        file.flush()
        assert [r["value"] for r in tail.rows()] == [1.0]
        file.write("no row\n" + line)
        file.flush()
        assert [r["value"] for r in tail.rows()] == [1.0]
    (tmp_path / "1.jsonl").write_text(line)
    assert [r["value"] for r in later.rows()] == [1.0]


def test_a_meter_keeps_the_newest_numbers_and_sums_the_waiting() -> None:
    meter = Meter()
    meter.read([row("loss", 2.0), row("wait_seconds", 0.5), row("examples", 100, t=1.0)])
    assert meter.rate is None
    meter.read([row("loss", math.nan, step=8), row("wait_seconds", 0.25), row("examples", 300, t=2.0, step=9)])
    meter.read([row("center_distance", 3.0, step=9), row("accuracy", 0.5, worker="center", step=9)])
    assert (meter.steps, meter.waited, meter.rate, meter.distance) == (9, 0.75, 200.0, 3.0)
    assert meter.loss is not None and math.isnan(meter.loss)


def test_the_rate_is_that_of_the_last_seconds_and_starts_over_with_the_count() -> None:
    meter = Meter()
    meter.read([row("examples", 1000.0 * t, t=t) for t in range(10)])
    meter.read([row("examples", 9000.0 + 10.0 * t, t=9.0 + t) for t in range(30)])
    assert meter.rate == 10.0
    meter.read([row("examples", 5.0, t=40.0), row("examples", 10.0, t=41.0)])
    assert meter.rate == 5.0


def test_the_last_line_sums_and_averages_and_tells_of_the_center() -> None:
    one, two = Meter(steps=10, loss=1.0, rate=5.0, waited=1.0), Meter(steps=20, loss=3.0, rate=7.0, waited=2.0)
    one.read([row("accuracy", 0.25, worker="center", t=5.0, step=10)])
    two.read([row("accuracy", 0.125, worker="center", t=4.0, step=20)])
    line = total([Line("worker 0", "training", one), Line("worker 1", "training", two)], 75.0)
    assert line.cells() == ["all", "0:01:15", "30", "2", "12", "-", "3.0 s", "center's accuracy 0.25"]
    line = total([Line("worker 0", "finished", one), Line("worker 1", "training", two)], 75.0)
    assert line.meter.rate == 7.0
    assert total([Line("worker 0", "starting", Meter())], 0.0).cells()[2:] == ["-", "-", "-", "-", "-", ""]
