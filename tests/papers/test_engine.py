"""The engine of the papers: trials, resuming, judging, pages; and every real paper's smoke run."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from joblib.parallel import BACKENDS, ThreadingBackend
from rich.console import Console
from typer.testing import CliRunner

from hooke.claim import NOT_JUDGED, REPRODUCED, Table
from hooke.report import write_pictures
from hooke.report.verdicts import spell_settings
from papers import backend as joblib_backend
from papers import paper as paper_module
from papers import table as readme
from papers import trial
from papers.__main__ import app
from papers.engine import Request, carry_out
from papers.error import PapersError
from papers.progress import StudyProgress
from papers.trial import Trials

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).parent / "toys"
KEY = "hooke1678ut"


class Screen(Console):
    """A console that remembers what it printed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(file=io.StringIO(), width=200, **settings)

    @property
    def text(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


class Clock:
    """Stands for the time module where trials look at it; its minutes pass when a trial says so."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.minutes = 0

    def monotonic(self) -> float:
        return 60.0 * self.minutes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(trial, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # put back afterwards; trials that run beside others set it


@pytest.fixture
def screen() -> Screen:
    return Screen()


def go(out: Path, **asked: Any) -> tuple[int, str, str]:
    """Run the toy papers: the exit code, the outcome, the progress."""
    said, shown = Screen(), Screen()
    code = carry_out(Request(**{"folder": TOYS, "out": out, **asked}), said, shown)
    return code, said.text, shown.text


def verdicts(out: Path) -> list[str]:
    judged = paper_module.judge(KEY, paper_module.load(KEY, TOYS), out / f"{KEY}.jsonl")
    return [verdict.word for _, verdict in judged.claims]


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not to be loaded")

sys.meta_path.insert(0, Blocked())
"""


def driver(folder: Path, out: Path, asked: str) -> list[str]:
    """The command that carries out a request in a process of its own; `asked` are further arguments, as code."""
    code = f"""
import sys
from pathlib import Path
from rich.console import Console
from papers.engine import Request, carry_out
request = Request(folder=Path({str(folder)!r}), out=Path({str(out)!r}), {asked})
if __name__ == "__main__":
    sys.exit(carry_out(request, Console(), Console(stderr=True)))
"""
    return [sys.executable, "-c", code]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


# Trials


def double(x: float, seed: int = 0) -> dict[str, Any]:
    return {"twice": 2 * x}


def test_a_finished_trial_is_never_run_again(tmp_path: Path, screen: Screen) -> None:
    ran = []

    def count(x: int) -> dict[str, Any]:
        ran.append(x)
        return {"twice": 2 * x}

    path = tmp_path / "deep" / "record.jsonl"
    first = Trials(path, console=screen).study("s", count, [{"x": 3}, {"x": 1}, {"x": 3}])
    assert (ran, first.column("twice")) == ([3, 1], [6, 2])
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines)) + "\n")  # whatever their order
    again = Trials(path, console=screen).study("s", count, [{"x": 2}, {"x": 1}, {"x": 3}])
    assert (ran, again.column("twice")) == ([3, 1, 2], [4, 2, 6])
    Trials(path, console=screen).study("t", count, [{"x": 2}])
    assert ran == [3, 1, 2, 2]  # another study is another trial
    assert "s: 2 of 3 trials, about" in screen.text


def test_a_row_says_where_it_comes_from(tmp_path: Path, screen: Screen) -> None:
    Trials(tmp_path / "r.jsonl", console=screen, smoke=True).study("s", double, [{"x": 1.5}])
    row = json.loads((tmp_path / "r.jsonl").read_text())
    assert {name: row[name] for name in ("study", "settings", "result")} == {
        "study": "s",
        "settings": {"x": 1.5},
        "result": {"twice": 3.0},
    }
    made = row["made"]
    assert made["smoke"] is True
    assert made["cores"] >= 1
    assert made["seconds"] >= 0
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", made["commit"]) or not (ROOT / ".git").exists()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made["at"])
    assert {"cpu", "python", "torch", "hooke"} <= made.keys()


