"""How far a study is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

EVERY = 20.0
"""Seconds between two lines where there is no terminal."""


def say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: no markup, no colored numbers, no broken lines."""
    console.print(Text(text), style=style or None, soft_wrap=True)


class StudyProgress:
    """Shows how many trials of a study are done and about how long the others take.

    Args:
        name: The study.
        total: Its trials.
        seconds: What the trials that are done already took, each.
        jobs: How many run at once.
        console: Where to show it.
    """

    def __init__(self, name: str, total: int, seconds: Iterable[float], jobs: int, console: Console) -> None:
        self.name, self.total, self.jobs, self.console = name, total, jobs, console
        self._seconds = list(seconds)
        self._said, self._said_done = -math.inf, -1
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=console) if console.is_terminal else None
        self._task = self._bar.add_task(name, total=total, left=self.left) if self._bar else None

    @property
    def done(self) -> int:
        """Trials that are done, earlier ones included."""
        return len(self._seconds)

    @property
    def left(self) -> str:
        """How long the trials that are left will take, by the mean of those that are done."""
        if self.done == self.total:
            return "done"
        if not self.done:
            return "time left not known yet"
        mean = sum(self._seconds) / self.done
        return f"about {timedelta(seconds=round(mean * (self.total - self.done) / max(self.jobs, 1)))} left"

    def advance(self, seconds: float) -> None:
        """One more is done, in `seconds`."""
        self._seconds.append(seconds)
        self._show()

    def _show(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, left=self.left)
        elif time.monotonic() - self._said >= EVERY:
            self._line()

    def _line(self) -> None:
        self._said, self._said_done = time.monotonic(), self.done
        say(self.console, f"{self.name}: {self.done} of {self.total} trials, {self.left}")

    def __enter__(self) -> StudyProgress:
        if self._bar is not None:
            self._bar.start()
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._show()
            self._bar.stop()
        elif self.done != self._said_done:
            self._line()
