"""Folders that belong to one living launcher: its run directory, and its place in shared memory.

Both are held by a lock that the kernel frees when the launcher dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hooke.launch.request import LaunchError


@contextlib.contextmanager
def held(directory: Path, folders: tuple[str, ...] = ("workers",)) -> Iterator[None]:
    """Make the run directory, with `folders` in it, and keep other launchers out of it."""
    try:
        for folder in ("", *folders):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise LaunchError(f"--out must be a directory that can be written. Got: {error}. Choose another.") from None
    try:
        if not _locked(descriptor):
            raise LaunchError(
                f"--out must be a directory that no other `hooke run` or `hooke center` uses. Got {directory}, which "
                "one uses now. Stop it first, or choose another."
            )
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A fresh private folder in memory, removed at the end; those that killed launchers left are removed first.

    A living launcher holds a lock on its folder. The kernel frees it when the launcher dies, so what can be locked is
    left over; the folder gets the name that is searched for once it is locked.
    """
    parent = memory_parent()
    for left in parent.glob("hooke-run-*"):
        _sweep(left)
    made = Path(tempfile.mkdtemp(prefix=".hooke-run-", dir=parent))
    descriptor = os.open(made, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    folder = made.rename(parent / made.name.removeprefix("."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def memory_parent() -> Path:
    """Where folders in memory are made, on systems that have such a place."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _sweep(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and _locked(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Lock the folder, unless a living process has; a file system without locks (some NFS) counts as locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
