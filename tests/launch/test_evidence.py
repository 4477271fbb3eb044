import os
import subprocess
from pathlib import Path

import pytest

from hooke.launch import evidence


def git(folder: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | names | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(
        ["git", "-C", str(folder), *words], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_commit_is_that_of_the_folder_and_says_whether_it_was_changed(tmp_path: Path) -> None:
    assert evidence.commit(tmp_path) == {}
    git(tmp_path, "init", "--quiet")
    (tmp_path / "train.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "new").touch()  # what a run writes is no change of the code
    assert evidence.commit(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "train.py").write_text("2")
    assert evidence.commit(tmp_path)["dirty"] is True


def test_what_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert evidence.commit(tmp_path) == {}
    assert evidence.device()["accelerators"] == []
    assert evidence.version("no-such-package-here") is None
