"""What a run says about itself beside its numbers: commit, versions, device. No torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def version(package: str) -> str | None:
    """The installed version of `package`, read without importing it; `None` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of what the numbers of a run depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("hooke", "torch", "numpy")}


def commit(folder: str | Path) -> dict[str, Any]:
    """`{"commit": hash, "dirty": whether tracked files were changed}` of the repository around `folder`, or `{}`."""
    head = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if not head:
        return {}
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": bool(changed)}


def device() -> dict[str, Any]:
    """The machine: system, processor, cores this process may use, accelerators.

    Accelerators are asked for by `nvidia-smi`: `torch.cuda` would claim some of their memory for the asking process.
    """
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "accelerators": names.splitlines(),
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _output(*command: str) -> str | None:
    """What a command prints, or `None` where it is not there, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
