"""The `hooke` command: what it says of itself, and of what can't be done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hooke import cli
from hooke.launch import request
from hooke.launch.link import Link


@pytest.fixture
def hooke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls `hooke` with words, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.app, list(words), prog_name="hooke")


def test_help_names_the_commands(hooke) -> None:
    said = hooke("--help")
    assert said.exit_code == 0
    assert all(
        f"\n  {name} " in said.output for name in ("run", "report", "audit", "plan", "center", "status", "certificate")
    )
    assert "..." not in said.output.split("Commands:")[1]


def test_help_of_run_names_every_option(hooke) -> None:
    said = hooke("run", "--help")
    assert said.exit_code == 0
    names = ["--workers", "--out", "--resume", "--max-restarts", "--checkpoint-every", "SCRIPT", "ARGS"]
    names += ["--listen", "--join", "--codec", "--token-file", "--authority", "--certificate", "--key", "--wait"]
    for option in names:
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
        (["--worker", "2", "train.py"], "(Possible options: --key, --workers)"),
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
    assert options == {
        "workers": 3,
        "out": None,
        "resume": True,
        "max_restarts": 3,
        "checkpoint_every": 30.0,
        "link": Link(),
    }


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


# hooke audit -----------------------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn
from hooke.nn import SelfNormalizingMLP

def healthy():
    return SelfNormalizingMLP(32, 4, hidden=256, depth=4)

def plain(hidden=128):
    return nn.Sequential(nn.Linear(32, hidden), nn.SELU(), nn.Dropout(0.5), nn.Linear(hidden, 2))

def with_inputs():
    return healthy(), torch.randn(64, 32)

def convolution():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))

def words():
    return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2))

def broken():
    raise OSError("no weights.pt here\\nsecond line")

def needs(width):
    return nn.Linear(width, 2)

model, number = plain(), 3
"""


@pytest.fixture
def audit(hooke, monkeypatch: pytest.MonkeyPatch):
    """Calls `hooke audit` beside a file of models; what it imports is forgotten afterwards."""
    Path("mymodels.py").write_text(MODEL)
    Path("stops.py").write_text("raise SystemExit(3)")
    Path("lacks.py").write_text("import nothing_of_that_name")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield lambda *words: hooke("audit", *words)
    for name in {"mymodels", "stops", "lacks"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_audit_of_a_healthy_model_says_so(audit) -> None:
    said = audit("mymodels:healthy", "--shape", "32")
    assert said.exit_code == 0, said.output
    assert said.stdout.rstrip().endswith("No findings.") and "linear4" in said.stdout
    assert max(map(len, said.stdout.split("\n"))) <= 100
    assert audit("mymodels:with_inputs").exit_code == 0


@pytest.mark.parametrize("target", ["mymodels:plain", "mymodels:model"])
def test_audit_names_what_to_repair_and_exits_with_1(audit, target: str) -> None:
    said = audit(target, "--shape", "32", "--batch", "64", "--seed", "5")
    assert said.exit_code == 1
    assert "2 findings:" in said.stdout and "Use AlphaDropout(p=0.1)." in " ".join(said.stdout.split())


def test_audit_is_repeatable_and_prints_json(audit) -> None:
    first, second, other = (
        json.loads(audit("mymodels:plain", "--shape", "32", "--json", "--seed", seed).stdout) for seed in "112"
    )
    assert first["layers"] == second["layers"] != other["layers"]
    assert [one["kind"] for one in first["findings"]] == ["plain-dropout", "default-init"]


def test_audit_takes_examples_and_draws_a_picture(audit) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(5, 1, (100, 32)))
    np.save("words.npy", np.random.default_rng(0).integers(0, 9, (100, 6), dtype=np.int16))
    said = audit("mymodels:healthy", "--inputs", "x.npy", "--picture", "audit.png")
    assert said.exit_code == 1 and "Inputs have mean 4.97" in said.stdout
    assert Path("audit.png").read_bytes().startswith(b"\x89PNG")
    assert audit("mymodels:words", "--inputs", "words.npy").exit_code == 0


