import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hooke.launch import folder
from hooke.launch.request import LaunchError

HOLD = """
import signal, sys, time
from pathlib import Path
from hooke.launch import folder
folder.memory_parent = lambda: Path(sys.argv[1])
with folder.memory_folder() as made:
    print(made, flush=True)
    signal.pause()
"""


def test_a_memory_folder_is_private_and_removed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "memory_parent", lambda: tmp_path)
    with pytest.raises(RuntimeError), folder.memory_folder() as made:
        assert made.stat().st_mode & 0o777 == 0o700
        (made / "center").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_only_what_dead_launchers_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "memory_parent", lambda: tmp_path)
    held = [subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)]
    dies, lives = (Path(os.fsdecode(process.stdout.readline()).strip()) for process in held)  # type: ignore[union-attr]
    stranger, link, target = tmp_path / "hooke-other", tmp_path / "hooke-run-link", tmp_path / "precious"
    for path in (stranger, target):
        path.mkdir()
    link.symlink_to(target)
    try:
        held[0].kill()
        held[0].communicate()
        assert dies.exists()
        with folder.memory_folder() as made:
            assert set(tmp_path.iterdir()) == {made, lives, stranger, link, target}
    finally:
        held[1].send_signal(signal.SIGTERM)
        held[1].communicate()


def test_a_run_directory_has_one_launcher(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    with folder.held(directory):
        assert (directory / "workers").is_dir()
        with pytest.raises(LaunchError, match="which one uses now"), folder.held(directory):
            raise AssertionError("held twice")
    with folder.held(directory):
        pass
