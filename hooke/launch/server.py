"""The process that serves the center of `hooke run --listen` to other machines.

A process of its own on the same shared memory, and not a thread of the launcher: whatever strangers send, it can take
down neither the launcher nor the workers of this machine. It is started again when it dies; workers elsewhere train on
meanwhile, and come back by themselves.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hooke.launch.link import Link, quiet
from hooke.launch.memory import keep_memory
from hooke.launch.process import command, how_it_ended
from hooke.launch.request import LaunchError

START_SECONDS = 60.0
"""How long it may take to its first word."""

LONGEST_PAUSE = 10.0
"""Seconds between two starts."""


class ServerProcess:
    """Serves the center at `center`.

    Args:
        center: Path of the shared-memory center.
        log: Where what it says goes.
        link: Where it listens, and who may come.
        say: Takes sentences for the user.

    Attributes:
        url: What workers elsewhere join.
        pid: Of its newest process.
    """

    def __init__(self, center: Path, log: Path, link: Link, say: Callable[[str], None]) -> None:
        self._center, self._log, self._link, self._say = center, log, link, say
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts, self._start_at = 0, 0.0
        self.url = ""
        self.pid = 0

    def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            LaunchError: It can't.
        """
        said = self._first_word(self._begun(self._link.listen, subprocess.PIPE))
        if "url" not in said:
            raise LaunchError(said.get("error", f"--listen needs a server that starts. What it said: {self._log}"))
        self.url = said["url"]

    def tend(self) -> None:
        """Start it again if it has died, on the same port; call this often."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process, self._restarts = None, self._restarts + 1
            pause = min(LONGEST_PAUSE, 0.25 * 2**self._restarts)
            self._start_at = time.monotonic() + pause
            self._say(
                f"the server of the center {how_it_ended(code)}. It is started again; workers elsewhere train on."
            )
        if self._process is None and self.url and time.monotonic() >= self._start_at:
            where = f"{self._link.listen.rpartition(':')[0]}:{self.url.rpartition(':')[2]}"
            self._begun(where, subprocess.DEVNULL)

    def kill(self) -> None:
        """End it at once."""
        self.url = ""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _begun(self, listen: str, stdout: int) -> subprocess.Popen[bytes]:
        options = json.dumps({"center": str(self._center), **self._link.serving(), "listen": listen})
        token = {"HOOKE_TOKEN": self._link.token() or ""}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command(["-P", "-m", "hooke.launch.server", options]),
                env={**os.environ, **token, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        return self._process

    @staticmethod
    def _first_word(process: subprocess.Popen[bytes]) -> dict[str, str]:
        """What it says first: where it listens, or why not; nothing where it ends, or hangs."""
        assert process.stdout is not None
        with process.stdout, selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(START_SECONDS) else b""
        return json.loads(line) if line else {}


def main(text: str) -> int:
    """Serve until the process is killed; the first line that it prints says where."""
    quiet()
    keep_memory()
    options = json.loads(text)
    from hooke.center import LocalCenter
    from hooke.remote import serve

    try:
        center = LocalCenter(options.pop("center"))
        server = serve(center, token=os.environ.get("HOOKE_TOKEN") or None, **options)
    except (ValueError, OSError, ImportError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    with server:
        print(json.dumps({"url": server.url}), flush=True)
        server.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
