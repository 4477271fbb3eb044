"""The `hooke` command: what it says of itself, and of what can't be done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hooke import cli
from hooke.launch import request


@pytest.fixture
def hooke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls `hooke` with words, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.app, list(words), prog_name="hooke")


def test_help_names_the_commands(hooke) -> None:
    said = hooke("--help")
    assert said.exit_code == 0
    assert "run " in said.output and "report " in said.output and "..." not in said.output.split("Commands:")[1]


def test_help_of_run_names_every_option(hooke) -> None:
    said = hooke("run", "--help")
    assert said.exit_code == 0
    for option in ("--workers", "--out", "--resume", "--max-restarts", "--checkpoint-every", "SCRIPT", "ARGS"):
        assert option in said.output
    assert "hooke run --workers 4 train.py --lr 0.1" in said.output


def test_version(hooke) -> None:
    assert hooke("--version").output.startswith("hooke 0.")


def test_the_command_itself_imports_no_torch() -> None:
    without_init = (
        "import sys, types; package = types.ModuleType('hooke'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['hooke'] = package; import hooke.cli; print('torch' in sys.modules)"
    )
    folder = str(Path(cli.__file__).parent)
    said = subprocess.run([sys.executable, "-c", without_init, folder], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian.py"], "SCRIPT must be a Python file. Got trian.py: no such file. Did you mean train.py?"),
        (["other/x.py"], "Got other/x.py: no such file. Give the path of your training script."),
        (["full"], "SCRIPT must be a Python file. Got full: a directory."),
        (["--workers", "0", "train.py"], "--workers must be 1 or more. Got 0. Use e.g. --workers 2."),
        (["--max-restarts", "-1", "train.py"], "--max-restarts must be 0 or more. Got -1."),
        (["--checkpoint-every", "0", "train.py"], "--checkpoint-every must be above 0 seconds. Got 0. Use e.g. 30."),
        (["--checkpoint-every", "nan", "train.py"], "--checkpoint-every must be above 0 seconds. Got nan."),
        (["--out", "full", "train.py"], "--out must be a new or empty directory. Got full, which holds files already."),
        (["--out", "train.py", "train.py"], "--out must be a directory. Got train.py, which is a file."),
        (["--out", "train.py/a", "train.py"], "--out must be a directory that can be written."),
        (
            ["--resume", "train.py"],
            "--resume needs an earlier run. Got none of train.py with a checkpoint under runs/.",
        ),
        (
            ["--resume", "--out", "full", "train.py"],
            "--resume needs a checkpoint of the center. Got full, which has no",
        ),
        (["--resume", "--out", "cut", "train.py"], "--resume needs a readable cut/run.json. Got: Expecting"),
        (["--lr", "0.1", "train.py"], "No such option: --lr. Options of the script stand after it:"),
        (["--worker", "2", "train.py"], "(Possible options: --workers)"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(hooke, words: list[str], sentence: str) -> None:
    Path("train.py").write_text("raise SystemExit('must not run')")
    for name in ("full", "cut"):
        Path(name).mkdir()
    Path("full/something").touch()
    Path("cut/center.safetensors").touch()
    Path("cut/run.json").write_text("{")
    before = sorted(Path().rglob("*"))
    said = hooke("run", *words)
    assert said.exit_code == 2
    assert sentence in " ".join(said.stderr.split())
    assert "Traceback" not in said.output and isinstance(said.exception, SystemExit)
    assert sorted(Path().rglob("*")) == before


def test_what_stands_after_the_script_is_the_scripts(hooke, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("hooke.launch.launch", lambda *given, **options: calls.append((given, options)) or 7)
    said = hooke("run", "--workers", "3", "--resume", "train.py", "--out", "x", "--", "--help", "-h", "a b")
    assert said.exit_code == 7
    given, options = calls[0]
    assert given == (Path("train.py"), ["--out", "x", "--", "--help", "-h", "a b"])
    assert options == {"workers": 3, "out": None, "resume": True, "max_restarts": 3, "checkpoint_every": 30.0}


def test_report_writes_the_page_or_says_why_not(hooke, monkeypatch: pytest.MonkeyPatch) -> None:
    said = hooke("report", "nowhere")
    assert said.exit_code == 2 and "nowhere" in said.stderr and isinstance(said.exception, SystemExit)
    calls = []
    monkeypatch.setattr("hooke.report.write_report", lambda runs, out: calls.append((runs, out)) or Path("page.html"))
    said = hooke("report", "a", "b", "--out", "page.html")
    assert (said.exit_code, said.stdout) == (0, "page.html\n")
    assert calls == [([Path("a"), Path("b")], Path("page.html"))]


def test_the_plan_of_a_resumed_run_keeps_its_workers_and_takes_the_newest_directory(hooke) -> None:
    Path("train.py").touch()
    names = ["train-20260101-000000", "train-20260101-000001-2", "train-20270101-000000", "other-20280101-000000"]
    for index, name in enumerate(names):
        directory = Path("runs") / name
        directory.mkdir(parents=True)
        (directory / "run.json").write_text(json.dumps({"workers": 5 + index}))
        if index != 2:  # the newest stopped before its first checkpoint
            (directory / "center.safetensors").touch()
            os.utime(directory / "center.safetensors", (index, index))
    made = request.make_request("train.py", resume=True)
    assert (made.directory, made.workers) == (Path("runs/train-20260101-000001-2"), 6)
    assert request.make_request("train.py", resume=True, workers=1).workers == 1


def test_the_command_of_a_plan_can_be_pasted(hooke) -> None:
    Path("my train.py").touch()
    made = request.make_request("my train.py", ["--lr", "0.1", "a b"], out="x", max_restarts=0, checkpoint_every=1.5)
    assert made.resume_line() == (
        "hooke run --resume --workers 2 --out x --max-restarts 0 --checkpoint-every 1.5 'my train.py' --lr 0.1 'a b'"
    )
