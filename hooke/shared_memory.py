"""The file behind a `LocalCenter`, and the record locks around it. POSIX systems only.

Record locks (`fcntl`) belong to a process and are freed by the kernel when it dies, however it dies. They do not
exclude threads of one process, so a thread lock stands before them; and closing any descriptor of the lock file frees
all of the process's locks on it, so each process opens it once and never gives it away.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAX_WORKERS = 256

_MAGIC = b"hooke center 3\n"
_HEADER = np.dtype(
    [("magic", "S16"), ("numel", "<i8"), ("vectors", "<i8"), ("spec_bytes", "<i8"), ("vector_at", "<i8")]
)
_SLOT = np.dtype(
    [
        ("joined", "?"),
        ("finished", "?"),
        ("pid", "<i8"),
        ("heartbeat", "<f8"),
        ("step", "<i8"),
        ("loss", "<f8"),
        ("exchanges", "<i8"),
        ("refused", "<i8"),
        ("missed", "<i8"),
        ("exchanges_before", "<i8"),
        ("refused_before", "<i8"),
        ("missed_before", "<i8"),
    ],
    align=True,
)
COUNTS = ("exchanges", "refused", "missed")
"""Counts only grow, over all workers that have lived in a slot; `_before` says where the present one began."""

_PAGE = 4096


class SharedFile:
    """A center's file, mapped: header, one slot a worker (written by that worker alone), spec, vector, memory.

    Attributes:
        slots: The workers' slots, a structured array.
        spec: The text that `create` was given.
        vector: `Float32[n]`, the center.
        memory: The vectors beside it, as long as it; each begins on a page.

    Raises:
        ValueError: The file is something else.
    """

    def __init__(self, path: Path) -> None:
        numel, vectors, spec_bytes, vector_at = _read_header(path)
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        spec_at = _HEADER.itemsize + MAX_WORKERS * _SLOT.itemsize
        self.slots = np.frombuffer(memory, _SLOT, MAX_WORKERS, _HEADER.itemsize)
        self.spec = bytes(memory[spec_at : spec_at + spec_bytes]).decode()
        places = [vector_at + index * _stride(numel) for index in range(vectors)]
        mapped = [torch.from_numpy(np.frombuffer(memory, "<f4", numel, place)) for place in places]
        self.vector: Tensor = mapped[0]
        self.memory: tuple[Tensor, ...] = tuple(mapped[1:])

    @staticmethod
    def create(path: Path, vectors: Sequence[Tensor], spec: str) -> None:
        """Make the file, readable by this user only; it appears under its name only when it is complete."""
        text = spec.encode()
        end = _HEADER.itemsize + MAX_WORKERS * _SLOT.itemsize + len(text)
        vector_at, numel = _to_page(end), vectors[0].numel()
        header = np.zeros(1, _HEADER)
        header[0] = (_MAGIC, numel, len(vectors), len(text), vector_at)
        slots = np.zeros(MAX_WORKERS, _SLOT)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(beside, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600), "wb") as file:
                file.write((header.tobytes() + slots.tobytes() + text).ljust(vector_at, b"\0"))
                for index, vector in enumerate(vectors):
                    file.seek(vector_at + index * _stride(numel))
                    vector.numpy().tofile(file)
            beside.rename(path)
        except OSError as error:
            raise ValueError(
                f"LocalCenter: {path.parent} must have room for {_size(numel, len(vectors), vector_at):,} bytes. Got: "
                f"{error.strerror}. Make room (in a container: a larger /dev/shm), or give LocalCenter another path."
            ) from error
        finally:
            beside.unlink(missing_ok=True)


def _to_page(position: int) -> int:
    return -(-position // _PAGE) * _PAGE


def _stride(numel: int) -> int:
    """Bytes from one vector to the next."""
    return _to_page(4 * numel)


def _size(numel: int, vectors: int, vector_at: int) -> int:
    return vector_at + (vectors - 1) * _stride(numel) + 4 * numel


def _read_header(path: Path) -> tuple[int, int, int, int]:
    """Elements, vectors, bytes of the spec and where the first vector begins, of a whole center's file."""
    header = np.fromfile(path, _HEADER, 1)
    if len(header) and header["magic"][0] == _MAGIC:
        names = ("numel", "vectors", "spec_bytes", "vector_at")
        numel, vectors, spec_bytes, vector_at = (int(header[name][0]) for name in names)
        if path.stat().st_size == _size(numel, vectors, vector_at):
            return numel, vectors, spec_bytes, vector_at
    raise ValueError(
        f"LocalCenter: {path} must be a center's file. Got something else. Use another path, or remove it."
    )


