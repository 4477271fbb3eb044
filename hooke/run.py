"""One run: its directory, and what `hooke run` tells the workers that it starts. No torch.

runs/NAME/
  run.json             command, versions, commit, device, seeds, settings
  center.safetensors   the newest checkpoint of the center
  workers/0.jsonl      the rows of worker 0 (`hooke.record`)
  workers/0.log        what worker 0 printed
  workers/0.safetensors  the newest checkpoint of worker 0, where its script saves one
  workers/0.rehearsal.json  what a rehearsal measured (`hooke plan SCRIPT`); only there
  workers/0.first_step  there too: it has taken a step
  report.html
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = "HOOKE_RUN"


FIRST_STEP = "first_step"
"""Ending of the empty file that says that a rehearsed worker trains."""


@dataclass(frozen=True)
class RunDirectory:
    """Where the files of one run lie.

    Example:
        >>> str(RunDirectory(Path("runs/a")).rows(0))
        'runs/a/workers/0.jsonl'
    """

    path: Path

    @property
    def description(self) -> Path:
        """`run.json`: what was run, and where."""
        return self.path / "run.json"

    @property
    def center(self) -> Path:
        """The newest checkpoint of the center."""
        return self.path / "center.safetensors"

    @property
    def report(self) -> Path:
        """The page that `hooke report` writes."""
        return self.path / "report.html"

    def rows(self, worker: int) -> Path:
        """The rows of one worker."""
        return self.path / "workers" / f"{worker}.jsonl"

    def log(self, worker: int) -> Path:
        """What one worker printed."""
        return self.path / "workers" / f"{worker}.log"

    def checkpoint(self, worker: int) -> Path:
        """The newest checkpoint of one worker."""
        return self.path / "workers" / f"{worker}.safetensors"

    def rehearsal(self, worker: int) -> Path:
        """What one worker measured in a rehearsal."""
        return self.path / "workers" / f"{worker}.rehearsal.json"

    def first_step(self, worker: int) -> Path:
        """Exists once one worker has taken a step in a rehearsal."""
        return self.path / "workers" / f"{worker}.{FIRST_STEP}"

    def all_rows(self) -> list[Path]:
        """The row files of every worker, in the order of their numbers."""
        return sorted((self.path / "workers").glob("*.jsonl"), key=lambda path: (len(path.stem), path.stem))


@dataclass(frozen=True)
class Run:
    """What a worker that `hooke run` started knows of its run; travels in one environment variable.

    Args:
        directory: The run directory.
        center: Path of the shared-memory center (`hooke.LocalCenter(path)`); empty where it lives elsewhere.
        worker: This worker's number, from 0.
        num_workers: How many workers `hooke run` started.
        started: `time.monotonic()` of this machine at which the run's seconds count from 0.
        checkpoint_every: Seconds between checkpoints.
        resume: Whether the run continues an earlier one.
        restarts: How often this worker's process has been started again after a crash.
        rehearses: Whether the script is only measured, for `hooke plan`, and stopped after some steps.
        curvature: Whether a rehearsal measures the curvature.
        name: What a center elsewhere calls this run's workers, before their numbers; no other run has it.
        is_shared: Whether workers of other machines use the center, too.
    """

    directory: str
    center: str
    worker: int
    num_workers: int
    started: float
    checkpoint_every: float = 30.0
    resume: bool = False
    restarts: int = 0
    rehearses: bool = False
    curvature: bool = True
    name: str = ""
    is_shared: bool = False

    @property
    def files(self) -> RunDirectory:
        """The files of the run."""
        return RunDirectory(Path(self.directory))

    @property
    def seconds(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self.started

    def environment(self) -> dict[str, str]:
        """The variable to start a worker with, so that `Run.current()` finds this in there."""
        return {_VARIABLE: json.dumps(dataclasses.asdict(self))}

    @staticmethod
    def current() -> Run | None:
        """The run that started this process, or `None` where `hooke run` did not."""
        text = os.environ.get(_VARIABLE)
        return Run(**json.loads(text)) if text else None
