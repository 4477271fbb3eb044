"""Ctrl-C, SIGTERM and a closed terminal, as a wish that the main loop looks at."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the terminal was closed"}


class Stopping:
    """Whether somebody wants the program to end.

    Args:
        again: Called at the second signal, which wants it at once.

    Attributes:
        signal: Number of the first signal; 0 before it.
        hurry: Whether a second one came.
    """

    def __init__(self, again: Callable[[], None] = lambda: None) -> None:
        self.signal = 0
        self.hurry = False
        self._again = again

    @property
    def word(self) -> str:
        """What happened, for people."""
        return SIGNALS[signal.Signals(self.signal)]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Signals come here inside the block; one that is ignored (nohup) stays so. From the main thread only."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        try:
            for number in before:
                signal.signal(number, self._on_signal)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: object) -> None:
        self.hurry = bool(self.signal)
        self.signal = self.signal or number
        if self.hurry:
            self._again()
