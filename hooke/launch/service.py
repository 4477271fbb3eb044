"""`hooke center`: a center that is served, saved and restored, and does not train."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooke.launch.display import put
from hooke.launch.folder import held, memory_folder
from hooke.launch.link import Link, quiet
from hooke.launch.memory import keep_memory
from hooke.launch.request import LaunchError, check_seconds, new_directory
from hooke.launch.stopping import Stopping
from hooke.run import RunDirectory

if TYPE_CHECKING:
    from hooke.center import LocalCenter

LOOK_SECONDS = 0.5
"""How often it looks who came and went."""


def serve_center(link: Link, *, out: str | Path | None = None, checkpoint_every: float = 30.0) -> int:
    """Serve a center until Ctrl-C or SIGTERM; what `hooke center` does. Call it from the main thread.

    Args:
        link: Where it listens, and who may come.
        out: Where it is saved, and restored from. Default: `runs/center-DATE-TIME`.
        checkpoint_every: Seconds between checkpoints.

    Returns:
        0, or 1 if the center could not be saved at the end.

    Raises:
        LaunchError: Something can't be done; nothing was started.
    """
    check_seconds("--checkpoint-every", checkpoint_every)
    directory = new_directory("center") if out is None else Path(out)
    stopping = Stopping()
    with stopping.watched(), held(directory, folders=()), memory_folder() as memory:
        quiet()
        keep_memory()
        from hooke.center import LocalCenter

        center = LocalCenter(memory / "center")
        try:
            return _Service(center, directory, link, checkpoint_every, stopping).run()
        finally:
            center.close()


class _Service:
    """One center that is served, from its checkpoint to its checkpoint."""

    def __init__(
        self, center: LocalCenter, directory: Path, link: Link, checkpoint_every: float, stopping: Stopping
    ) -> None:
        self._center, self._link, self._every, self._stopping = center, link, checkpoint_every, stopping
        self._directory, self._file = directory, RunDirectory(directory).center
        self._saved_at, self._saved = time.monotonic(), -1
        self._failed = False
        self._names: dict[str, bool] = {}

    def run(self) -> int:
        """Serve until somebody wants it to end."""
        from hooke.remote import serve

        restored = self._restore()
        try:
            server = serve(self._center, token=self._link.token(), **self._link.serving())
        except (ValueError, OSError) as error:
            raise LaunchError(str(error)) from None
        with server:
            url = self._link.advertised(server.url)
            _say(f"the center listens at {url}; it is saved in {self._directory}{restored}")
            _say(f"start workers with:  {self._link.invitation(url)}")
            while not self._stopping.signal:
                self._tell_who_is_there(server.status())
                if time.monotonic() - self._saved_at >= self._every:
                    self._save()
                time.sleep(LOOK_SECONDS)
            _say(f"{self._stopping.word}: saving the center")
            self._save()
        if not self._stopping.hurry:
            self._save()  # what came while the last links closed
        if self._file.exists():
            _say(f"the center is in {self._file}; the same --out goes on with it")
        return 1 if self._failed else 0

    def _restore(self) -> str:
        """Take the center from its checkpoint, where there is one; words for what was done."""
        if not self._file.is_file():
            return ""
        try:
            self._center.load(self._file)
        except ValueError as error:
            raise LaunchError(f"{error} It was given as --out {self._directory}.") from None
        return ", and goes on with what was saved there"

    def _save(self) -> None:
        """Write a checkpoint, if anything has changed; a full disk must not end a training."""
        self._saved_at = time.monotonic()
        if not self._center.ready or self._saved == (exchanges := self._center.exchanges):
            return
        try:
            self._center.save(self._file)
        except OSError as error:
            self._failed = True
            _say(f"{self._directory} could not be written: {error}. Make room there; the center goes on.")
        else:
            self._saved, self._failed = exchanges, False

    def _tell_who_is_there(self, status: dict[str, Any]) -> None:
        """One line where a worker has come, has gone, or is silent."""
        now = {worker["name"]: worker["alive"] for worker in status["workers"]}
        if now == self._names:
            return
        count = f"{status['num_workers']} live"
        for name in sorted(now.keys() | self._names.keys()):
            if now.get(name) and not self._names.get(name):
                _say(f"worker {name} is there ({count})")
            elif name in now and not now[name] and self._names.get(name, True):
                _say(f"worker {name} is silent ({count})")
            elif name not in now:
                _say(f"worker {name} is gone ({count})")
        self._names = now


def _say(sentence: str) -> None:
    put(2, f"hooke: {sentence}\n")
