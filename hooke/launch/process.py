"""One worker's process under `hooke run`: started in a session of its own, read line by line, never left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, Literal

from hooke.launch.evidence import cores
from hooke.launch.memory import MALLOC
from hooke.run import Run

State = Literal["starting", "training", "restarting", "finished", "failed", "stopped"]

Write = Callable[[int, list[str], bool], None]
"""Takes a worker's number, lines that it printed, and whether they came from its stderr."""

_LONGEST_LINE = 1 << 16

# Runs in the worker's process before its script. Linux then kills the worker when the launcher dies, however it dies;
# the second line is for a launcher that died before the first. Not `preexec_fn`: that may deadlock beside threads.
_DIE_WITH_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class WorkerProcess:
    """Worker number `run.worker`, whichever process is it now.

    Args:
        run: What it is told of its run.
        script: The script and its arguments.
        write: Where its lines go, besides its log.
        more: Environment variables beside the run's.

    Attributes:
        state: What it is doing.
        began: Whether it ever took a step: a script that fails before that would fail again.
        restarts: How often its process was started again.
        pid: Of its newest process.
        exit_code: Of its last ended process; negative for the number of the signal that killed it.
        start_at: `time.monotonic()` at which a restarting one starts.
    """

    def __init__(
        self, run: Run, script: Sequence[str], write: Write, more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.run = run
        self.number = run.worker
        self.state: State = "starting"
        self.began = False
        self.restarts = 0
        self.exit_code = 0
        self.pid = 0
        self.start_at = 0.0
        self._script = script
        self._more = more
        self._write = write
        self._process: subprocess.Popen[bytes] | None = None
        self._pumps: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        """Whether it has a process, as far as is known."""
        return self.state in ("starting", "training")

    @property
    def going(self) -> bool:
        """Whether it has a process, or will have one again."""
        return self.running or self.state == "restarting"

    def start(self) -> None:
        """Start its process. Call this from the main thread: Linux takes a thread's end for the launcher's death."""
        run = dataclasses.replace(self.run, restarts=self.restarts)
        self._process = subprocess.Popen(
            command(self._script),
            env=environment(run) | dict(self._more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.state, self.pid = "starting", self._process.pid
        streams = (self._process.stdout, self._process.stderr)
        self._pumps = [threading.Thread(target=self._pump, args=pair, daemon=True) for pair in enumerate(streams)]
        for pump in self._pumps:
            pump.start()

    def poll(self) -> int | None:
        """Its exit code once it has ended; whatever it left running is killed then, and its last lines are read."""
        if self._process is None:
            return self.exit_code
        code = self._process.poll()
        if code is not None:
            self._signal_group(signal.SIGKILL)
            for pump in self._pumps:
                pump.join(timeout=1.0)
            self.exit_code, self._process = code, None
        return code

    def alive(self) -> bool:
        """Whether it has a process now."""
        return self._process is not None and self.poll() is None

    def terminate(self) -> None:
        """Ask it to end: SIGTERM for its own process, so that it can still use its children while it saves."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and its children at once."""
        self._signal_group(signal.SIGKILL)

    def restart_after(self, seconds: float) -> None:
        """Start it again in `seconds`."""
        self.restarts += 1
        self.state, self.start_at = "restarting", time.monotonic() + seconds

    def _signal_group(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM where only zombies are left
                os.killpg(self._process.pid, number)

    def _pump(self, index: int, stream: IO[bytes]) -> None:
        log = self.run.files.log(self.number)
        with stream, log.open("ab", buffering=0) as file:
            for lines in read_lines(stream):
                with contextlib.suppress(OSError):  # a full disk must not stop the reading, and so the worker
                    file.write("".join(f"{line}\n" for line in lines).encode())
                self._write(self.number, lines, index == 1)


def command(script: Sequence[str]) -> list[str]:
    """The command that runs a script so that it dies with this process, where the system can see to that."""
    python = [sys.executable, *script]
    if sys.platform != "linux":
        return python
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_LAUNCHER, str(os.getpid()), *python]


def environment(run: Run) -> dict[str, str]:
    """The environment of a worker: the cores are shared out and free memory is kept, unless the user has said how."""
    threads = str(max(1, cores() // run.num_workers))
    defaults = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    defaults |= MALLOC | {"GRPC_VERBOSITY": "NONE"}
    return defaults | dict(os.environ) | run.environment() | {"PYTHONUNBUFFERED": "1"}


def how_it_ended(code: int) -> str:
    """An exit code in words.

    Example:
        >>> how_it_ended(3), how_it_ended(-9)
        ('ended with exit code 3', 'was killed by SIGKILL')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    names = {int(number): number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"


def read_lines(stream: IO[bytes]) -> Iterator[list[str]]:
    """The lines of a pipe as they come, several at once where they come together.

    A carriage return starts the line over, as on a terminal: of a progress bar, its last state is left.
    """
    pending = b""
    while chunk := os.read(stream.fileno(), _LONGEST_LINE):
        *whole, pending = (pending + chunk).split(b"\n")
        pending = _started_over(pending)
        if len(pending) > _LONGEST_LINE:
            whole, pending = [*whole, pending], b""
        if whole:
            yield [_started_over(line).rstrip(b"\r").decode(errors="replace") for line in whole]
    if pending:
        yield [pending.rstrip(b"\r").decode(errors="replace")]


def _started_over(line: bytes) -> bytes:
    body = line.rstrip(b"\r")
    return body.rsplit(b"\r", 1)[-1] + line[len(body) :][:1]
