"""Where a person reads what `hooke run` does: a live table on a terminal, lines every ten seconds elsewhere.

The workers' own lines go where they sent them, stdout or stderr; everything that is hooke's goes to stderr.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hooke.launch.progress import COLUMNS, Line

PLAIN_SECONDS = 10.0
"""How often the plain lines come."""


class Display(Protocol):
    """Where a person reads."""

    def show(self, lines: Sequence[Line]) -> None:
        """The newest numbers; may be called often."""
        ...

    def worker_said(self, worker: int, lines: list[str], error: bool) -> None:
        """Lines that a worker printed; called from other threads, never raises."""
        ...

    def say(self, sentence: str) -> None:
        """A sentence of hooke's own."""
        ...

    def close(self) -> None:
        """The last numbers stay."""
        ...


def display() -> Display:
    """A live display if stderr is a terminal, plain lines otherwise."""
    alive = os.isatty(2) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LiveDisplay() if alive else PlainDisplay()


class PlainDisplay:
    """Lines, for files and pipes."""

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._newest: Sequence[Line] = ()

    def show(self, lines: Sequence[Line]) -> None:
        """Print the numbers, if the last time was `PLAIN_SECONDS` ago."""
        self._newest = lines
        if time.monotonic() - self._shown >= PLAIN_SECONDS:
            self._print()

    def _print(self) -> None:
        self._shown = time.monotonic()
        put(2, "".join(f"hooke: {plain(line)}\n" for line in self._newest))

    def worker_said(self, worker: int, lines: list[str], error: bool) -> None:
        """Pass on what a worker printed, each line with its number."""
        put(2 if error else 1, "".join(f"[{worker}] {line}\n" for line in lines))

    def say(self, sentence: str) -> None:
        """Print a sentence of hooke's own."""
        put(2, f"hooke: {sentence}\n")

    def close(self) -> None:
        """Print the last numbers, once."""
        self._print()
        self._newest = ()


def plain(line: Line) -> str:
    """A line in words.

    Example:
        >>> from hooke.launch.progress import Meter
        >>> plain(Line("worker 0", "training", Meter(steps=1200, loss=0.25)))
        'worker 0 training, step 1,200, loss 0.25, waited 0.0 s'
    """
    parts = [f"{name} {cell}".strip() for name, cell in zip(COLUMNS[2:], line.cells()[2:], strict=True) if cell != "-"]
    return ", ".join([f"{line.who} {line.state}", *(part for part in parts if part)])


class LiveDisplay:
    """A table that is drawn again in place, with the workers' lines above it."""

    def __init__(self) -> None:
        self._console = Console(file=_Terminal(), force_terminal=True)  # type: ignore[arg-type]
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        self._shown = 0.0
        self._newest: Sequence[Line] = ()

    def show(self, lines: Sequence[Line]) -> None:
        """Draw the table, at most twice a second."""
        self._newest = lines
        if time.monotonic() - self._shown >= 0.5:
            self._draw()

    def _draw(self) -> None:
        self._shown = time.monotonic()
        if self._newest:
            self._live.update(table(self._newest), refresh=True)

    def worker_said(self, worker: int, lines: list[str], error: bool) -> None:
        """Print what a worker printed above the table, or where stdout goes if that is no terminal."""
        if error or os.isatty(1):
            text = Text("\n").join(Text.assemble((f"[{worker}] ", "cyan"), Text.from_ansi(line)) for line in lines)
            self._console.print(text, soft_wrap=True)
        else:
            put(1, "".join(f"[{worker}] {line}\n" for line in lines))

    def say(self, sentence: str) -> None:
        """Print a sentence of hooke's own above the table."""
        self._console.print(Text.assemble(("hooke: ", "bold"), sentence), soft_wrap=True)

    def close(self) -> None:
        """Draw the table once more and leave it there."""
        self._draw()
        self._newest = ()
        self._live.stop()


def table(lines: Sequence[Line]) -> Table:
    """The lines as a table for a terminal."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, name in enumerate(COLUMNS):
        grid.add_column(name, justify="right" if 2 <= index < 7 else "left", no_wrap=index != 7)
    for line in lines:
        grid.add_row(*line.cells(), style=_STYLES.get(line.state.split()[0]))
    return grid


_STYLES = {"failed": "red", "restarting": "yellow", "finished": "green"}

_writing = threading.Lock()


def put(descriptor: int, text: str) -> None:
    """Write all of `text`, or as much as there is somebody to read: nobody listening must not stop a training."""
    data = text.encode(errors="replace")
    with _writing, contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


class _Terminal(io.TextIOBase):
    """Stderr for rich: a terminal that has gone away swallows what is written."""

    def write(self, text: str, /) -> int:
        put(2, text)
        return len(text)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2
