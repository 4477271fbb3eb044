"""What a benchmark writes beside its numbers: where and from which commit they come."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import hooke

RESULTS = Path(__file__).parent / "results"

KEPT = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
"""What `hooke run` and `hooke center` tell glibc about free memory; for a benchmark's own processes, peers too."""


def facts() -> dict[str, Any]:
    """Machine, versions, commit and time."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),  # of the machine; a benchmark may have pinned its processes
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hooke": hooke.__version__,
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the code that runs, with `+changes` where the library or the benchmarks differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "../hooke", "*.py") else "")


def append(name: str, row: dict[str, Any]) -> None:
    """Add a row to `results/NAME.jsonl`."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**row, **facts()}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where it is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
