"""Memory that the processes of a run keep. glibc gives a free MiB back to the kernel, and takes it anew page by page.

That is half of the processor's time of an exchange with a served center, whose blocks have a MiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

TRIM, MAP = 1 << 28, 1 << 25
"""Bytes at the heap's end that are kept; bytes from which on memory does not come from the heap (glibc's most)."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(TRIM), "MALLOC_MMAP_THRESHOLD_": str(MAP)}
"""For the environment of a process that starts; systems without glibc don't look at it."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """The same for this process, unless the user has said something else in its environment."""
    if "GLIBC_TUNABLES" in os.environ or MALLOC.keys() & os.environ.keys():
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, TRIM)
        library.mallopt(_M_MMAP_THRESHOLD, MAP)
