"""`hooke run` as a user meets it: real processes, started, killed, interrupted and resumed."""

import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hooke.center import LocalCenter
from hooke.spec import CenterSpec

# A worker without torch: it starts in no time. `row` says that it has taken a step.
QUICK = """
import json, os, sys, time
run = json.loads(os.environ["HOOKE_RUN"])
me, restarts = run["worker"], run["restarts"]
def row(name, value, step=1):
    with open(f"{run['directory']}/workers/{me}.jsonl", "a") as file:
        file.write(json.dumps({"t": 1.0, "worker": me, "step": step, "name": name, "value": value}) + "\\n")
print("start", os.getpid())
print("memory", os.path.dirname(run["center"]))
"""

# A worker that trains until it has taken as many steps as its argument says.
TRAIN = """
import os, sys, time, torch, hooke
from hooke.run import Run
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
print("start", os.getpid())
print("memory", os.path.dirname(Run.current().center))
with hooke.Worker(model, optimizer, hooke.EASGD(), communication_period=2) as worker:
    print("weight", model.weight.tolist())
    for _ in range(int(sys.argv[1])):
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        worker.record(loss=0.5, examples=4)
        time.sleep(0.01)
"""

# Ctrl-C works even where the tests run in the background of a shell that ignores it.
HOOKE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import os, hooke.launch.launcher
from hooke.cli import app
hooke.launch.launcher.STOP_SECONDS = float(os.environ.get("STOP_SECONDS", hooke.launch.launcher.STOP_SECONDS))
app()
"""


class Hooke:
    """`hooke run` in a folder of its own; whatever a failed test leaves running is ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, script: str = "", **environment: str) -> subprocess.Popen[str]:
        if script:
            (self.folder / "train.py").write_text(script)
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", HOOKE, "run", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": root} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, script: str = "", **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, script=script, **environment)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    def description(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "run.json").read_text())

    def log(self, name: str, worker: int) -> str:
        path = self.folder / name / "workers" / f"{worker}.log"
        return path.read_text() if path.exists() else ""

    def rows(self, name: str, worker: int) -> list[dict[str, Any]]:
        path = self.folder / name / "workers" / f"{worker}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self, name: str) -> list[int]:
        logs = [path.read_text() for path in (self.folder / name / "workers").glob("*.log")]
        return [int(pid) for log in logs for pid in re.findall(r"(?:start|child) (\d+)", log)]

    def memory(self, name: str) -> set[Path]:
        """The folders in memory that the run's launchers made."""
        logs = [path.read_text() for path in (self.folder / name / "workers").glob("*.log")]
        return {Path(path) for log in logs for path in re.findall("memory (.+)", log)}


