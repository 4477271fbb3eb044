"""A run directory read into plain numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hooke.record import read
from hooke.report.alert import find_alerts
from hooke.report.data import RunData, Series, column, examples_by, group, mend, summarize
from hooke.report.words import Who, place
from hooke.run import RunDirectory


def read_run(directory: str | Path) -> RunData:
    """Read a run directory: `run.json` and `workers/*.jsonl`.

    Raises:
        FileNotFoundError: There is no such directory, or no `run.json` in it.
        ValueError: `run.json` is no JSON object, or no worker left a row.
    """
    files = RunDirectory(Path(directory))
    about = _about(files)
    groups = group(row for path in files.all_rows() for row in mend(list(read(path))))
    if not groups:
        raise ValueError(
            f"write_report: {files.path}/workers/*.jsonl must hold rows. Got none. "
            "Let the run take a few steps first, or write rows with worker.record(...)."
        )
    numbers = {int(path.stem) if path.stem.isdigit() else path.stem for path in files.all_rows()}
    numbers |= {who for who, _ in groups if who != "center"}
    workers = tuple(summarize(groups, who) for who in sorted(numbers, key=place))
    curves: dict[str, dict[Who, Series]] = {}
    for who, name in sorted(groups, key=lambda key: place(key[0])):
        seconds, steps, values = (column(groups, who, name, field) for field in ("t", "taken", "value"))
        curves.setdefault(name, {})[who] = Series(seconds, steps, examples_by(groups, seconds), values)
    name = str(about.get("name") or files.path.resolve().name)
    return RunData(name, about, workers, curves, tuple(find_alerts(about, groups, workers)))


def _about(files: RunDirectory) -> dict[str, Any]:
    try:
        about = json.loads(files.description.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise FileNotFoundError(
            f"write_report: a run directory must hold run.json. Got {files.description}: {error.strerror}. "
            "Give the directory that `hooke run` printed, e.g. runs/NAME."
        ) from error
    except ValueError as error:
        about = f"{error}"
    if isinstance(about, dict):
        return about
    raise ValueError(
        f"write_report: {files.description} must hold one JSON object. Got: {about}. "
        "Repair the file, or put {} into it: every key is optional."
    )
