"""Finds the papers of a folder, and judges one from its record."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from hooke.claim import Claim, Picture, Source
from hooke.report import JudgedPaper
from papers.error import PapersError
from papers.trial import Trials, recorded

HERE = Path(__file__).parent
KEY = re.compile(r"[a-z]+\d{4}[a-z]+")
"""A citation key: first author, year, first word. A module that is named so is a paper."""


class Paper(Protocol):
    """What the module of a paper defines; `PICTURES`, a tuple of `Picture`, and `TABLES` may be left out.

    `TABLES` maps a name to a function from the recorded trials to Markdown, which stands in the documents between
    `<!-- KEY NAME -->` and `<!-- /KEY NAME -->`.
    """

    SOURCE: Source
    DEPARTURES: tuple[str, ...]
    FULL: Mapping[str, Any]
    SMOKE: Mapping[str, Any]
    run: Callable[[Mapping[str, Any], Trials], None]
    claims: tuple[Claim, ...]


def keys(folder: Path = HERE) -> list[str]:
    """The papers of a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.py") if KEY.fullmatch(path.stem))


def load(key: str, folder: Path = HERE) -> Paper:
    """The module of a paper, imported by a name under which other processes find it, too.

    Raises:
        PapersError: There is no such paper, a package that it needs is not installed, or it lacks a part.
    """
    if key not in keys(folder):
        known = ", ".join(keys(folder)) or "none"
        raise PapersError(f"KEY must name a paper. Got {key!r}. There is: {known}.")
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    try:
        module = import_module(f"{folder.name}.{key}")
    except ModuleNotFoundError as error:
        raise PapersError(
            f'{key}: what it imports must be installed. Got: {error}. Run pip install "hooke[papers]".'
        ) from error
    lacks = [name for name in Paper.__annotations__ if not hasattr(module, name)]
    if lacks:
        raise PapersError(
            f"{key}: a paper must define {', '.join(Paper.__annotations__)}. Got no {lacks[0]}. Define it."
        )
    return cast(Paper, module)


def judge(key: str, paper: Paper, record: Path) -> JudgedPaper:
    """The paper with its verdicts, from its record alone; every claim is `not judged` where there is none.

    Args:
        key: Its citation key.
        paper: Its module.
        record: The JSONL file of its trials.
    """
    table = recorded(record)
    smoke = any(row["made"].get("smoke") for row in table)
    return JudgedPaper(
        key=key,
        source=paper.SOURCE,
        claims=tuple((claim, claim.judge(table, smoke=smoke)) for claim in paper.claims),
        table=table,
        departures=tuple(paper.DEPARTURES),
        pictures=tuple[Picture, ...](getattr(paper, "PICTURES", ())),
        smoke=smoke,
        command=f"python -m papers {key}{' --smoke' if smoke else ''}",
    )
