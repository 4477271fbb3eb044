"""Fewer wake-ups: by itself gRPC wakes for every packet, which over a slow link costs more than all arithmetic."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "GRPC_EXPERIMENTS"
_WAIT_FOR_FRAMES = "tcp_frame_size_tuning,tcp_rcv_lowat"  # the first knows how much is to come, the second waits for it
_LOCK = threading.Lock()


@contextmanager
def few_wakeups() -> Iterator[None]:
    """gRPC, if it starts within, sleeps until a good part of a frame has arrived.

    It looks into the environment once, when the process makes its first client or server; unless the user has put
    something there, it finds the two settings, which are gone afterwards.
    """
    with _LOCK:
        if _NAME in os.environ:
            yield
            return
        os.environ[_NAME] = _WAIT_FOR_FRAMES
        try:
            yield
        finally:
            del os.environ[_NAME]
