"""The streams that a center has under way: how many, and which of them nobody goes on with."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hooke.remote.protocol import BUSY, wire_error

STALL_SECONDS = 120.0
"""A stream in which nothing moves for so long is cut: it holds memory, and a thread."""

MAX_STREAMS = 8
"""Streams of one worker at once; one that was cut may take a while until it has ended here."""


class Watched:
    """One end of a stream; says when something has moved.

    Args:
        end: Flight's reader or writer.
        moved: The time (`time.monotonic`) of the last move, in a list that both ends share.
    """

    def __init__(self, end: Any, moved: list[float]) -> None:
        self._end, self._moved = end, moved

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._end, name)

        def moving(*args: Any) -> Any:
            made = method(*args)
            self._moved[0] = time.monotonic()
            return made

        return moving


class Streams:
    """Counts the streams under way, and cuts those that have stalled.

    Args:
        most: Streams at once, at most, of all workers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._moved: dict[int, tuple[str, list[float]]] = {}
        self._of: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, whose: str, peer: str) -> Iterator[list[float]]:
        """A stream, while it is under way; what is yielded is for `Watched`.

        Raises:
            FlightServerError: There are too many.
        """
        moved = [time.monotonic()]
        with self._lock:
            if self._of[whose] >= MAX_STREAMS or len(self._moved) >= self._most:
                raise wire_error(
                    BUSY,
                    f"serve: at most {MAX_STREAMS} streams of a worker, and {self._most} of all, may be open. Got one "
                    "more. Let one end.",
                )
            self._of[whose] += 1
            self._moved[id(moved)] = (peer, moved)
        try:
            yield moved
        finally:
            with self._lock:
                self._of[whose] -= 1
                self._of += Counter()  # forgets whoever has none
                del self._moved[id(moved)]

    def stalled(self) -> list[str]:
        """Peers of the streams in which nothing moves."""
        before = time.monotonic() - STALL_SECONDS
        with self._lock:
            return [peer for peer, moved in self._moved.values() if moved[0] < before]


def cut(port: int, peer: str | None = None) -> None:
    """Cut the connections to `port` of this process, or the one of `peer` as Flight names it.

    Flight itself can't end a call whose other side says nothing more. What waits for such a connection fails at once.
    """
    for entry in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            own = os.dup(int(entry.name))  # Flight's stays open, and Flight's
            try:
                _cut_one(own, port, peer)
            finally:
                os.close(own)


def _cut_one(descriptor: int, port: int, peer: str | None) -> None:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return
    connection = socket.socket(fileno=descriptor)
    try:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            here, there = connection.getsockname(), connection.getpeername()
            if here[1] == port and (peer is None or _is(peer, there[0], there[1])):
                connection.shutdown(socket.SHUT_RDWR)
    finally:
        connection.detach()


def _is(peer: str, host: str, port: int) -> bool:
    return peer.endswith(f":{port}") and host.removeprefix("::ffff:") in peer
