"""A TCP proxy that breaks on purpose: cuts after so many bytes, goes silent, takes its time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress


class Proxy:
    """Stands between a worker and its center.

    Args:
        port: Where the center listens, on this machine.

    Attributes:
        url: What the worker connects to.
        bytes_up: Bytes toward the center.
        bytes_down: Bytes from it.
        is_silent: Whether connections stay open and nothing goes through (half-open, as after a pulled cable).
        is_down: Whether connections are closed as soon as they come.
        delay: Seconds before each piece is passed on.
        rewritten: What becomes of each piece toward the center.
    """

    def __init__(self, port: int, scheme: str = "grpc") -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.bytes_up = self.bytes_down = 0
        self.is_silent = self.is_down = False
        self.delay = 0.0
        self.rewritten: Callable[[bytes], bytes] = lambda piece: piece
        self._left: dict[str, int | None] = {"up": None, "down": None}
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        """Cut all connections, once, when so many bytes more have gone that way; `None`: never."""
        with self._lock:
            self._left = {"up": up, "down": down}

    def cut(self) -> None:
        """Cut all connections now; new ones are taken."""
        with self._lock:
            self._left = {"up": None, "down": None}
            cut, self._open = self._open, []
        for end in cut:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """Cut, and take no more."""
        self.is_down = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = None if self.is_down else socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                far = None
            if far is None:
                near.close()
                continue
            with self._lock:
                self._open += [near, far]
            for source, target, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._carry, args=(source, target, way), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                while self.is_silent:
                    time.sleep(0.01)
                time.sleep(self.delay)
                piece, is_over = self._allowed(self.rewritten(piece) if way == "up" else piece, way)
                target.sendall(piece)
                if is_over:
                    self.cut()
                    return
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _allowed(self, piece: bytes, way: str) -> tuple[bytes, bool]:
        """What of it may still go, and whether that is the last."""
        with self._lock:
            left = self._left[way]
            if left is not None:
                piece = piece[:left]
                self._left[way] = left - len(piece)
            if way == "up":
                self.bytes_up += len(piece)
            else:
                self.bytes_down += len(piece)
            return piece, left is not None and left == len(piece)