def test_what_is_no_number_for_json_is_kept_and_read_back(tmp_path: Path, screen: Screen) -> None:
    import numpy as np
    import torch

    def odd(x: int) -> dict[str, Any]:
        return {"nan": float("nan"), "inf": np.array([1.0, -np.inf]), "count": np.int64(3), "tensor": torch.ones(2)}

    rows = Trials(tmp_path / "r.jsonl", console=screen).study("s", odd, [{"x": 1}])
    assert (
        '"result": {"nan": "nan", "inf": [1.0, "-inf"], "count": 3, "tensor": [1.0, 1.0]}'
        in (tmp_path / "r.jsonl").read_text()
    )
    assert rows.one("nan") != rows.one("nan")
    assert rows.one("inf") == [1.0, float("-inf")]


def test_the_last_line_may_be_cut(tmp_path: Path, screen: Screen) -> None:
    path = tmp_path / "r.jsonl"
    cells = [{"x": x} for x in range(3)]
    Trials(path, console=screen).study("s", double, cells)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(Table.read(path)) == 2
    assert Trials(path, console=screen).study("s", double, cells).column("twice") == [0, 2, 4]
    assert len(path.read_text().splitlines()) == 4  # the cut line stays, ended
    assert len(Table.read(path)) == 3


def test_a_trial_that_fails_stops_no_other(tmp_path: Path, screen: Screen) -> None:
    from toys.hooke1678ut import hang

    trials = Trials(tmp_path / "r.jsonl", console=screen)
    rows = trials.study("hang", hang, [{"mass": mass} for mass in (4.0, 1.0, 9.0, 0.25)])
    assert rows.column("mass") == [1.0, 0.25]
    assert trials.failed == 2
    assert "hang: a trial failed: mass=4.0\n" in screen.text
    assert "RuntimeError: the spring broke under [bold]9.0[/bold]" in screen.text
    assert len(Table.read(tmp_path / "r.jsonl")) == 2


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (3.0, "a trial must return a dict. Got float. Give each number a name."),
        ({"x": 1}, "a name must be a setting or a result, not both. Got 'x' in both. Rename one."),
        ({"study": 1}, "a name must be a setting or a result, not both. Got 'study' in both. Rename one."),
        ({"y": {1, 2}}, "Object of type set is not JSON serializable"),
    ],
)
def test_a_result_that_cannot_be_kept_is_a_failed_trial(tmp_path: Path, screen: Screen, result: Any, said: str) -> None:
    trials = Trials(tmp_path / "r.jsonl", console=screen)
    assert not trials.study("s", lambda x: result, [{"x": 1}])
    assert trials.failed == 1
    assert said in screen.text
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize("cell", [{"x": float("nan")}, {"x": {1}}, {"x": Path()}])
def test_settings_that_cannot_be_written_are_refused(tmp_path: Path, screen: Screen, cell: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Trials.study: settings must be finite numbers, .* Got .*\. Convert them"):
        Trials(tmp_path / "r.jsonl", console=screen).study("s", double, [cell])
    with pytest.raises(ValueError, match=r"^Trials.study: no setting may be called study\. Got .* Give it another"):
        Trials(tmp_path / "r.jsonl", console=screen).study("s", double, [{"study": 1}])


def test_no_trial_starts_after_the_minutes_are_over(tmp_path: Path, screen: Screen, clock: Clock) -> None:
    def slow(x: int) -> dict[str, Any]:
        clock.minutes += 2
        return {}

    trials = Trials(tmp_path / "r.jsonl", minutes=3, console=screen)
    assert trials.study("s", slow, [{"x": x} for x in range(5)]).column("x") == [0, 1]  # the second ends late
    assert not trials.study("t", slow, [{"x": 0}])
    assert (trials.left, trials.failed) == ({"s": 3, "t": 1}, 0)
    more = Trials(tmp_path / "r.jsonl", console=screen)
    assert len(more.study("s", slow, [{"x": x} for x in range(5)])) == 5
    assert more.left == {}


def test_a_trial_beside_others_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    try:
        trial.attempt(double, {"x": 1}, beside_others=False)
        assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (2, None)
        trial.attempt(double, {"x": 1}, beside_others=True)
        assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (1, "1")
    finally:
        torch.set_num_threads(1)


def test_only_the_studies_that_were_asked_for_run(tmp_path: Path, screen: Screen) -> None:
    trials = Trials(tmp_path / "r.jsonl", only=["t"], console=screen)
    assert not trials.study("s", double, [{"x": 1}])
    assert trials.study("t", double, [{"x": 1}])
    assert trials.studies == ["s", "t"]
    assert trials.left == {}


def test_a_record_holds_one_kind_of_run(tmp_path: Path, screen: Screen) -> None:
    path = tmp_path / "r.jsonl"
    Trials(path, console=screen, smoke=True).study("s", double, [{"x": 1}])
    with pytest.raises(
        PapersError, match=r"^a record must hold one kind of run. Got a smoke run in .* and a full run to"
    ):
        Trials(path, console=screen)
    path.write_text(path.read_text().replace(', "smoke": true', ""))
    with pytest.raises(PapersError, match=r"Got a full run in .* and a smoke run to add. Use another --out.$"):
        Trials(path, console=screen, smoke=True)


# Backends


class ListsOnly(ThreadingBackend):
    """As ray's: it gives a list when all is done."""

    supports_return_generator = False


@pytest.mark.parametrize("backend", ["threading", "lists"])
def test_any_backend_of_joblib_runs_trials_in_order(
    tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch, clock: Clock, backend: str
) -> None:
    monkeypatch.setitem(BACKENDS, "lists", ListsOnly)
    started = []

    def note(x: int) -> dict[str, Any]:
        started.append(x)
        time.sleep(0.02)
        clock.minutes += 1
        if x == 3:
            raise RuntimeError("three")
        return {"twice": 2 * x}

    trials = Trials(tmp_path / "r.jsonl", jobs=2, backend=backend, console=screen)
    rows = trials.study("s", note, [{"x": x} for x in range(8)])
    assert rows.column("twice") == [0, 2, 4, 8, 10, 12, 14]
    assert all(abs(place - x) <= 3 for place, x in enumerate(started))
    assert trials.failed == 1
    late = Trials(tmp_path / "late.jsonl", jobs=2, backend=backend, minutes=5, console=screen)
    done = len(late.study("s", note, [{"x": x + 4} for x in range(30)]))
    assert 5 <= done <= 7
    assert late.left == {"s": 30 - done}


@pytest.mark.parametrize(
    ("name", "module", "call"), [("ray", "ray.util.joblib", "register_ray"), ("dask", "distributed", "Client")]
)
def test_ray_and_dask_are_made_ready(
    tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch, name: str, module: str, call: str
) -> None:
    joblib_backend._prepare.cache_clear()
    calls = []
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    setattr(sys.modules[module], call, lambda: calls.append(call))
    monkeypatch.setitem(BACKENDS, name, ListsOnly)
    trials = Trials(tmp_path / "r.jsonl", jobs=2, backend=name, console=screen)
    for study in ("s", "t"):
        assert len(trials.study(study, double, [{"x": x} for x in range(3)])) == 3
    assert calls == [call]
    joblib_backend._prepare.cache_clear()


@pytest.mark.parametrize("name", ["ray", "dask", "no_such"])
def test_a_backend_that_is_not_there(
    tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("ray", "distributed"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PapersError, match=rf"^--backend must be one that joblib finds. Got '{name}': .* Use loky.$"):
        Trials(tmp_path / "r.jsonl", jobs=2, backend=name, console=screen).study("s", double, [{"x": 1}])


def test_joblib_is_named_where_it_is_missing(tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(PapersError, match=r'^joblib must be installed. Got: .* Run pip install "hooke\[papers\]".$'):
        Trials(tmp_path / "r.jsonl", console=screen).study("s", double, [{"x": 1}])


# A kill


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """A run of two jobs, killed with all its processes in the middle of a study: its folder, log and record."""
    folder, out, log = tmp_path / "toys_killed", tmp_path / "out", tmp_path / "log"
    shutil.copytree(TOYS, folder)
    record = out / f"{KEY}.jsonl"
    process = subprocess.Popen(
        driver(folder, out, "jobs=2"),
        env=environment(SPRING_LOG=str(log), SPRING_SLOW="0.3"),
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not record.exists() or record.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return folder, log, record.read_bytes()


def test_a_killed_run_goes_on_without_repeating_a_finished_trial(
    tmp_path: Path, killed: tuple[Path, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log, before = killed
    record = tmp_path / "out" / f"{KEY}.jsonl"
    finished = {(row["settings"]["force"], row["settings"]["seed"]) for row in Table.read(record)}
    assert 5 <= len(finished) < 12
    monkeypatch.setenv("SPRING_LOG", str(log))
    monkeypatch.setenv("SPRING_SLOW", "0.3")
    code, said, shown = go(tmp_path / "out", folder=folder, jobs=2, backend="threading")
    assert code == 0
    assert record.read_bytes().startswith(before)
    starts = Counter(line.removeprefix("start ") for line in log.read_text().splitlines() if line.startswith("start"))
    again = {tuple(map(float, trial.split())) for trial, times in starts.items() if times > 1}
    assert len(starts) == 12
    assert not again & finished
    assert len(again) <= 4  # the two that were running, and as many that had just ended
    assert len(Table.read(record)) == 14
    assert said.count(REPRODUCED) == 3  # two reproduced, one not
    assert re.search(rf"stretch: {len(finished)} of 12 trials, about 0:00:\d\d left", shown)


# Papers


def test_the_papers_of_a_folder_are_found_by_their_names(tmp_path: Path) -> None:
    assert paper_module.keys(TOYS) == [KEY]
    for name in ("zhang2014deep.py", "ba2016layer.py", "data.py", "Ba2016layer.py", "ba2016.py", "ba2016layer.txt"):
        (tmp_path / name).touch()
    assert paper_module.keys(tmp_path) == ["ba2016layer", "zhang2014deep"]


def test_a_paper_that_cannot_be_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "toys_broken"
    folder.mkdir()
    (folder / "ba2016layer.py").write_text("import no_such_package\n")
    (folder / "zhang2014deep.py").write_text("SOURCE = 1\n")
    with pytest.raises(
        PapersError, match=r"^KEY must name a paper. Got 'nobody'. There is: ba2016layer, zhang2014deep.$"
    ):
        paper_module.load("nobody", folder)
    with pytest.raises(PapersError, match=r"^ba2016layer: .* Got: No module named 'no_such_package'. Run pip install"):
        paper_module.load("ba2016layer", folder)
    with pytest.raises(PapersError, match=r"^zhang2014deep: a paper must define .* Got no DEPARTURES. Define it.$"):
        paper_module.load("zhang2014deep", folder)


def test_a_run_is_judged_and_its_page_shows_everything(tmp_path: Path) -> None:
    code, said, shown = go(tmp_path)
    assert code == 0
    assert verdicts(tmp_path) == ["reproduced", "reproduced", "not reproduced"]
    assert str(tmp_path / f"{KEY}.html") in said
    assert "A quarter of it takes 6.28 s, too." in said
    assert f"{KEY}: Of <Spring>\n" in shown
    page = (tmp_path / f"{KEY}.html").read_text()
    text = html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)))
    for words in (
        "Of <Spring>", "Robert Hooke", "1678", "As the extension, so the force.",
        "Ut tensio, sic vis: length is to force as 2 to 1.", "page 1", "4 seeds", "95 %: 1.99", " to 2.00",
        "not reproduced", "3.1 apart; at most 0.01 is allowed.", 'Length follows "force"', "One line a seed.", "seed 3",
        "Left out: No trial in the record where study='sea'.", "The ruler is simulated.", "No watch was built.",
        f"python -m papers {KEY}", "force 1.0, 2.0, 4.0; seed 0, 1, 2, 3; slow 0.0",
    ):  # fmt: skip
        assert words in text
    assert '<ol class="departures"><li>The ruler is simulated.</li>' in page
    assert re.search(r"stretch\s+12\s", text)
    assert "Smoke" not in text and "smoke run" not in text
    assert 'aria-label="Length follows &quot;force&quot;"' in page
    assert "#010203" not in page
    index = (tmp_path / "index.html").read_text()
    assert f'<a href="{KEY}.html">Of &lt;Spring&gt;</a>' in index
    assert re.findall(r'badge (\w+)">(\d)', index) == [("good", "2"), ("bad", "1"), ("mild", "0")]


def test_a_page_needs_nothing_else_and_changes_only_with_its_record(tmp_path: Path) -> None:
    go(tmp_path)
    names = (f"{KEY}.html", "index.html")
    before = [(tmp_path / name).read_bytes() for name in names]
    assert go(tmp_path, judge=True)[0] == 0
    assert [(tmp_path / name).read_bytes() for name in names] == before
    for page in before:
        assert not re.search(rb"<script|<img|@import|url\((?!#)|\ssrc=", page)
        links = re.findall(rb'href="([^"#]+)"', page)
        assert {link.decode() for link in links} <= {"data:,", "https://example.org/spring", *names}
    record = tmp_path / f"{KEY}.jsonl"
    record.write_text(record.read_text().replace('"period": 6.28', '"period": 6.5'))
    go(tmp_path, judge=True)
    assert verdicts(tmp_path) == ["reproduced", "not reproduced", "not reproduced"]
    assert [(tmp_path / name).read_bytes() for name in names] != before


def test_a_smoke_run_is_never_judged(tmp_path: Path) -> None:
    code, said, _ = go(tmp_path, smoke=True)
    assert code == 0
    assert verdicts(tmp_path) == [NOT_JUDGED] * 3
    assert f"{KEY} (smoke run)" in said
    go(tmp_path, judge=True)  # the record itself says what it is
    assert verdicts(tmp_path) == [NOT_JUDGED] * 3
    page = (tmp_path / f"{KEY}.html").read_text()
    assert "A smoke run." in page
    assert f"<code>python -m papers {KEY} --smoke</code>" in page


def test_a_paper_without_a_record_is_listed(tmp_path: Path) -> None:
    code, said, _ = go(tmp_path, judge=True)
    assert (code, verdicts(tmp_path)) == (0, [NOT_JUDGED] * 3)
    assert f"{KEY}: no record yet" in said
    assert "no record yet" in (tmp_path / "index.html").read_text()
    assert not (tmp_path / f"{KEY}.html").exists()


def test_what_is_left_and_what_failed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = paper_module.load(KEY, TOYS)
    hang: Callable[..., Any] = toy.hang  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(toy, "run", lambda settings, record: record.study("hang", hang, [{"mass": 4.0}, {"mass": 1.0}]))
    code, _, shown = go(tmp_path)
    assert code == 1
    assert shown.endswith(f"Trials that failed: 1. They run again with: python -m papers --out {tmp_path}\n")
    monkeypatch.undo()
    code, _, shown = go(tmp_path, keys=(KEY,), minutes=1e-9, only=("stretch",))
    assert code == 0
    assert f"Trials left: 12 of {KEY} stretch. Go on: python -m papers {KEY} --out {tmp_path} --minutes 1e-09" in shown
    assert shown.endswith("--only stretch\n")


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(settings: Any, record: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(paper_module.load(KEY, TOYS), "run", stop)
    code, _, shown = go(tmp_path, jobs=3, smoke=True)
    assert code == 130
    command = f"python -m papers --smoke --jobs 3 --out {tmp_path}"
    assert shown.endswith(f"Stopped. Every finished trial is in {tmp_path}. Go on: {command}\n")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"jobs": 0}, r"--jobs must be at least 1, or -1 for one a core. Got 0. Use 2."),
        ({"minutes": 0.0}, r"--minutes must be above 0. Got 0. Use --judge to run nothing."),
        ({"judge": True, "jobs": 2}, r"--judge runs no trial. Got --jobs beside it. Leave out one of them."),
        ({"judge": True, "minutes": 1.0}, r"--judge runs no trial. Got --minutes beside it. Leave out one of them."),
        ({"judge": True, "only": ("s",)}, r"--judge runs no trial. Got --only beside it. Leave out one of them."),
        ({"keys": ("nobody",)}, rf"KEY must name a paper. Got 'nobody'. There is: {KEY}."),
        (
            {"keys": (KEY,), "judge": True},
            r"--judge needs a record. Got none at .*jsonl. Run it without --judge first.",
        ),
        ({"only": ("sea",)}, r"--only must name a study. Got 'sea'. There is: stretch, hang."),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(PapersError, match=rf"^{said}$"):
        go(tmp_path, **asked)


def test_a_spoiled_record_and_a_missing_extra_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{KEY}.jsonl").write_text("[1]\n")
    with pytest.raises(PapersError, match=r"^Table.read: a line must hold study, settings and result. Got"):
        go(tmp_path, judge=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PapersError, match=r'^write_verdicts: .* Run pip install "hooke\[report\]".$'):
        go(tmp_path / "other", smoke=True)


# The command


def test_the_command_refuses_with_2_and_no_traceback() -> None:
    done = CliRunner().invoke(app, ["nobody", "--judge"])
    assert done.exit_code == 2
    assert done.output.startswith("python -m papers: KEY must name a paper. Got 'nobody'. There is: ")
    assert CliRunner().invoke(app, ["--jobs", "0"]).exit_code == 2
    assert "--judge" in CliRunner().invoke(app, ["--help"]).output


def test_judging_again_needs_no_torch(tmp_path: Path) -> None:
    go(tmp_path / "toys")
    before = (tmp_path / "toys" / f"{KEY}.html").read_bytes()
    (tmp_path / "toys" / f"{KEY}.html").unlink()
    *python, code = driver(TOYS, tmp_path / "toys", "judge=True")
    subprocess.run([*python, WITHOUT_TORCH + code], env=environment(), check=True, capture_output=True)
    assert (tmp_path / "toys" / f"{KEY}.html").read_bytes() == before
    blocked = subprocess.run([*python, f"{WITHOUT_TORCH}import torch"], capture_output=True, text=True)
    assert "torch is not to be loaded" in blocked.stderr


# The bar


def test_the_time_left_is_the_mean_time_of_those_done() -> None:
    progress = StudyProgress("s", 10, [2.0, 4.0], 2, Screen())
    assert progress.left == "about 0:00:12 left"
    progress.advance(6.0)
    assert (progress.done, progress.left) == (3, "about 0:00:14 left")
    assert StudyProgress("s", 3, [], 1, Screen()).left == "time left not known yet"
    assert StudyProgress("s", 1, [5.0], 1, Screen()).left == "done"


def test_a_terminal_gets_a_bar_and_a_file_few_lines() -> None:
    plain, terminal = Screen(), Screen(force_terminal=True)
    for screen in (plain, terminal):
        with StudyProgress("stretch", 50, [], 1, screen) as progress:
            for _ in range(50):
                progress.advance(0.1)
    assert plain.text == "stretch: 0 of 50 trials, time left not known yet\nstretch: 50 of 50 trials, done\n"
    assert "50/50" in terminal.text


# The repository


def test_the_table_stands_between_the_markers_of_the_readme(tmp_path: Path) -> None:
    folder = tmp_path / "toys_home"
    shutil.copytree(TOYS, folder)
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- papers -->\nold\n<!-- /papers -->\nafter\n")
    assert carry_out(Request(folder=folder), Screen(), Screen()) == 0
    assert page.read_text() == (
        "before\n<!-- papers -->\n| paper | reproduced | not reproduced | not judged | report |\n"
        "| --- | --- | --- | --- | --- |\n| [Of <Spring>](https://example.org/spring), 1678 | 2 | 1 | 0 | "
        f"[14 trials](docs/papers/{KEY}.html) |\n<!-- /papers -->\nafter\n"
    )
    assert (tmp_path / "docs" / "papers" / f"{KEY}.html").exists()
    assert (folder / "results" / f"{KEY}.jsonl").exists()
    page.write_text("no markers")
    with pytest.raises(
        PapersError, match=r"^README.md must hold <!-- papers --> and <!-- /papers -->. Got neither or one"
    ):
        carry_out(Request(folder=folder, judge=True), Screen(), Screen())


def judged_papers() -> list[Any]:
    here = paper_module.HERE
    return [
        paper_module.judge(key, paper_module.load(key), here / "results" / f"{key}.jsonl")
        for key in paper_module.keys()  # noqa: SIM118
    ]


def test_the_readme_says_what_the_records_say() -> None:
    inside = readme.between((ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert inside == f"\n{readme.overview(judged_papers())}"


def test_the_documents_say_what_the_records_say() -> None:
    for key in paper_module.keys():  # noqa: SIM118
        trials = trial.recorded(paper_module.HERE / "results" / f"{key}.jsonl")
        for page in (ROOT / "docs").glob("*.md"):
            text = page.read_text(encoding="utf-8")
            assert text == readme.fill(text, key, getattr(paper_module.load(key), "TABLES", {}), trials), page.name


def test_a_table_fills_its_place() -> None:
    text = (
        "a\n<!-- k one -->\nold\n<!-- /k one -->\nb\n<!-- k two --><!-- /k two -->\n<!-- x one -->kept<!-- /x one -->"
    )
    tables: dict[str, Callable[[Table], str]] = {"one": lambda t: f"{len(t)} rows\n", "two": lambda t: t.one("absent")}
    filled = readme.fill(text, "k", tables, Table())
    assert "<!-- k one -->\n0 rows\n<!-- /k one -->" in filled
    assert "<!-- k two -->\n*Not yet: No trial in the record.*\n<!-- /k two -->" in filled
    assert filled.endswith("<!-- x one -->kept<!-- /x one -->")
    assert readme.fill(filled, "k", tables, Table()) == filled
    with pytest.raises(PapersError, match=r"^k: a page's table must be one of one, two\. Got 'three'\."):
        readme.fill("<!-- k three --><!-- /k three -->", "k", tables, Table())


def test_the_committed_pages_say_what_the_records_say() -> None:
    for paper in judged_papers():
        page = ROOT / "docs" / "papers" / f"{paper.key}.html"
        assert page.exists() == bool(paper.table)
        for claim, verdict in paper.claims if paper.table else ():
            shown = html.unescape(page.read_text(encoding="utf-8"))
            assert all(words in shown for words in (claim.sentence, verdict.ours, verdict.paper, verdict.note))


@pytest.mark.parametrize("key", paper_module.keys())
def test_the_smoke_run_of_every_paper(key: str, tmp_path: Path) -> None:
    said, shown = Screen(), Screen()
    code = carry_out(Request(keys=(key,), smoke=True, out=tmp_path), said, shown)
    assert code == 0, shown.text
    paper = paper_module.judge(key, paper_module.load(key), tmp_path / f"{key}.jsonl")
    page = html.unescape((tmp_path / f"{key}.html").read_text(encoding="utf-8"))
    for claim, verdict in paper.claims:
        assert verdict.word == NOT_JUDGED
        assert verdict.ours, f"{claim.sentence} got no number: {verdict.note}"
        assert claim.sentence in page
    assert "Left out: " not in page
    command = [sys.executable, "-c", f"{WITHOUT_TORCH}\nfrom papers.__main__ import app\napp()"]
    subprocess.run(
        [*command, key, "--judge", "--out", str(tmp_path)], env=environment(), check=True, capture_output=True
    )
    assert html.unescape((tmp_path / f"{key}.html").read_text(encoding="utf-8")) == page


def test_pictures_stand_alone(tmp_path: Path) -> None:
    """Each picture that the record fills is an SVG file, with colors of its own."""
    import xml.etree.ElementTree as ElementTree

    toy = paper_module.load(KEY, TOYS)
    trials = Trials(tmp_path / "toy.jsonl")
    toy.run(toy.SMOKE, trials)
    judged = paper_module.judge(KEY, toy, tmp_path / "toy.jsonl")
    (path,) = write_pictures(judged, tmp_path)
    assert path.name == f"{KEY}-draw.svg"
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(--" not in path.read_text()
    assert "seed 1" in path.read_text()


def test_a_wrong_study_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("SPRING_LOG", str(log))
    request = Request(folder=TOYS, out=tmp_path, only=("stretch", "strech"))
    with pytest.raises(PapersError, match=r"^--only must name a study\. Got 'strech'\. There is: stretch, hang\.$"):
        carry_out(request, Screen(), Screen())
    assert not log.exists()


def test_cells_may_be_planned_late_and_missing_data_stop_one_study_only(tmp_path: Path, screen: Screen) -> None:
    def missing() -> list[dict[str, Any]]:
        raise FileNotFoundError("data: root must name the folder that holds uci.npz.")

    trials = Trials(tmp_path / "record.jsonl", console=screen)
    assert len(trials.study("absent", double, missing)) == 0
    assert trials.study("there", double, lambda: [{"x": 3.0}]).column("twice") == [6.0]
    assert trials.failed == 1
    assert "data: root must name the folder" in screen.text
    skipping = Trials(tmp_path / "record.jsonl", only=(), console=screen)
    assert skipping.study("there", double, missing).column("twice") == [6.0]
    assert skipping.failed == 0


def test_the_page_shows_the_settings_that_ran() -> None:
    rows = [{"study": "s", "settings": {"width": 7777, "seed": seed}, "result": {}, "made": {}} for seed in range(9)]
    assert spell_settings(Table(rows)) == "width 7777; seed 9 values"
    assert spell_settings(Table(rows[:2])) == "width 7777; seed 0, 1"


def test_the_example_that_reads_a_record_runs() -> None:
    """Names in docs/reproductions.md are those of the committed record."""
    text = (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8")
    (path,) = re.findall(r'Table\.read\("([^"]+)"\)', text)
    (study, method, column) = re.findall(r'where\(study="(\w+)", method="(\w+)"\)\.column\("(\w+)"\)', text)[0]
    table = Table.read(ROOT / path)
    assert all(isinstance(value, float) for value in table.where(study=study, method=method).column(column))


def absent(seed: int) -> dict[str, Any]:
    raise FileNotFoundError(f"data: HTRU_2.csv must exist, says {seed}.")


def test_a_trial_whose_data_are_missing_says_so_in_a_sentence(tmp_path: Path, screen: Screen) -> None:
    trials = Trials(tmp_path / "record.jsonl", console=screen)
    assert len(trials.study("s", absent, [{"seed": 3}])) == 0
    assert trials.failed == 1
    assert "data: HTRU_2.csv must exist, says 3." in screen.text
    assert "Traceback" not in screen.text