@pytest.fixture
def hooke(tmp_path: Path) -> Iterator[Hooke]:
    made = Hooke(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_run_and_leave_their_evidence(hooke: Hooke) -> None:
    script = QUICK + (
        "row('loss', 0.25, step=7)\n"
        "print('arguments', sys.argv[1:])\n"
        "print('threads', os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])\n"
        "print('a word', file=sys.stderr)\n"
        "print('no end of line', end='')\n"
    )
    given = ["--lr", "0.1", "--help", "--", "--workers", "two words"]
    code, out, err = hooke.run(
        "--workers", "2", "--out", "a", "train.py", *given, script=script, OMP_NUM_THREADS="5", MKL_NUM_THREADS="6"
    )

    assert code == 0, err
    for worker in (0, 1):
        assert f"[{worker}] arguments {given}\n" in out
        assert f"[{worker}] threads 5 6\n" in out
        assert f"[{worker}] no end of line\n" in out
        assert f"[{worker}] a word\n" in err and "a word" not in out
        assert {"arguments", "threads", "a", "no"} <= {line.split()[0] for line in hooke.log("a", worker).splitlines()}
        assert f"hooke: worker {worker} finished, step 7, loss 0.25" in err
    assert "no such" not in err and "Traceback" not in err

    about = hooke.description("a")
    assert about["command"] == ["hooke", "run", "--workers", "2", "--out", "a", "train.py", *given]
    assert (about["name"], about["workers"], about["exit_code"], about["restarts"]) == ("a", 2, 0, 0)
    assert about["workers_state"] == {"0": "finished", "1": "finished"}
    assert about["settings"] == {"workers": 2, "checkpoint_every": 30.0, "max_restarts": 3, "arguments": given}
    assert about["started_at"] <= about["finished_at"] and about["elapsed_seconds"] > 0
    assert about["versions"]["python"] == sys.version.split()[0] and about["versions"]["torch"]
    assert about["device"]["cores"] >= 1 and about["device"]["platform"]


def test_a_crashed_worker_is_restarted_alone(hooke: Hooke) -> None:
    script = QUICK + (
        "row('loss', 1.0)\n"
        "if me == 1 and restarts == 0: sys.exit(7)\n"
        "if me == 1 and restarts == 1: os.kill(os.getpid(), 11)\n"
        "print('through', restarts)\n"
    )
    code, out, err = hooke.run("--workers", "2", "--out", "a", "train.py", script=script)
    assert code == 0, err
    assert "worker 1 ended with exit code 7. It is started again (1 of 3)." in err
    assert "worker 1 was killed by SIGSEGV. It is started again (2 of 3)." in err
    assert "[0] through 0\n" in out and "[1] through 2\n" in out
    assert (len(re.findall("start", hooke.log("a", 0))), len(re.findall("start", hooke.log("a", 1)))) == (1, 3)
    assert hooke.description("a")["restarts"] == 2


def test_a_worker_that_keeps_crashing_is_given_up_and_the_others_go_on(hooke: Hooke) -> None:
    given_up = "os.path.exists(f\"{run['directory']}/given-up\")"
    script = QUICK + (
        "row('loss', 1.0)\n"
        "if me == 0:\n"
        f"    while not {given_up}: time.sleep(0.01)\n"
        "    print('went on')\n"
        "else:\n"
        f"    if restarts == 1: open(f\"{{run['directory']}}/given-up\", 'w')\n"
        "    sys.exit(3)\n"
    )
    code, out, err = hooke.run("--workers", "2", "--out", "a", "--max-restarts", "1", "train.py", script=script)
    assert code == 1
    assert "[0] went on\n" in out
    assert "worker 1 ended with exit code 3 after 1 restart, no more to come. The others go on." in err
    assert hooke.description("a")["workers_state"] == {"0": "finished", "1": "failed: it ended with exit code 3"}
    assert hooke.description("a")["exit_code"] == 1


def test_a_script_that_can_not_start_is_not_restarted(hooke: Hooke) -> None:
    code, _, err = hooke.run("--out", "a", "train.py", "--workers", "4", script="def f(:\n")
    assert code == 1
    assert "[0] SyntaxError: invalid syntax" in err
    assert "worker 0 ended with exit code 1 before its first step. It is not started again" in err
    assert "a/workers/0.log" in err and "started again (" not in err
    assert "no worker took a step. Repair train.py, and run it again." in err
    assert "--workers went to the script: hooke's own options stand before it." in err
    assert hooke.log("a", 1).count("SyntaxError") == 1
    assert (
        hooke.run("--out", "a", "train.py", script=QUICK + "row('loss', 1.0)\n")[0] == 0
    )  # repaired, the same command works


def test_a_worker_killed_before_its_first_step_is_restarted(hooke: Hooke) -> None:
    script = QUICK + "if restarts == 0: os.kill(os.getpid(), 9)\nrow('loss', 1.0)\n"
    code, _, err = hooke.run("--workers", "1", "--out", "a", "train.py", script=script)
    assert code == 0, err
    assert "worker 0 was killed by SIGKILL. It is started again (1 of 3)." in err


def test_a_worker_that_took_steps_but_wrote_no_rows_is_restarted(hooke: Hooke) -> None:
    crash = "        if worker.steps == 3 and Run.current().restarts == 0: os._exit(5)\n"
    script = TRAIN.replace("        time.sleep(0.01)\n", crash)
    code, _, err = hooke.run("--workers", "1", "--out", "a", "train.py", "5", script=script)
    assert code == 0, err
    assert "worker 0 ended with exit code 5. It is started again (1 of 3)." in err
    assert [row["value"] for row in hooke.rows("a", 0) if row["name"] == "restarted"] == [1.0]


def test_a_script_without_a_worker_is_named(hooke: Hooke) -> None:
    code, _, err = hooke.run("--workers", "1", "--out", "a", "train.py", script="print('alone')")
    assert code == 1
    assert "no worker trained. train.py needs: with hooke.Worker(" in err


def test_ctrl_c_leaves_a_checkpoint_no_orphans_and_the_command_that_resumes(hooke: Hooke) -> None:
    process = hooke.start("--workers", "2", "--out", "a", "train.py", "100000", script=TRAIN)
    until(lambda: len(hooke.rows("a", 0)) > 3 and len(hooke.rows("a", 1)) > 3)
    (memory,) = hooke.memory("a")
    assert memory.stat().st_mode & 0o777 == 0o700
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert len(hooke.pids("a")) == 2 and not any(lives(pid) for pid in hooke.pids("a"))
    assert not memory.exists()
    saved = load_file(hooke.folder / "a" / "center.safetensors")
    assert saved["weight"].shape == (1, 3) and saved["weight"].isfinite().all()
    first = hooke.description("a")
    assert (first["exit_code"], first["workers_state"]) == (130, {"0": "stopped", "1": "stopped"})
    assert "a/center.safetensors" in err and "Traceback" not in err

    command = shlex.split(re.search(r"continue with:\s+(hooke run .*)", err)[1])  # type: ignore[index]
    assert command == ["hooke", "run", "--resume", "--workers", "2", "--out", "a", "train.py", "100000"]
    rows = len(hooke.rows("a", 0))
    code, out, err = hooke.run(*command[2:-1], "20")

    assert code == 0, err
    assert f"weight {saved['weight'].tolist()}\n" in out  # of the worker that came first
    assert len(hooke.rows("a", 0)) > rows
    assert hooke.rows("a", 0)[rows]["t"] > hooke.rows("a", 0)[rows - 1]["t"]
    second = hooke.description("a")
    assert second["started_at"] == first["started_at"] and second["resumed"] == 1
    assert second["elapsed_seconds"] > first["elapsed_seconds"]
    assert second["command"] == [*command[:-1], "20"]


def test_a_second_ctrl_c_stops_at_once_whoever_will_not_listen(hooke: Hooke) -> None:
    script = QUICK + (
        "import signal, subprocess\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('heard', flush=True))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "print('child', child.pid)\n"
        "row('loss', 1.0)\n"
        "while True: time.sleep(1)\n"
    )
    process = hooke.start("--workers", "2", "--out", "a", "train.py", script=script, STOP_SECONDS="1000")
    until(lambda: len(hooke.rows("a", 0)) and len(hooke.rows("a", 1)))
    process.send_signal(signal.SIGINT)
    until(lambda: "heard" in hooke.log("a", 0) and "heard" in hooke.log("a", 1))
    assert all(lives(pid) for pid in hooke.pids("a"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing was trained yet: start it again" in err
    assert len(hooke.pids("a")) == 4
    until(lambda: not any(lives(pid) for pid in hooke.pids("a")), seconds=5)


def test_sigterm_stops_as_ctrl_c_does_and_tells_the_workers(hooke: Hooke) -> None:
    script = QUICK + (
        "import signal\n"
        "def leave(*_): print('saved my own'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "row('loss', 1.0)\n"
        "while True: time.sleep(0.01)\n"
    )
    process = hooke.start("--workers", "1", "--out", "a", "train.py", script=script)
    until(lambda: len(hooke.rows("a", 0)))
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "[0] saved my own\n" in out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_a_killed_launcher_takes_its_workers_along_and_the_next_one_sweeps_and_resumes(hooke: Hooke) -> None:
    process = hooke.start(
        "--workers", "2", "--out", "a", "--checkpoint-every", "0.3", "train.py", "100000", script=TRAIN
    )
    until(lambda: (hooke.folder / "a" / "center.safetensors").exists() and len(hooke.rows("a", 1)) > 3)

    code, _, err = hooke.run("--resume", "--out", "a", "train.py", "1")
    assert code == 2 and "no other `hooke run` or `hooke center` uses. Got a, which one uses now. Stop it first" in err

    process.kill()
    process.communicate()
    until(lambda: not any(lives(pid) for pid in hooke.pids("a")), seconds=5)
    last = max(row["t"] for worker in (0, 1) for row in hooke.rows("a", worker))

    rows = len(hooke.rows("a", 0))
    code, _, err = hooke.run("--resume", "--out", "a", "train.py", "5")
    assert code == 0, err
    assert len(hooke.memory("a")) == 2 and not any(memory.exists() for memory in hooke.memory("a"))
    assert hooke.rows("a", 0)[rows]["t"] >= last
    assert hooke.description("a")["workers"] == 2


def test_a_checkpoint_that_can_not_be_written_ends_no_training_but_counts(hooke: Hooke) -> None:
    (hooke.folder / "a" / "center.safetensors").mkdir(parents=True)
    code, _, err = hooke.run("--workers", "1", "--out", "a", "train.py", "5", script=TRAIN)
    assert code == 1
    assert "a could not be written" in err and "worker 0 finished" in err and "Traceback" not in err


def test_resume_without_a_directory_takes_the_newest_run_of_the_script(hooke: Hooke) -> None:
    assert hooke.run("--workers", "1", "train.py", script=QUICK + "row('loss', 1.0)\n")[0] == 0
    (directory,) = (hooke.folder / "runs").iterdir()
    assert re.fullmatch(r"train-\d{8}-\d{6}", directory.name)
    center = LocalCenter()
    center.join(torch.ones(4), CenterSpec((), 4))
    center.save(directory / "center.safetensors")
    center.close()

    code, _, err = hooke.run("--resume", "train.py")
    assert code == 0 and "1 worker of train.py" in err and f"everything goes to runs/{directory.name}" in err
    assert hooke.description(f"runs/{directory.name}")["resumed"] == 1
    assert hooke.log(f"runs/{directory.name}", 0).count("start") == 2
    path = directory / "center.safetensors"
    assert load_file(path)["center"].tolist() == [1.0] * 4

    path.write_bytes(path.read_bytes()[:50])
    code, _, err = hooke.run("--resume", "train.py")
    assert code == 2 and "must be a readable safetensors file" in err and "Traceback" not in err
    assert hooke.log(f"runs/{directory.name}", 0).count("start") == 2


def test_a_terminal_shows_every_worker(hooke: Hooke) -> None:
    script = QUICK + "row('loss', 0.125, step=1234)\nprint('from the worker')\ntime.sleep(1.5)\n"
    (hooke.folder / "train.py").write_text(script)
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", HOOKE, "run", "--workers", "2", "--out", "a", "train.py"],
        cwd=hooke.folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with pytest.raises(OSError):  # how Linux says that nobody holds the other end any longer
        while True:
            shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "\x1b[1A" in text  # drawn in place
    words = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"step\s+loss\s+examples/s\s+center distance\s+waited", words)
    for worker in (0, 1):
        assert re.search(rf"worker {worker}\s+training\s+1,234\s+0\.125", words)
        assert re.search(rf"worker {worker}\s+finished", words)
        assert f"[{worker}] from the worker" in words
