"""Centers and workers on several machines as a user meets them: real commands, TLS, on loopback."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import hooke
from hooke import certificate, cli
from hooke.certificate import Certificates, make_certificates

# Trains until somebody makes a file that is called stop.
TRAIN = """
import pathlib, time, torch, hooke
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with hooke.Worker(model, optimizer, hooke.EASGD(), communication_period=2) as worker:
    while not pathlib.Path("stop").exists():
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        worker.record(loss=0.5, examples=4)
        time.sleep(0.02)
    print("steps", worker.steps)
"""

# Ctrl-C works even where the tests run in the background of a shell that ignores it.
HOOKE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hooke.cli import app; app()"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("keys"))


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CENTER", "TOKEN", "AUTHORITY", "CERTIFICATE", "KEY", "CODEC", "INSECURE", "RUN"):
        monkeypatch.delenv(f"HOOKE_{name}", raising=False)


class Machine:
    """Commands in a folder of their own; whatever a failed test leaves running is ended."""

    def __init__(self, folder: Path, keys: Certificates) -> None:
        self.folder = folder
        self.own = ["--certificate", str(keys.certificate), "--key", str(keys.key), "--token-file", str(keys.token)]
        self.other = ["--authority", str(keys.authority), "--token-file", str(keys.token)]
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "train.py").write_text(TRAIN)

    def start(self, name: str, *words: str, module: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """A command whose words go to the file `name`."""
        command = [sys.executable, *(["-m", module] if module else ["-c", HOOKE]), *words]
        root = str(Path(__file__).parents[2])
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def found(self, name: str, pattern: str) -> str:
        """What the pattern's group finds, once it is there."""
        until(lambda: re.search(pattern, self.said(name)), why=lambda: self.said(name))
        return re.search(pattern, self.said(name))[1]  # type: ignore[index]

    def stop_training(self) -> None:
        (self.folder / "stop").touch()

    def rows(self, run: str) -> list[dict[str, Any]]:
        text = (self.folder / run / "workers" / "0.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


@pytest.fixture
def machine(tmp_path: Path, keys: Certificates) -> Iterator[Machine]:
    made = Machine(tmp_path, keys)
    yield made
    for process in made.processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(holds: Callable[[], Any], seconds: float = 60.0, why: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it never happened: {why()}"
        time.sleep(0.05)


def looking(url: str, keys: Certificates) -> hooke.RemoteCenter:
    return hooke.connect(url, token=keys.token.read_text().strip(), authority=keys.authority)


def workers_of(center: hooke.RemoteCenter) -> dict[str, dict[str, Any]]:
    """The workers by name; none while nobody answers."""
    try:
        return {worker["name"]: worker for worker in center.status()["workers"] if worker["alive"]}
    except OSError:
        return {}


def exchanging(center: hooke.RemoteCenter, count: int) -> bool:
    workers = workers_of(center)
    return len(workers) == count and all(worker["exchanges"] > 2 for worker in workers.values())


# A center of its own --------------------------------------------------------------------------------------------------


def test_workers_train_on_while_their_center_is_killed_and_started_again(machine: Machine, keys: Certificates) -> None:
    options = ["--out", "c", "--checkpoint-every", "0.2", *machine.own]
    center = machine.start("center", "center", "--listen", "127.0.0.1:0", *options)
    url = machine.found("center", r"the center listens at (grpc\+tls://127.0.0.1:\d+);")
    invitation = shlex.split(machine.found("center", "start workers with:  hooke (.*)"))
    assert invitation == [
        "run",
        "--join",
        url,
        "--token-file",
        str(keys.token),
        "--authority",
        str(keys.authority),
        "train.py",
    ]
    runs = [
        machine.start(name, *invitation[:-1], *more, "--workers", "1", "--out", name, "train.py")
        for name, more in {"a": [], "b": ["--codec", "int4"]}.items()
    ]
    look = looking(url, keys)
    until(lambda: exchanging(look, 2), why=lambda: machine.said("a") + machine.said("b"))
    names = workers_of(look)
    assert [re.sub("-[0-9a-f]{6}-", "-", name) for name in sorted(names)] == ["a-0", "b-0"]
    assert sorted(worker["codec"] for worker in names.values()) == ["float32", "int4"]

    until(lambda: (machine.folder / "c" / "center.safetensors").exists())
    out = ["--out", str(machine.folder / "c")]
    second = CliRunner().invoke(cli.app, ["center", "--listen", "127.0.0.1:0", *out], prog_name="hooke")
    assert second.exit_code == 2
    assert "that no other `hooke run` or `hooke center` uses. Got " in second.stderr
    center.kill()
    center.wait()
    saved = load_file(machine.folder / "c" / "center.safetensors")
    center = machine.start("again", "center", "--listen", url.partition("://")[2], *options)
    assert machine.found("again", "(and goes on with what was saved there)")
    until(lambda: exchanging(look, 2), why=lambda: machine.said("a") + machine.said("b"))
    assert set(workers_of(look)) == set(names)
    assert all(run.poll() is None for run in runs)

    shown = CliRunner().invoke(cli.app, ["status", url, *machine.other]).stdout
    assert re.search(r"6?\d+ values, 2 live workers, [\d,]+ exchanges", shown) and "refused: " in shown
    for name in names:
        assert re.search(
            rf"^{name} +ipv4:127.0.0.1:\d+ +\d+ +\d+ +\d+ +\S+ k?B +\S+ k?B +\d+ s +(int4|float32)$", shown, re.M
        )
    metrics = CliRunner().invoke(cli.app, ["status", url, "--prometheus", *machine.other]).stdout
    assert "\nhooke_num_workers 2\n" in metrics

    machine.stop_training()
    assert [run.wait(60) for run in runs] == [0, 0]
    look.close()
    center.terminate()
    assert center.wait(60) == 0
    assert "SIGTERM: saving the center" in machine.said("again")
    ended = load_file(machine.folder / "c" / "center.safetensors")
    assert all(value.isfinite().all() and not torch.equal(value, saved[name]) for name, value in ended.items())
    for name in ("a", "b"):
        assert any(row["name"] == "missed" and url in row["note"] for row in machine.rows(name))
        assert not (machine.folder / name / "center.safetensors").exists()
        assert (machine.folder / name / "report.html").exists()


# The center of a run --------------------------------------------------------------------------------------------------


def test_a_run_serves_its_center_to_others_and_starts_its_server_again(machine: Machine, keys: Certificates) -> None:
    here = TRAIN.replace('"stop"', '"stop here"')
    (machine.folder / "here.py").write_text(here)
    listening = machine.start(
        "here", "run", "--listen", "127.0.0.1:0", *machine.own, "--workers", "1", "--out", "here", "here.py"
    )
    url = machine.found("here", r"the center listens at (\S+)")
    token = {"HOOKE_CENTER": url, "HOOKE_TOKEN": keys.token.read_text().strip(), "HOOKE_AUTHORITY": str(keys.authority)}
    alone = machine.start("alone", "--nproc-per-node", "2", "train.py", module="torch.distributed.run", **token)
    look = looking(url, keys)
    until(lambda: exchanging(look, 2), why=lambda: machine.said("alone"))
    assert look.status()["local_workers"] == 1 and look.status()["num_workers"] == 3

    (server,) = children_of(listening.pid, "hooke.launch.server")
    os.kill(server, signal.SIGKILL)
    assert machine.found("here", r"(the server of the center was killed by SIGKILL\. It is started again)")
    until(lambda: exchanging(look, 2), why=lambda: machine.said("alone"))

    (machine.folder / "stop here").touch()
    assert machine.found("here", "the workers here have ended; the center stays for (2) elsewhere")
    assert listening.poll() is None
    machine.stop_training()
    assert alone.wait(60) == 0 and listening.wait(60) == 0
    look.close()
    assert (machine.folder / "here" / "center.safetensors").exists()


def children_of(pid: int, word: str) -> list[int]:
    """Processes that `pid` started with `word` in their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and word in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def test_ctrl_c_of_a_joined_run_says_how_it_goes_on_and_it_keeps_its_name(
    machine: Machine, center: hooke.LocalCenter
) -> None:
    with hooke.serve(center) as server:
        words = ["run", "--join", server.url, "--codec", "int8", "--workers", "1", "--out", "a"]
        process = machine.start("a", *words, "train.py")
        until(lambda: any(w["exchanges"] > 2 for w in server.status()["workers"]), why=lambda: machine.said("a"))
        (name,) = (worker["name"] for worker in server.status()["workers"])
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        command = shlex.split(machine.found("a", r"continue with:\s+hooke (run .*)"))
        options = ["--workers", "1", "--out", "a", "--join", server.url, "--codec", "int8"]
        assert command == ["run", "--resume", *options, "train.py"]
        process = machine.start("again", *command)
        until(lambda: any(w["step"] > 2 for w in server.status()["workers"]), why=lambda: machine.said("again"))
        assert [worker["name"] for worker in server.status()["workers"]] == [name]
        machine.stop_training()
        assert process.wait(60) == 0


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Calls `hooke` with words that can't work; the one sentence that it says."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("raise SystemExit('must not run')")

    def call(*words: str) -> str:
        made = CliRunner().invoke(cli.app, list(words), prog_name="hooke")
        assert made.exit_code == 2, made.output
        assert "Traceback" not in made.output and isinstance(made.exception, SystemExit)
        last = made.stderr.strip().splitlines()[-1]
        assert last.startswith(f"hooke {words[0]}: ")
        return last

    return call


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_mistakes_of_who_joins(said: Callable[..., str], center: hooke.LocalCenter, keys: Certificates) -> None:
    token, trust = ["--token-file", str(keys.token)], ["--authority", str(keys.authority)]
    Path("wrong").write_text("another\n")
    with hooke.serve(
        center, token=keys.token.read_text().strip(), certificate=keys.certificate, key=keys.key
    ) as server:
        for words in (["status", server.url], ["run", "--join", server.url]):
            rest = ["train.py"] if words[0] == "run" else []
            assert "wants its token. Got another token." in said(*words, *trust, "--token-file", "wrong", *rest)
            assert "wants its token. Got no token." in said(*words, *trust, *rest)
            assert "Got one that can't: " in said(*words, *token, *rest)
        assert "Got a center that speaks TLS." in said("status", server.url.replace("+tls", ""))
        codec = said("run", "--join", server.url, *token, *trust, "--codec", "int3", "train.py")
        assert "int3" in codec and "int4" in codec
    nobody = f"grpc+tls://127.0.0.1:{free_port()}"
    assert "Got a machine where nobody listens on port" in said("status", nobody)
    late = said("run", "--join", nobody, "--wait", "0.1", "train.py")
    assert "Start the center first (hooke center, or hooke run --listen), and check the port that it printed." in late
    assert "must be grpc://HOST:PORT or grpc+tls://HOST:PORT. Got 'center'" in said(
        "run", "--join", "center", "train.py"
    )
    assert "needs the center's address. Got none." in said("status")


def test_an_expired_certificate_is_named_to_who_joins(
    said: Callable[..., str], center: hooke.LocalCenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    monkeypatch.setattr(certificate, "_now", lambda: past)
    old = make_certificates(tmp_path / "old", days=3)
    with hooke.serve(center, certificate=old.certificate, key=old.key) as server:
        words = ["--join", server.url, "--authority", str(old.authority), "train.py"]
        assert "it has expired. Make a new one on the center's machine: hooke certificate DIR." in said("run", *words)


@pytest.mark.parametrize("command", ["center", "run"])
def test_mistakes_of_who_listens(said: Callable[..., str], keys: Certificates, command: str) -> None:
    rest = ["train.py"] if command == "run" else []
    tls = ["--certificate", str(keys.certificate), "--key", str(keys.key)]

    def listening(where: str, *words: str) -> str:
        return said(command, "--listen", where, *words, *rest)

    assert "beyond this machine a token and TLS are needed. Got 0.0.0.0 without token and certificate and key." in (
        listening("0.0.0.0:0")
    )
    assert "Got 0.0.0.0 without token. Give them (`hooke certificate DIR` makes them), listen on" in (
        listening("0.0.0.0:0", *tls)
    )
    if command == "center":
        assert "listen must be HOST:PORT. Got '29400'." in listening("29400")
        assert "certificate and key belong together" in listening("127.0.0.1:0", *tls[:2])
        assert "--token-file must be a file that can be read. Got nowhere: No such file" in (
            listening("127.0.0.1:0", "--token-file", "nowhere")
        )
        Path("empty").touch()
        assert "Got empty, which is empty. Write one there." in listening("127.0.0.1:0", "--token-file", "empty")
        assert "certificate must be a file that can be read. Got " in (
            listening("127.0.0.1:0", "--certificate", "nowhere", "--key", "nowhere")
        )
        assert "--checkpoint-every must be above 0 seconds." in listening("127.0.0.1:0", "--checkpoint-every", "0")
        Path("damaged").mkdir()
        Path("damaged/center.safetensors").write_bytes(b"x")
        assert "must be a readable safetensors file" in listening("127.0.0.1:0", "--out", "damaged")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            assert f"{where} must be an address of this machine with a free port. Got: Address already in use." in (
                listening(where)
            )
        other = make_certificates(Path("other"))
        for pair in ((keys.key, keys.certificate), (keys.certificate, other.key)):  # swapped, and of two folders
            words = ("--certificate", str(pair[0]), "--key", str(pair[1]))
            assert "serve: certificate and key must be a pair" in listening("127.0.0.1:0", *words)
        assert f"serve: authority must hold a certificate. Got {keys.key}, which holds none." in (
            listening("127.0.0.1:0", *tls, "--authority", str(keys.key))
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--listen", "127.0.0.1:0", "--join", "grpc://a:1"], "--listen and --join exclude each other"),
        (["--codec", "int4"], "--codec needs --join. Got none: nothing travels."),
        (["--insecure"], "--insecure needs --listen or --join. Got neither."),
        (["--wait", "-1", "--join", "grpc://a:1"], "--wait must be 0 seconds or more. Got -1."),
        (["--resume", "--join", "grpc://a:1"], "--resume needs an earlier run. Got none of train.py under runs/."),
        (["--resume", "--out", "x", "--join", "grpc://a:1"], "--resume needs an earlier run. Got none in x."),
    ],
)
def test_options_that_do_not_go_together(said: Callable[..., str], words: list[str], sentence: str) -> None:
    assert sentence in said("run", *words, "train.py")


def test_the_certificate_command_says_what_goes_where(tmp_path: Path) -> None:
    call = lambda *words: CliRunner().invoke(cli.app, ["certificate", str(tmp_path / "keys"), *words])  # noqa: E731
    first, second = call("--host", "center.example.org"), call("--days", "3")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout.startswith("made in ") and second.stdout.startswith("renewed in ")
    assert "for the center, called center.example.org, " in first.stdout
    line = shlex.split(first.stdout.splitlines()[-1].removeprefix("next:  "))
    assert line[:4] == ["hooke", "center", "--listen", "0.0.0.0:29400"]
    assert all(Path(word).exists() for word in line if word.startswith(str(tmp_path)))
    refused = call("--host", "a:1")
    assert refused.exit_code == 2 and refused.stderr.startswith("hooke certificate: certificate: a host must be a name")


def test_without_the_extra_it_says_what_to_install(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("hooke.remote")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert said("status", "grpc://127.0.0.1:1").endswith("Install it: pip install 'hooke[remote]'")
