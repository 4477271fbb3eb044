import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hooke.report import chart, data, read_run, words, write_report
from hooke.report.chart import Curve
from hooke.report.data import RunData, Series

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

Rows = list[tuple[float, int, str, float]]
MakeRun = Callable[..., Path]
ABOUT: dict[str, Any] = {"name": "a run", "command": ["hooke", "run", "two words.py"], "workers": 2, "exit_code": 0}


def line(t: float, worker: int | str, step: int, name: str, value: float, note: str | None = None) -> str:
    row = {"t": t, "worker": worker, "step": step, "name": name, "value": value if math.isfinite(value) else str(value)}
    return json.dumps(row if note is None else row | {"note": note})


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run directory: `make_run(["line", ...], ..., about={...})`, one list of lines a worker."""

    def make(*workers: list[str], folder: str = "run", about: Any = ABOUT) -> Path:
        directory = tmp_path / folder
        (directory / "workers").mkdir(parents=True)
        (directory / "run.json").write_text(about if isinstance(about, str) else json.dumps(about))
        for number, rows in enumerate(workers):
            (directory / "workers" / f"{number}.jsonl").write_text("".join(f"{row}\n" for row in rows))
        return directory

    return make


def training(worker: int, steps: int = 40, every: int = 2, slow: float = 1.0) -> list[str]:
    """A worker that uses 10 examples a step, 4 exchanges a row, one step every `slow` tenth of a second."""
    rows = []
    for step in range(every, steps + 1, every):
        t = 0.1 * slow * step
        rows += [line(t, worker, step, "loss", 2.0 / step), line(t, worker, step, "examples", 10 * step)]
        rows += [line(t, worker, step, "exchange_seconds", 0.03), line(t, worker, step, "wait_seconds", 0.01)]
        rows += [line(t, worker, step, "bytes_sent", 400), line(t, worker, step, "bytes_received", 800)]
        rows += [line(t, worker, step, "center_distance", 1.0 / step), line(t, worker, step, "staleness", 1)]
    return rows


def center(t: float, step: int, **values: float) -> list[str]:
    return [line(t, "center", step, name, value) for name, value in values.items()]


def texts(run: RunData) -> list[str]:
    return [alert.text for alert in run.alerts]


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, and the text outside of style sheets."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.said.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.said)


# Numbers of one worker


def test_the_summary_of_a_worker_is_summed_from_its_rows(make_run: MakeRun) -> None:
    summary = read_run(make_run(training(0))).workers[0]
    assert (summary.worker, summary.steps, summary.examples, summary.exchanges) == (0, 40, 400, 20)
    assert summary.seconds == pytest.approx(3.8)  # from the row at 0.2 s to the one at 4 s
    assert summary.examples_per_second == pytest.approx(100.0)
    assert summary.last_loss == pytest.approx(0.05)
    assert summary.waiting == pytest.approx(0.2)
    assert summary.background == pytest.approx(0.4)
    assert summary.computing == pytest.approx(3.6)
    assert summary.waiting_share == pytest.approx(0.2 / 3.8)
    assert (summary.bytes_sent, summary.bytes_received) == (8000, 16000)
    assert (summary.missed, summary.refused, summary.restarts, summary.down) == (0, 0, 0, 0)


def test_exchanges_that_were_waited_for_ran_nothing_in_the_background(make_run: MakeRun) -> None:
    rows = [line(1, 0, 1, "exchange_seconds", 0.2), line(1, 0, 1, "wait_seconds", 0.25)]
    assert read_run(make_run(rows)).workers[0].background == 0.0


def test_rows_about_the_center_are_nobodys_work(make_run: MakeRun) -> None:
    run = read_run(make_run([*center(0.0, 1, loss=9.0), *training(0), *center(90.0, 99, loss=7.0)], training(1)))
    assert [worker.worker for worker in run.workers] == [0, 1]
    assert list(run.series["loss"]) == [0, 1, "center"]
    assert (run.workers[0].steps, run.workers[0].last_loss) == (40, pytest.approx(0.05))
    assert run.workers[0].seconds == pytest.approx(3.8)
    assert (run.steps, run.examples, run.seconds) == (40, 800, 90.0)


def test_workers_come_in_the_order_of_their_numbers(make_run: MakeRun) -> None:
    run = read_run(make_run(*(training(worker, steps=4) for worker in range(11))))
    assert [worker.worker for worker in run.workers] == list(range(11))
    assert list(run.series["loss"]) == list(range(11))


def test_one_row_is_enough(make_run: MakeRun) -> None:
    directory = make_run([line(1.0, 0, 3, "examples", 30)], about={})
    summary = read_run(directory).workers[0]
    assert (summary.examples_per_second, summary.last_loss, summary.seconds) == (None, None, 0.0)
    assert read_run(directory).name == "run"
    assert "30" in Page(write_report(directory)).text


def test_a_cut_last_line_costs_that_line_only(make_run: MakeRun) -> None:
    directory = make_run(training(0))
    with (directory / "workers/0.jsonl").open("a") as file:
        file.write('{"t": 9.0, "worker": 0, "step": 99, "name": "exam')
    assert read_run(directory).workers[0].steps == 40


# Restarts


@pytest.mark.parametrize(
    ("counts", "goes_on"),
    [
        ([10, 20, 30], [10, 20, 30]),
        ([10, 20, 30, 10, 20], [10, 20, 30, 40, 50]),  # began anew
        ([100, 110, 120, 105, 115], [100, 110, 120, 130, 140]),  # fell back to a checkpoint at 95
        ([10, 20, 30, 3, 13], [10, 20, 30, 33, 43]),
        ([10, 10, 0, 0], [10, 10, 10, 10]),
        ([], []),
    ],
)
def test_a_count_goes_on_over_a_restart(counts: list[float], goes_on: list[float]) -> None:
    assert data.counted(counts).tolist() == goes_on


def restarted_run(make_run: MakeRun) -> RunData:
    again = [line(9.0, 0, 0, "restarted", 1)]
    for step in (22, 24, 26):  # it went back to its checkpoint at step 20
        again += [line(9.0 + 0.1 * step, 0, step, "loss", 1.0), line(9.0 + 0.1 * step, 0, step, "examples", 10 * step)]
    return read_run(make_run([*training(0), *again], training(1)))


def test_a_restarted_worker_keeps_its_steps_and_examples(make_run: MakeRun) -> None:
    run = restarted_run(make_run)
    worker = run.workers[0]
    assert (worker.steps, worker.examples, worker.restarts) == (46, 460, 1)
    assert worker.down == pytest.approx(5.0)
    assert worker.computing == pytest.approx(11.6 - 0.2 - 5.0 - 0.2)
    assert run.series["loss"][0].steps[-3:].tolist() == [42, 44, 46]


def test_the_alert_of_a_restart_says_when_and_for_how_long(make_run: MakeRun) -> None:
    assert texts(restarted_run(make_run)) == [
        "worker 0 was started again once, first at 9 s after step 40; away for 5 s in all"
    ]


def test_a_worker_that_crashed_before_its_first_row_was_away_for_an_unknown_time(make_run: MakeRun) -> None:
    run = read_run(make_run([line(7.79, 0, 0, "restarted", 1), line(8.0, 0, 5, "loss", 1.0)]))
    assert texts(run)[0] == "worker 0 was started again once, first at 7.79 s"


def test_restarts_add_up_over_a_resumed_run(make_run: MakeRun) -> None:
    rows = [line(float(t), 0, 1, "restarted", count) for t, count in enumerate((1, 3, 1, 1))]
    assert read_run(make_run([line(0.0, 0, 1, "loss", 1.0), *rows])).workers[0].restarts == 5


# Curves


def test_examples_of_the_center_are_the_latest_counts_of_all_workers(make_run: MakeRun) -> None:
    first = [line(t, 0, 1, "examples", count) for t, count in ((1.0, 100), (2.0, 200), (3.0, 300))]
    second = [line(t, 1, 1, "examples", count) for t, count in ((1.5, 10), (2.5, 20))]
    second += [row for t in (0.5, 1.0, 1.6, 2.9, 9.0) for row in center(t, 7, accuracy=0.5, examples=5000)]
    curve = read_run(make_run(first, second)).series["accuracy"]["center"]
    assert curve.examples.tolist() == [0, 100, 110, 220, 320]
    assert curve.seconds.tolist() == [0.5, 1.0, 1.6, 2.9, 9.0]
    assert curve.steps.tolist() == [7] * 5


def test_center_rows_of_several_workers_become_one_curve_in_time(make_run: MakeRun) -> None:
    run = read_run(
        make_run([*center(1.0, 5, accuracy=0.1), *center(3.0, 9, accuracy=0.3)], center(2.0, 6, accuracy=0.2))
    )
    curve = run.series["accuracy"]["center"]
    assert curve.values.tolist() == [0.1, 0.2, 0.3]
    assert curve.steps.tolist() == [5, 6, 9]


def test_the_center_stands_for_the_run_then_the_only_worker_then_the_average(make_run: MakeRun) -> None:
    both = [
        *training(0),
        *center(1.0, 5, accuracy=0.9),
        *center(2.0, 9, accuracy=0.7),
        line(3.0, 0, 9, "accuracy", 1.0),
    ]
    diverged = [*training(2), line(9.0, 2, 40, "loss", math.nan)]
    run = read_run(make_run(both, [*training(1), line(9.0, 1, 40, "loss", 0.15)], diverged))
    assert (run.lead("accuracy") or ("",))[0] == "the center"
    assert (run.end("accuracy"), run.best("accuracy")) == (0.7, 0.9)
    assert (run.lead("loss") or ("",))[0] == "the workers on average"
    assert run.end("loss") == pytest.approx((0.05 + 0.15) / 2)
    assert (run.lead("test_loss"), run.end("test_loss"), run.best("test_loss")) == (None, None, None)
    alone = read_run(make_run(training(0), folder="alone"))
    assert (alone.lead("loss") or ("",))[0] == "worker 0"
    assert (alone.end("loss"), alone.best("loss")) == (pytest.approx(0.05), pytest.approx(0.05))


def series(values: list[float], seconds: list[float] | None = None) -> Series:
    t = np.arange(len(values), dtype=float) if seconds is None else np.array(seconds)
    return Series(t, 10 * t, 100 * t, np.array(values, dtype=float))


def test_the_average_leaves_out_what_is_not_finite() -> None:
    mean = data.average([series([1.0, 2.0, 3.0]), series([3.0, math.nan, math.inf])], bins=3)
    assert mean.values.tolist() == [2.0, 2.0, 3.0]
    assert mean.steps.tolist() == [0.0, 10.0, 20.0]
    assert len(data.average([series([math.nan])]).values) == 0


def test_the_average_never_steps_back() -> None:
    slow, fast = series([1.0] * 10), series([1.0] * 10, seconds=[0.1 * i for i in range(10)])
    fast.steps[:], fast.examples[:] = 900.0, 5000.0
    mean = data.average([slow, fast])
    assert (np.diff(mean.steps) >= 0).all()
    assert (np.diff(mean.examples) >= 0).all()
    assert (np.diff(mean.seconds) > 0).all()


def test_breaks_are_where_a_curve_stops_being_finite() -> None:
    curve = series([math.nan, 1.0, math.inf, math.nan, 2.0, -math.inf])
    assert curve.breaks.tolist() == [0, 2, 5]
    assert curve.finite.tolist() == [1.0, 2.0]
    assert series([]).breaks.tolist() == []


def test_thinning_keeps_the_peaks_and_the_gaps() -> None:
    y = np.zeros(10_000)
    y[1234], y[7777] = 50.0, -50.0
    y[5000:5100] = math.nan
    x, kept = chart.thin(np.arange(10_000.0), y)
    assert len(kept) <= 1000
    assert (np.nanmax(kept), np.nanmin(kept)) == (50.0, -50.0)
    assert x[np.nanargmax(kept)] == 1234
    assert (np.diff(x) > 0).all()
    assert np.isnan(kept[(x >= 5020) & (x < 5080)]).all()
    assert chart.thin(np.arange(3.0), np.array([1.0, math.inf, 2.0]))[1].tolist()[::2] == [1.0, 2.0]


def test_smoothing_is_the_mean_of_finite_neighbors() -> None:
    smoothed = chart.smooth(np.array([0.0, 3.0, math.nan, 5.0, 5.0]), 3)
    np.testing.assert_allclose(smoothed, [1.5, 1.5, math.nan, 5.0, 5.0])


def limits(values: list[float], metric: str = "loss") -> tuple[float, float]:
    return chart.y_limits([Curve("a", "red", series(values))], words.METRICS[metric])


def test_a_first_outlier_does_not_crush_the_rest() -> None:
    values = [1000.0, *np.linspace(2.0, 0.1, 99)]
    assert limits(values)[1] < 5.0
    assert limits(values)[0] < 0.1


def test_all_of_an_ordinary_curve_is_seen() -> None:
    low, high = limits(list(np.linspace(2.3, 0.1, 50)))
    assert low < 0.1 < 2.3 < high < 3.0
    assert limits([math.nan]) == (0.0, 1.0)
    low, high = limits([0.5, 0.5])
    assert low < 0.5 < high
    low, high = limits([0.0, 0.5, 1.0], "accuracy")
    assert low == 0.0
    assert 1.0 <= high <= 1.01


def ticks(seconds: list[float], values: list[float]) -> list[str]:
    curve = Curve("a", "red", series(values, seconds))
    return re.findall(r"<text[^>]*>([^<]*)</text>", chart.draw([curve], words.METRICS["loss"], "seconds", 5.0))


def test_the_seconds_begin_at_zero_or_where_there_is_something_to_see() -> None:
    assert ticks([1.0, 10.0], [1.0, 2.0])[0] == "0"
    assert float(ticks([8.0, 10.0], [1.0, 2.0])[0]) >= 7.9
    assert ticks([5.0], [1.0])[0] == "0"


def test_long_times_are_in_minutes_or_hours() -> None:
    assert "seconds since the start" in ticks([0.0, 179.0], [1.0, 2.0])
    assert "minutes since the start" in ticks([0.0, 600.0], [1.0, 2.0])
    assert {"hours since the start", "4"} <= set(ticks([0.0, 4 * 3600.0], [1.0, 2.0]))


def test_close_ticks_are_told_apart() -> None:
    said = ticks([0.0, 1.0], [2.30251, 2.30259])
    assert len(said) == len(set(said)) > 8


# What went wrong


def test_every_refusal_names_the_worker_the_step_and_the_reason(make_run: MakeRun) -> None:
    note = "17 of 12,000 values are not finite"
    rows = [line(5.0 + i, 1, 1410 + i, "refused", 1, note if i == 0 else "another") for i in range(3)]
    directory = make_run(training(0), [*training(1), *rows])
    run = read_run(directory)
    assert texts(run) == [f"worker 1 was refused 3 times, first at step 1,410: {note}"]
    assert run.alerts[0].serious
    assert run.workers[1].refused == 3
    assert f"worker 1 was refused 3 times, first at step 1,410: {note}" in Page(write_report(directory)).text


def test_missed_exchanges_are_named(make_run: MakeRun) -> None:
    rows = [line(5.0, 0, 50, "missed", 0), line(5.0, 0, 60, "missed", 2), line(6.0, 0, 70, "missed", 1)]
    run = read_run(make_run([*training(0), *rows], training(1)))
    assert texts(run) == ["worker 0 missed 3 exchanges, first at step 60"]
    assert not run.alerts[0].serious


def test_a_loss_that_is_not_finite_is_named(make_run: MakeRun) -> None:
    rows = [line(5.0, 1, 50, "loss", math.inf), line(6.0, 1, 60, "loss", math.nan)]
    run = read_run(make_run(training(0), [*training(1), *rows, *center(6.0, 60, test_loss=math.nan)]))
    assert texts(run) == [
        "the training loss of worker 1 was not finite in 2 rows, first at step 50: inf",
        "the held-out loss of the center was not finite in 1 row, first at step 60: nan",
    ]


def test_recorded_failures_are_named(make_run: MakeRun) -> None:
    states = {"0": "finished", "1": "failed: it was killed by SIGKILL"}
    about = ABOUT | {"workers": 3, "exit_code": 1, "workers_state": states}
    assert texts(read_run(make_run(training(0), training(1), about=about))) == [
        "the run ended with exit code 1",
        "worker 1 failed: it was killed by SIGKILL",
        "worker 2 left no rows",
    ]


def test_a_stopped_run_did_not_fail(make_run: MakeRun) -> None:
    about = ABOUT | {"exit_code": 130, "workers_state": {"0": "stopped", "1": "crashed <twice>"}}
    run = read_run(make_run(training(0), training(1), about=about))
    assert texts(run) == ["the run was stopped by signal 2", "worker 1 crashed <twice>"]
    assert [alert.serious for alert in run.alerts] == [False, True]


def test_a_worker_with_an_empty_file_is_named(make_run: MakeRun) -> None:
    run = read_run(make_run(training(0), []))
    assert texts(run) == ["worker 1 left no rows"]
    assert run.workers[1].steps == 0


def test_a_calm_run_says_so(make_run: MakeRun) -> None:
    directory = make_run(training(0), training(1))
    assert texts(read_run(directory)) == []
    assert "No worker was refused" in Page(write_report(directory)).text


# The page


def test_the_page_of_one_run_lies_in_its_directory_and_shows_its_numbers(make_run: MakeRun) -> None:
    about = ABOUT | {"commit": "4f1c09ab77d2", "settings": {"beta": 0.9, "inner": {"lr": 0.05}}, "odd_key": ["x", 7]}
    directory = make_run([*training(0), *center(4.0, 40, accuracy=0.875)], training(1, slow=2.0), about=about)
    page = write_report(directory)
    assert page == directory / "report.html"
    text = Page(page).text
    for said in ("a run", "hooke run 'two words.py'", "4f1c09ab77d2", "beta 0.9", "lr 0.05", "odd key x, 7", "87.5 %"):
        assert said in text
    assert "Training loss: 0.05 at the end" in text
    assert "Exchanges held up worker 0 most, for 5.3 % of its time" in text
    assert "16 kB went to the center, 32 kB came back" in text
    assert text.count("seconds since the start") >= 4


def test_what_files_say_is_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    about = {
        "name": evil,
        "command": [evil],
        "settings": {evil: evil},
        "workers_state": {evil: evil},
        evil: [{evil: evil}],
    }
    rows = [*training(0), line(5.0, 0, 50, "refused", 1, evil), line(5.0, "<b>$x_$", 50, "loss", 1.0)]
    one = Page(write_report(make_run(rows, about=about)))
    both = Page(write_report([make_run(rows, folder=n, about=about) for n in "ab"], tmp_path / "page.html"))
    for page in (one, both):
        assert "script" not in {tag for tag, _ in page.tags}
        assert "<script" not in page.source
        assert "<b>$" not in page.source
        assert page.text.count(evil) >= 5


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_needs_nothing_else(make_run: MakeRun, tmp_path: Path, count: int) -> None:
    rows = [*training(0, 200), *center(4.0, 40, accuracy=0.9, test_loss=1.0), line(30.0, 0, 201, "loss", math.nan)]
    runs = [make_run(rows, training(1), folder=f"run{i}") for i in range(count)]
    page = Page(write_report(runs, tmp_path / "page.html"))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.source)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "img", "image")
        assert not {"src", "srcset", "onload", "onclick", "data"} & attributes.keys()
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == (8 if count == 1 else 11)
    assert len({attributes["viewbox"] for attributes in pictures}) == (1 if count == 1 else 2)
    assert "#010203" not in page.source


def test_every_reference_inside_a_picture_is_defined(make_run: MakeRun) -> None:
    page = Page(write_report(make_run([*training(0, 400), line(90.0, 0, 401, "loss", math.nan)])))
    used = {(attributes.get("href") or "")[1:] for tag, attributes in page.tags if tag == "use"}
    used |= set(re.findall(r"url\(#([^)]*)\)", page.source))
    assert len(used) > 3
    assert used <= {attributes.get("id") for _, attributes in page.tags}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38, 1e300])
def test_values_beyond_all_bounds_are_drawn(make_run: MakeRun, bad: float) -> None:
    broken = [line(9.0 + i, 1, 50 + i, name, bad) for i in range(3) for name in ("loss", "center_distance", "missed")]
    all_bad = [line(1.0 + i, "center", i, "accuracy", bad) for i in range(3)]
    directory = make_run([*training(0), *all_bad], [*training(1), *broken])
    page = Page(write_report(directory))
    coordinates = [
        float(number)
        for path in re.findall(r' (?:d|x|y)="([^"]*)"', page.source)
        for number in re.findall(r"-?[\d.]+", path)
    ]
    assert max(map(abs, coordinates)) < 10_000
    if not math.isfinite(bad):
        assert f"\u00d7 worker 1: not finite at step 50 ({bad})." in page.text
        assert "Accuracy: no finite value" in page.text


def test_a_long_run_stays_small(make_run: MakeRun) -> None:
    rows = [line(i / 10, 0, i, "loss", math.sin(i * i)) for i in range(30_000)]
    assert write_report(make_run(rows)).stat().st_size < 400_000


def test_more_workers_than_colors_in_the_palette() -> None:
    assert len({chart.color(i, 24) for i in range(24)}) == 24
    assert len({chart.color(i, 10) for i in range(10)}) == 10
    assert chart.color(3, 4) == chart.color(3, 8)


# Several runs


def test_what_differs_between_runs(make_run: MakeRun) -> None:
    common = {"command": ["a"], "started_at": "now", "versions": {"torch": "2.13.0"}}
    runs = [
        read_run(
            make_run(
                training(0),
                folder=name,
                about=common | {"workers_state": {name: "finished"}, "settings": settings, "seeds": [0, 1]},
            )
        )
        for name, settings in (("a", {"beta": 0.9, "lr": 0.1}), ("b", {"beta": 0.5, "lr": 0.1, "workers": 1}))
    ]
    assert data.differences(runs) == [{"beta": "0.9"}, {"beta": "0.5"}]
    other = make_run(training(0), folder="c", about={"settings": {"arguments": ["--lr", "1"]}, "seeds": []})
    both = data.differences([runs[0], read_run(other)])
    assert list(both[0])[:2] == ["beta", "lr"]  # settings come first
    assert both == [
        {"beta": "0.9", "lr": "0.1", "versions.torch": "2.13.0", "seeds": "0 1"},
        {"arguments": "--lr 1", "seeds": "none"},
    ]


def test_the_page_of_several_runs_compares_them(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run(
            [
                *training(0),
                *center(1.0, 10, accuracy=best, test_loss=loss),
                *center(4.0, 40, accuracy=end, test_loss=loss),
            ],
            [*training(1), *([line(5.0, 1, 50, "refused", 1)] if name == "worse" else [])],
            folder=name,
            about={"name": name},
        )
        for name, best, end, loss in (("worse", 0.95, 0.8, 0.7), ("better", 0.91, 0.9, 0.5))
    ]
    page = Page(write_report(runs, tmp_path / "deep" / "both.html"))
    assert "Accuracy: better ends best, at 90 %" in page.text
    assert "Held-out loss: better ends best, at 0.5" in page.text
    assert "worse: 1 thing to know about this run" in page.text
    assert "worker 1 was refused once, first at step 50" in page.text
    assert re.search(r"worse nothing in run.json 2 50 800 5 s 80 % 95 % 0.7", page.text)
    assert re.search(r"better nothing in run.json 2 40 800 4 s 90 % 91 % 0.5", page.text)
    bold = re.findall(r'<td class="best">([^<]*)</td>', page.source)
    assert bold == ["95 %", "90 %", "0.5"]
    for axis in chart.AXES.values():
        assert axis in page.text


def test_runs_of_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(training(0), folder=name) for name in ("one", "two")]
    text = Page(write_report(runs, tmp_path / "out.html")).text
    assert f"a run ({runs[0]})" in text
    assert f"a run ({runs[1]})" in text


# Errors


def test_several_runs_need_a_place(make_run: MakeRun) -> None:
    runs = [make_run(training(0), folder=name) for name in ("one", "two")]
    with pytest.raises(ValueError, match=r"^write_report: out must be given .* Got 2 runs and no out\. Say where"):
        write_report(runs)
    with pytest.raises(ValueError, match=r"^write_report: runs must name at least one .* Got none\. Give"):
        write_report([])


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^write_report: a run directory must hold run\.json\. Got .*No such.*Give"
    ):
        write_report(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"must hold run\.json\. Got .*nowhere/run\.json: No such file or directory\. Give"
    ):
        write_report(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"Got .*file/run\.json: Not a directory\. Give"):
        write_report(tmp_path / "file")


@pytest.mark.parametrize("about", ["[1]", '{"cut": ', "null"])
def test_a_description_that_is_no_object(make_run: MakeRun, about: str) -> None:
    with pytest.raises(ValueError, match=r"^write_report: .*run\.json must hold one JSON object\. Got: .*\. Repair"):
        write_report(make_run(training(0), about=about))


def test_a_run_without_rows(make_run: MakeRun) -> None:
    directory = make_run(['{"cut'], [])
    with pytest.raises(ValueError, match=r"^write_report: .*jsonl must hold rows\. Got none\. Let the run"):
        write_report(directory)
    assert not (directory / "report.html").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_the_extra_is_named_where_it_is_missing(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=r'matplotlib and jinja2 must be installed\. Got: .*pip install "hooke\[report\]"'
    ):
        write_report(make_run(training(0)))


def test_reading_needs_neither_torch_nor_the_extra(make_run: MakeRun) -> None:
    script = f"""
import sys
from hooke.report import read_run
read_run({str(make_run(training(0)))!r})
print(sorted({{"torch", "matplotlib", "jinja2"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# Words


def test_numbers_are_spelled_to_be_read() -> None:
    spelled = [words.spell_seconds(s) for s in (0, 0.4213, 61.24, 99.96, 119, 185, 7199, 7500)]
    assert spelled == ["0 s", "0.421 s", "61.2 s", "100 s", "119 s", "3 min 5 s", "119 min 59 s", "2 h 5 min"]
    assert [words.spell_short(v) for v in (0.04212, 999, 999.6, 12_345, 1.2e6)] == [
        "0.0421",
        "999",
        "1 k",
        "12.3 k",
        "1.2 M",
    ]
    assert words.spell_short(184_000, "B") == "184 kB"
    assert words.spell_short(math.nan) == "nan"
    assert words.spell_short(0.13251, digits=6) == "0.13251"
    assert (words.spell_percent(0.93456), words.spell_percent(0.93456, digits=6)) == ("93.46 %", "93.456 %")
    assert [words.times(n) for n in (1, 2)] == ["once", "2 times"]
    assert words.times(1, "exchange") == "1 exchange"
