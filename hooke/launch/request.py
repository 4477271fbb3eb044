"""What `hooke run` was asked to do, checked before anything is started or written. No torch."""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooke.run import RunDirectory

if TYPE_CHECKING:
    from hooke.launch.link import Link

WORKERS = 2
"""The default number of workers: the same on every machine, because what is learned depends on it."""

RUNS = Path("runs")
"""Where run directories are made."""


class LaunchError(ValueError):
    """The user asked for what can't be done. The message is one sentence with the repair."""


@dataclass(frozen=True)
class Request:
    """What to run, and where it goes.

    Args:
        script: The user's script.
        arguments: Its arguments.
        workers: How many processes.
        directory: The run directory.
        resume: Whether the run there is continued.
        max_restarts: How often one worker is started again after a crash.
        checkpoint_every: Seconds between checkpoints of the center.
        link: Where others reach the center, or where it is; `None`: it stays on this machine.
    """

    script: Path
    arguments: tuple[str, ...]
    workers: int
    directory: Path
    resume: bool = False
    max_restarts: int = 3
    checkpoint_every: float = 30.0
    link: Link | None = None

    @property
    def joins(self) -> bool:
        """Whether the center is elsewhere."""
        return self.link is not None and bool(self.link.join)

    @property
    def files(self) -> RunDirectory:
        """The files of the run."""
        return RunDirectory(self.directory)

    def command(self, *, resume: bool) -> list[str]:
        """The command line that does this, or continues it."""
        options = ["--resume"] if resume else []
        options += ["--workers", str(self.workers), "--out", str(self.directory)]
        options += ["--max-restarts", str(self.max_restarts)] if self.max_restarts != Request.max_restarts else []
        if self.checkpoint_every != Request.checkpoint_every:
            options += ["--checkpoint-every", f"{self.checkpoint_every:g}"]
        options += self.link.words() if self.link is not None else []
        return ["hooke", "run", *options, str(self.script), *self.arguments]

    def resume_line(self) -> str:
        """The command that continues the run, to be pasted into a shell."""
        return shlex.join(self.command(resume=True))


def make_request(
    script: str | Path,
    arguments: Sequence[str] = (),
    *,
    workers: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    max_restarts: int = Request.max_restarts,
    checkpoint_every: float = Request.checkpoint_every,
    link: Link | None = None,
) -> Request:
    """Check what was asked and fill in what was not.

    Args:
        script: The user's script.
        arguments: Its arguments.
        workers: How many processes. Default: as many as the run that is resumed had, else `WORKERS`.
        out: The run directory. Default: `runs/SCRIPT-DATE-TIME`, or with `resume` the newest of this script there.
        resume: Continue an interrupted run.
        max_restarts: How often one worker is started again after a crash.
        checkpoint_every: Seconds between checkpoints of the center.
        link: Where others reach the center, or where it is.

    Raises:
        LaunchError: Something can't be done.
    """
    script = Path(script)
    check_script(script)
    joins = link is not None and bool(link.join)
    directory = _resumable(script, out, joins) if resume else _fresh(script, out)
    if workers is None:
        workers = int(read_description(RunDirectory(directory)).get("workers", WORKERS)) if resume else WORKERS
    if workers < 1:
        raise LaunchError(f"--workers must be 1 or more. Got {workers}. Use e.g. --workers {WORKERS}.")
    if max_restarts < 0:
        raise LaunchError(f"--max-restarts must be 0 or more. Got {max_restarts}. Use 0 to never start a worker again.")
    check_seconds("--checkpoint-every", checkpoint_every)
    return Request(script, tuple(arguments), workers, directory, resume, max_restarts, checkpoint_every, link)


def check_seconds(option: str, seconds: float) -> None:
    """Refuse a time that is none.

    Raises:
        LaunchError: That.
    """
    if not 0 < seconds < math.inf:
        raise LaunchError(f"{option} must be above 0 seconds. Got {seconds:g}. Use e.g. 30.")


def read_description(files: RunDirectory) -> dict[str, Any]:
    """What `run.json` of a run says.

    Raises:
        LaunchError: It is missing or damaged.
    """
    try:
        return dict(json.loads(files.description.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LaunchError(
            f"--resume needs a readable {files.description}. Got: {error}. Point --out to another run, "
            "or start anew without --resume."
        ) from None


def check_script(script: Path) -> None:
    """Refuse what is no file.

    Raises:
        LaunchError: It is not there, or is a directory.
    """
    if script.is_file():
        return
    what = "a directory" if script.is_dir() else "no such file"
    near = [path.name for path in script.parent.glob("*.py")] if script.parent.is_dir() else []
    match = difflib.get_close_matches(script.name, near, n=1)
    repair = f"Did you mean {script.with_name(match[0])}?" if match else "Give the path of your training script."
    raise LaunchError(f"SCRIPT must be a Python file. Got {script}: {what}. {repair}")


def _fresh(script: Path, out: str | Path | None) -> Path:
    """A directory that holds nothing yet, or only the words of a script that could not start."""
    if out is None:
        return new_directory(script.stem)
    directory = Path(out)
    if directory.exists() and not directory.is_dir():
        raise LaunchError(f"--out must be a directory. Got {directory}, which is a file. Choose another name.")
    if any(path.is_file() and path.name != "run.json" and path.suffix != ".log" for path in directory.rglob("*")):
        raise LaunchError(
            f"--out must be a new or empty directory. Got {directory}, which holds files already. "
            "Choose another name, or add --resume to continue the run there."
        )
    return directory


def new_directory(name: str) -> Path:
    """A path under `runs/` that nothing has yet."""
    name = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    paths = [RUNS / name, *(RUNS / f"{name}-{count}" for count in range(2, 100))]
    return next(path for path in paths if not path.exists())


def _resumable(script: Path, out: str | Path | None, joins: bool) -> Path:
    """A directory with a checkpoint of the center; of a run that joined a center elsewhere, with its description."""
    if joins:
        return _joined_before(script, out)
    if out is not None:
        if RunDirectory(Path(out)).center.is_file():
            return Path(out)
        raise LaunchError(
            f"--resume needs a checkpoint of the center. Got {out}, which has no center.safetensors. "
            "Point --out to another run, or start anew without --resume."
        )
    runs = [path for path in _runs_of(script) if RunDirectory(path).center.is_file()]
    if not runs:
        raise LaunchError(
            f"--resume needs an earlier run. Got none of {script.name} with a checkpoint under {RUNS}/. "
            "Name its directory with --out DIR, or start anew without --resume."
        )
    return max(runs, key=lambda path: RunDirectory(path).center.stat().st_mtime)


def _joined_before(script: Path, out: str | Path | None) -> Path:
    runs = _runs_of(script) if out is None else [Path(out)]
    runs = [path for path in runs if RunDirectory(path).description.is_file()]
    if not runs:
        where = f"of {script.name} under {RUNS}/" if out is None else f"in {out}"
        raise LaunchError(
            f"--resume needs an earlier run. Got none {where}. "
            "Name its directory with --out DIR, or start anew without --resume."
        )
    return max(runs, key=lambda path: RunDirectory(path).description.stat().st_mtime)


def _runs_of(script: Path) -> list[Path]:
    """The directories that were made for a script."""
    named = re.compile(re.escape(script.stem) + r"-\d{8}-\d{6}(-\d+)?")
    return [path for path in RUNS.glob("*") if named.fullmatch(path.name)]
