"""`run.json`: what was run, where, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hooke import evidence
from hooke.plan import Plan, read_description
from hooke.process import WorkerProcess, how_it_ended
from hooke.record import parse


class Description:
    """The description of one launch; it continues the one that a resumed run has.

    Args:
        plan: What is run.

    Attributes:
        seconds: How long the run had gone before.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._earlier = read_description(plan.files) if plan.resume else {}
        self._started_at = self._earlier.get("started_at", _now())
        self._evidence: dict[str, Any] = {}
        self.seconds = _seconds_so_far(plan, self._earlier) if plan.resume else 0.0

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

        self._evidence = self._evidence or _evidence(self._plan)
        about = {
            "name": self._plan.directory.absolute().name,
            "command": self._plan.command(resume=self._plan.resume),
            "started_at": self._started_at,
            "finished_at": None if exit_code is None else _now(),
            "elapsed_seconds": round(seconds, 3),
            "exit_code": exit_code,
            "workers": self._plan.workers,
            "workers_state": {str(worker.number): _state(worker) for worker in workers},
            "restarts": self._earlier.get("restarts", 0) + sum(worker.restarts for worker in workers),
            "resumed": self._earlier.get("resumed", 0) + 1 if self._plan.resume else 0,
            **self._evidence,
        }
        write_atomically(self._plan.files.description, (json.dumps(about, indent=2) + "\n").encode())


def _evidence(plan: Plan) -> dict[str, Any]:
    return {
        **evidence.commit(plan.script.absolute().parent),
        "versions": evidence.versions(),
        "device": evidence.device(),
        "settings": {
            "workers": plan.workers,
            "checkpoint_every": plan.checkpoint_every,
            "max_restarts": plan.max_restarts,
            "arguments": list(plan.arguments),
        },
    }


def _state(worker: WorkerProcess) -> str:
    if worker.going:
        return "running"
    return f"failed: it {how_it_ended(worker.exit_code)}" if worker.state == "failed" else worker.state


def _seconds_so_far(plan: Plan, earlier: dict[str, Any]) -> float:
    """Where the run stopped: where its launcher was killed, the newest row is newer than `run.json`."""
    seconds = [float(earlier.get("elapsed_seconds", 0.0))]
    for path in plan.files.all_rows():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            rows = [parse(line.decode(errors="replace")) for line in file.read().splitlines()]
        seconds += [row["t"] for row in rows if row is not None]
    return max(seconds)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