@pytest.mark.parametrize("kind", ["uint8", ">f8", ">i2", "bool"])
def test_audit_takes_examples_of_any_type_of_number(audit, kind: str) -> None:
    np.save("x.npy", np.random.default_rng(0).integers(0, 2, (100, 32)).astype(kind))
    said = audit("mymodels:healthy", "--inputs", "x.npy")
    assert said.exit_code == 1 and "Inputs have mean 0.5" in said.stdout, said.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["mymodels"], "the model must be given as MODULE:FACTORY. Got mymodels. Use e.g. mymodel:build."),
        (["nowhere:build"], "MODULE must be importable from here. Got nowhere: no such module. Write it without .py"),
        (["mymodels.py:plain"], "MODULE must be importable from here. Got mymodels.py: no such module."),
        (["lacks:build"], "lacks must be importable. Got ModuleNotFoundError: No module named 'nothing_of_that_name'."),
        (["stops:build"], "stops must be importable. Got SystemExit: 3. Run python -m stops to see where."),
        (["mymodels:plane"], "mymodels must have plane. Got no such name. Did you mean plain?"),
        (["mymodels:number"], "mymodels:number must be or return an nn.Module. Got int. Name a factory"),
        (
            ["mymodels:torch.get_num_threads"],
            "must be or return an nn.Module, or a pair of it and its inputs. Got int.",
        ),
        (
            ["mymodels:broken"],
            "must return the model when called without arguments. Got OSError: no weights.pt here. M",
        ),
        (["mymodels:needs"], "Got TypeError: needs() missing 1 required positional argument: 'width'."),
        (["mymodels:healthy"], "inputs are needed. Got none with mymodels:healthy. Use e.g. --shape 32, or --inputs"),
        (
            ["mymodels:convolution"],
            "Got none with mymodels:convolution. Use e.g. --shape 3,32,32, or --inputs FILE.npy",
        ),
        (
            ["mymodels:healthy", "--shape", "31"],
            "forward must accept the inputs. Got RuntimeError: mat1 and mat2 shapes",
        ),
        (["mymodels:convolution", "--shape", "3,9,9"], "hooke audit: every parameter and buffer must have its shape."),
        (["mymodels:healthy", "--shape", "3x2"], "--shape must be whole numbers of one example, above 0. Got 3x2."),
        (["mymodels:healthy", "--shape", "0"], "--shape must be whole numbers of one example, above 0. Got 0."),
        (["mymodels:healthy", "--shape", "32", "--batch", "1"], "--batch must be 2 or more. Got 1."),
        (["mymodels:healthy", "--shape", "32", "--inputs", "x.npy"], "give --shape or --inputs, not both."),
        (["mymodels:healthy", "--inputs", "x.npy"], "--inputs must be a .npy file of numbers. Got x.npy: FileNotFound"),
        (["mymodels:healthy", "--inputs", "mymodels.py"], "--inputs must be a .npy file of numbers. Got mymodels.py:"),
        (
            ["mymodels:healthy", "--inputs", "text.npy"],
            "--inputs must hold 2 examples or more, as numbers. Got text.npy",
        ),
        (["mymodels:healthy", "--shape", "32", "--picture", "x.xyz"], "--picture must end in one of avif, eps, "),
        (["mymodels:broken", "--picture", "no/x.png"], "--picture must be in a folder that exists. Got no/x.png."),
        (["mymodels:with_inputs", "--batch", "8"], "--batch must be left out where mymodels:with_inputs gives the in"),
        (["mymodels:healthy", "--inputs", "many.npz"], "--inputs must hold one array. Got many.npz."),
    ],
)
def test_what_can_not_be_audited_is_one_sentence(audit, words: list[str], sentence: str) -> None:
    np.save("text.npy", np.array(["a", "b"]))
    np.savez("many.npz", np.ones(3))
    said = audit(*words)
    assert said.exit_code == 2
    assert said.stderr.startswith("hooke audit: ") and sentence in " ".join(said.stderr.split())
    assert "Traceback" not in said.output and isinstance(said.exception, SystemExit)
    assert said.stdout == ""


def test_help_of_audit_needs_no_torch(hooke) -> None:
    said = hooke("audit", "--help")
    assert said.exit_code == 0
    for option in ("--shape", "--inputs", "--batch", "--seed", "--json", "--picture", "MODULE:FACTORY", "Exit code"):
        assert option in said.output
    code = (
        "import sys; from hooke import cli; sys.argv = ['hooke', 'audit', '--help']\n"
        "try: cli.app()\nexcept SystemExit as done: sys.exit(done.code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
