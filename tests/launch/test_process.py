import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hooke.launch.evidence import cores
from hooke.launch.memory import MALLOC
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


def test_free_memory_is_kept_unless_the_user_has_said_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in MALLOC:
        monkeypatch.delenv(name, raising=False)
    assert MALLOC.items() <= environment(run_in(tmp_path)).items()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert environment(run_in(tmp_path))["MALLOC_TRIM_THRESHOLD_"] == "0"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize(("known", "keeps"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_a_server_keeps_free_memory(known: dict[str, str], keeps: bool) -> None:
    """What has been freed at the end of the heap still counts as the process's own, or has gone back."""
    script = (
        "import ctypes, pathlib\n"
        "from hooke.launch.memory import keep_memory\n"
        "keep_memory()\n"
        "c = ctypes.CDLL(None)\n"
        "c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]\n"
        "for block in [c.malloc(1 << 20) for _ in range(64)]:\n"
        "    ctypes.memset(block, 1, 1 << 20)\n"
        "    c.free(block)\n"
        "print(int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096)\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in {*MALLOC, "GLIBC_TUNABLES"}}
    said = subprocess.run(
        [sys.executable, "-c", script], env=clean | known, capture_output=True, text=True, check=True
    ).stdout
    assert (int(said) > 64 << 20) == keeps


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