_SLOTS_AT, _EVERYTHING_AT, _BLOCKS_AT = 0, MAX_WORKERS, MAX_WORKERS + 1
_ASKING_SECONDS = 1e-3  # whoever asks whether a slot is held has its lock for a moment


class Locks:
    """The record locks of one center, shared by all handles of this process.

    Byte k of the lock file is held by the worker in slot k for as long as it lives; one byte guards joining; one byte
    guards each block.

    Args:
        path: The lock file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _LockFile.open(path)
        self._is_closed = False

    @contextmanager
    def everything(self) -> Iterator[None]:
        """Held while the center is made or a slot is claimed; waits without end, since nobody holds it for long."""
        with self._file.threads:
            fcntl.lockf(self._file.descriptor, fcntl.LOCK_EX, 1, _EVERYTHING_AT)
            try:
                yield
            finally:
                fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN, 1, _EVERYTHING_AT)

    def take_block(self, index: int, seconds: float) -> bool:
        """Have one block to oneself, or `False` where it could not be had within `seconds`; `give_block` comes after.

        No context manager: this is the hot path, and two of them a block are measurable.
        """
        self._file.threads.acquire()
        if self._file.lock(_BLOCKS_AT + index, seconds):
            return True
        self._file.threads.release()
        return False

    def give_block(self, index: int) -> None:
        """Give a taken block back."""
        fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN, 1, _BLOCKS_AT + index)
        self._file.threads.release()

    def claim_slot(self, index: int) -> bool:
        """Take slot `index`, unless somebody lives in it."""
        if index in self._file.slots or not self._file.lock(_SLOTS_AT + index, _ASKING_SECONDS):
            return False
        self._file.slots.add(index)
        return True

    def release_slot(self, index: int) -> None:
        """Give slot `index` free."""
        self._file.slots.discard(index)
        fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN, 1, _SLOTS_AT + index)

    def slot_is_held(self, index: int) -> bool:
        """Whether the process that claimed slot `index` still runs."""
        with self._file.threads:  # to ask is to lock: another thread may be claiming this slot just now
            if index in self._file.slots:
                return True
            if not self._file.try_lock(_SLOTS_AT + index, fcntl.LOCK_SH):  # shared, so that two may ask at once
                return True
            fcntl.lockf(self._file.descriptor, fcntl.LOCK_UN, 1, _SLOTS_AT + index)
            return False

    def close(self) -> None:
        """Give the lock file back, once; the last handle of the process closes it."""
        if not self._is_closed:
            self._is_closed = True
            self._file.close()


class _LockFile:
    """This process's one descriptor of a lock file."""

    _opened: dict[tuple[int, int, int], _LockFile] = {}  # noqa: RUF012
    _guard = threading.Lock()

    def __init__(self, descriptor: int, key: tuple[int, int, int]) -> None:
        self.descriptor = descriptor
        self.threads = threading.RLock()
        self.slots: set[int] = set()
        self._key = key
        self._handles = 0

    @staticmethod
    def open(path: Path) -> _LockFile:
        """The one of this process for the file at `path`, by whatever name; a second descriptor would free its locks.

        A forked child holds none of its parent's locks: it opens its own.
        """
        with _LockFile._guard:
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            status = path.stat()
            key = (os.getpid(), status.st_dev, status.st_ino)
            if key not in _LockFile._opened:
                _LockFile._opened[key] = _LockFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), key)
            file = _LockFile._opened[key]
            file._handles += 1
            return file

    def close(self) -> None:
        with _LockFile._guard:
            self._handles -= 1
            if self._handles == 0:
                del _LockFile._opened[self._key]
                os.close(self.descriptor)

    def lock(self, byte: int, seconds: float) -> bool:
        if self.try_lock(byte):
            return True
        deadline = time.monotonic() + seconds
        pause = 2e-5
        while time.monotonic() < deadline:
            time.sleep(pause)
            if self.try_lock(byte):
                return True
            pause = min(2 * pause, 1e-3)
        return False

    def try_lock(self, byte: int, how: int = fcntl.LOCK_EX) -> bool:
        try:
            fcntl.lockf(self.descriptor, how | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        return True
