import os
import time
from pathlib import Path

import pytest

from hooke.launch.evidence import cores
from hooke.launch.process import WorkerProcess, environment, read_lines
from hooke.run import Run, RunDirectory


def run_in(folder: Path, num_workers: int = 1) -> Run:
    RunDirectory(folder).log(0).parent.mkdir(parents=True, exist_ok=True)
    return Run(str(folder), str(folder / "center"), worker=0, num_workers=num_workers, started=time.monotonic())


def test_cores_are_shared_out_unless_the_user_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    alone = environment(run_in(tmp_path))
    assert (alone["OMP_NUM_THREADS"], alone["MKL_NUM_THREADS"]) == (str(cores()), "3")
    assert environment(run_in(tmp_path, 10**6))["OMP_NUM_THREADS"] == "1"
    assert alone["PYTHONUNBUFFERED"] == "1" and alone["PATH"] == os.environ["PATH"]


def lines_of(*chunks: bytes) -> list[str]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        lines = read_lines(stream)
        got = []
        for chunk in chunks:
            os.write(writing, chunk)
            if b"\n" in chunk:
                got += next(lines)
        os.close(writing)
        return got + [line for more in lines for line in more]


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a", b"b\n", b"c"], ["ab", "c"]),
        ([b"\n", b"\n"], ["", ""]),
        ([b"\r 10%\r 20%", b"\r 30%\n"], [" 30%"]),
        ([b"10%\r", b"20%\r", b"done\n"], ["done"]),
        ([b"windows\r\n"], ["windows"]),
        ([b"\xc3", b"\xa4\n", b"\xff\n"], ["ä", "\ufffd"]),
    ],
)
def test_lines_are_read_as_a_terminal_would_show_them(chunks: list[bytes], lines: list[str]) -> None:
    assert lines_of(*chunks) == lines


def test_a_line_without_end_is_not_kept_forever(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 300_000)
    with path.open("rb") as stream:
        parts = [line for lines in read_lines(stream) for line in lines]
    assert "".join(parts) == "x" * 300_000 and len(parts) > 1


def test_what_a_worker_leaves_running_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "print(child.pid)\n"
    )
    said: list[str] = []
    worker = WorkerProcess(run_in(tmp_path), [str(script)], lambda _, lines, error: said.extend(lines))
    worker.start()
    deadline = time.monotonic() + 30
    while worker.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.poll() == worker.exit_code == 0
    (pid,) = map(int, said)
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline, "the child lives"
    assert RunDirectory(tmp_path).log(0).read_text() == f"{pid}\n"
