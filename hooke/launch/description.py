"""`run.json`: what was run, where, and how it ended."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hooke.launch import evidence
from hooke.launch.process import WorkerProcess, how_it_ended
from hooke.launch.request import Request, read_description
from hooke.record import parse


class Description:
    """The description of one launch; it continues the one that a resumed run has.

    Args:
        request: What is run.

    Attributes:
        id: No other run has it; a resumed run keeps it.
        seconds: How long the run had gone before.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._earlier = read_description(request.files) if request.resume else {}
        self._started_at = self._earlier.get("started_at", _now())
        self._evidence: dict[str, Any] = {}
        self.id = str(self._earlier.get("id") or secrets.token_hex(3))
        self.seconds = _seconds_so_far(request, self._earlier) if request.resume else 0.0

    def write(self, workers: Sequence[WorkerProcess], seconds: float, exit_code: int | None) -> None:
        """Replace the file.

        Args:
            workers: In whatever state they are.
            seconds: How long the run has gone.
            exit_code: `None` while it goes on.

        Raises:
            OSError: It can't be written.
        """
        from hooke.checkpoint import write_atomically

        self._evidence = self._evidence or _evidence(self._request)
        about = {
            "name": self._request.directory.absolute().name,
            "id": self.id,
            "command": self._request.command(resume=self._request.resume),
            "started_at": self._started_at,
            "finished_at": None if exit_code is None else _now(),
            "elapsed_seconds": round(seconds, 3),
            "exit_code": exit_code,
            "workers": self._request.workers,
            "workers_state": {str(worker.number): _state(worker) for worker in workers},
            "restarts": self._earlier.get("restarts", 0) + sum(worker.restarts for worker in workers),
            "resumed": self._earlier.get("resumed", 0) + 1 if self._request.resume else 0,
            **self._evidence,
        }
        write_atomically(self._request.files.description, (json.dumps(about, indent=2) + "\n").encode())


def _evidence(request: Request) -> dict[str, Any]:
    return {
        **evidence.commit(request.script.absolute().parent),
        "versions": evidence.versions(),
        "device": evidence.device(),
        "settings": {
            "workers": request.workers,
            "checkpoint_every": request.checkpoint_every,
            "max_restarts": request.max_restarts,
            "arguments": list(request.arguments),
        },
    }


def _state(worker: WorkerProcess) -> str:
    if worker.going:
        return "running"
    return f"failed: it {how_it_ended(worker.exit_code)}" if worker.state == "failed" else worker.state


def _seconds_so_far(request: Request, earlier: dict[str, Any]) -> float:
    """Where the run stopped: where its launcher was killed, the newest row is newer than `run.json`."""
    seconds = [float(earlier.get("elapsed_seconds", 0.0))]
    for path in request.files.all_rows():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            rows = [parse(line.decode(errors="replace")) for line in file.read().splitlines()]
        seconds += [row["t"] for row in rows if row is not None]
    return max(seconds)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
