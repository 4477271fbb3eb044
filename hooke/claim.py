"""A sentence of a paper, and the function of recorded trials that judges it. No torch: a record is enough.

A trial is one row of a JSONL file, readable without hooke:
`{"study": ..., "settings": {...}, "result": {...}, "made": {...}}`. `settings` went into the trial, `result` came out,
`made` says where and from which commit. A `Claim` reads a `Table` of such rows and returns a `Verdict`, which puts the
paper's number beside ours. A claim that fails stays where it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

Row = dict[str, Any]

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_JUDGED = "not judged"
WORDS = (REPRODUCED, NOT_REPRODUCED, NOT_JUDGED)
"""Every word that a verdict may have. `not judged`: too little was computed to say."""


SMOKE_NOTE = "A smoke run shows that everything runs; it is too small to judge."


class Missing(Exception):
    """A record does not hold what a claim or a picture needs: the claim is then not judged, the picture left out."""


@dataclass(frozen=True)
class Source:
    """The paper that is judged.

    Args:
        title: Its title.
        authors: Its authors, as they should be printed.
        year: When it was published.
        url: Where it can be read.
        summary: One sentence on what it says.

    Example:
        >>> Source("On springs", "R. Hooke", 1678, "https://example.org", "Extension is as the force.").year
        1678
    """

    title: str
    authors: str
    year: int
    url: str
    summary: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the numbers say about a claim.

    Args:
        word: `"reproduced"`, `"not reproduced"` or `"not judged"`.
        ours: Our number, as it should be printed.
        paper: The paper's number, likewise; "" where it gives none.
        interval: Its 95 % confidence interval in the same unit, (low, high); `None` where there is none.
        seeds: How many seeds our number comes from; 0 where nothing is random.
        note: One sentence that a reader needs besides.

    Raises:
        ValueError: `word` is none of the three.

    Example:
        >>> Verdict(REPRODUCED, ours="0.98", paper="0.97", interval=(0.96, 0.99), seeds=5).word
        'reproduced'
    """

    word: str
    ours: str
    paper: str = ""
    interval: tuple[float, float] | None = None
    seeds: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if self.word not in WORDS:
            raise ValueError(f"Verdict: word must be one of {', '.join(map(repr, WORDS))}. Got {self.word!r}. Use one.")


@dataclass(frozen=True)
class Claim:
    """What a paper says, where it says it, and how trials decide whether that holds.

    Declare it before the run: `holds` is part of what is claimed.

    Args:
        sentence: The claim in words.
        where: Its place in the paper, e.g. `"section 3, table 2"`.
        holds: From the recorded trials to a verdict.
        paper: The paper's number, as it should be printed; a verdict may bring its own.
        condition: When the claim counts as reproduced, in words that follow "Reproduced if".

    Example:
        >>> table = Table([{"study": "spring", "settings": {"force": 2.0}, "result": {"length": 4.0}, "made": {}}])
        >>> claim = Claim("Twice the force, length 4.", "p. 1", lambda t: within(t.one("length"), 4.0, 0.1))
        >>> claim.judge(table).word
        'reproduced'
    """

    sentence: str
    where: str
    holds: Callable[[Table], Verdict]
    paper: str = ""
    condition: str = ""

    def judge(self, table: Table, *, smoke: bool = False) -> Verdict:
        """The verdict on `table`; `not judged` with a sentence where trials are missing.

        Args:
            table: The recorded trials.
            smoke: Whether they come from a smoke run, which keeps its numbers but is never judged.
        """
        try:
            verdict = self.holds(table)
        except Missing as error:
            return Verdict(NOT_JUDGED, "", self.paper, note=f"{error}")
        verdict = replace(verdict, paper=verdict.paper or self.paper)
        return replace(verdict, word=NOT_JUDGED, note=SMOKE_NOTE) if smoke else verdict


@dataclass(frozen=True)
class Picture:
    """A picture of recorded trials.

    Args:
        title: What is seen, as a sentence.
        caption: What must be known to read it.
        draw: Draws the table on a `matplotlib.figure.Figure`; may raise `Missing`, then the picture is left out.
    """

    title: str
    caption: str
    draw: Callable[[Table, Any], None]


class Table(Sequence[Row]):
    """Recorded trials, immutable.

    A name is looked up as `"study"`, then among a row's settings, then in its result.

    Args:
        rows: Trials, each `{"study": ..., "settings": {...}, "result": {...}, "made": {...}}`.
        chosen: How the rows were chosen, in words; errors repeat it.

    Example:
        >>> rows = [{"study": "s", "settings": {"seed": i}, "result": {"loss": i / 2}, "made": {}} for i in range(3)]
        >>> Table(rows).where(seed=lambda seed: seed > 0).column("loss")
        [0.5, 1.0]
    """

    def __init__(self, rows: Sequence[Row] = (), chosen: str = "") -> None:
        self._rows = tuple(rows)
        self._chosen = chosen

    @classmethod
    def read(cls, path: str | Path) -> Table:
        """The trials of a JSONL file; of several with the same study and settings the last counts.

        A line that a killed writer cut is skipped. `"nan"`, `"inf"` and `"-inf"` in a result are numbers again.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A line is JSON but no trial.
        """
        rows: dict[str, Row] = {}
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                row = _parse(line, f"{path}, line {number}")
                if row is not None:
                    rows[identity(row["study"], row["settings"])] = row
        return cls(tuple(rows.values()))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> Row | Table:
        return Table(self._rows[index], self._chosen) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"Table of {len(self)} trials{self._chosen and f' where {self._chosen}'}"

    def where(self, **equal: Any) -> Table:
        """The rows in which every name has its value; a function of the value decides by itself.

        A row that does not have the name is left out. Empty where nothing matches.

        Example:
            >>> rows = [{"study": name, "settings": {}, "result": {}, "made": {}} for name in ("a", "b", "a")]
            >>> len(Table(rows).where(study="a"))
            2
        """
        wanted = {name: value if callable(value) else _plain(value) for name, value in equal.items()}
        rows = [row for row in self._rows if all(_matches(_look_up(row, n), v) for n, v in wanted.items())]
        said = (f"{name} as chosen" if callable(value) else f"{name}={value!r}" for name, value in equal.items())
        return self._part(rows, said)

    def column(self, name: str) -> list[Any]:
        """The values of one name, in the order of the rows.

        Raises:
            Missing: There is no row, or one does not have the name.
        """
        self._need_rows()
        values = [_look_up(row, name) for row in self._rows]
        if any(value is _ABSENT for value in values):
            raise Missing(f"No {name} in the record{self._about()}.")
        return values

    def one(self, name: str) -> Any:
        """The value of one name in the only row.

        Raises:
            Missing: There is no row, or it does not have the name.
            ValueError: There are several rows.
        """
        values = self.column(name)
        if len(values) > 1:
            raise ValueError(
                f"Table.one: exactly one trial must match. Got {len(values)}{self._about()}. "
                "Narrow it with where(...), or take column(...)."
            )
        return values[0]

    def groups(self, *names: str) -> dict[tuple[Any, ...], Table]:
        """The rows by the values of some names, in the order of first appearance; lists become tuples in the keys.

        Raises:
            Missing: There is no row, or one does not have a name.

        Example:
            >>> rows = [{"study": "s", "settings": {"depth": d}, "result": {}, "made": {}} for d in (8, 16, 8)]
            >>> {key: len(table) for key, table in Table(rows).groups("depth").items()}
            {(8,): 2, (16,): 1}
        """
        keys = zip(*(map(_frozen, self.column(name)) for name in names), strict=True)
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for key, row in zip(keys, self._rows, strict=True):
            groups.setdefault(key, []).append(row)
        said = {key: [f"{name}={value!r}" for name, value in zip(names, key, strict=True)] for key in groups}
        return {key: self._part(rows, said[key]) for key, rows in groups.items()}

    def _part(self, rows: Sequence[Row], said: Iterable[str]) -> Table:
        return Table(rows, ", ".join([*([self._chosen] if self._chosen else []), *said]))

    def _need_rows(self) -> None:
        if not self._rows:
            raise Missing(f"No trial in the record{self._about()}.")

    def _about(self) -> str:
        return f" where {self._chosen}" if self._chosen else ""


_ABSENT = object()


def _look_up(row: Row, name: str) -> Any:
    if name == "study":
        return row["study"]
    return row["settings"].get(name, row["result"].get(name, _ABSENT))


def _matches(value: Any, wanted: Any) -> bool:
    if value is _ABSENT:
        return False
    return bool(wanted(value)) if callable(wanted) else value == wanted


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """As JSON would give it back: tuples are lists."""
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _parse(line: str, place: str) -> Row | None:
    """The trial in `line`; `None` where the line is empty or cut."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("study"), str)
    if not whole or not all(isinstance(row.get(part), dict) for part in ("settings", "result")):
        raise ValueError(
            f"Table.read: a line must hold study, settings and result. Got {line.strip()[:80]!r} at {place}. "
            "Remove the line, and the trial is run again."
        )
    return {**row, "result": _numbers(row["result"]), "made": row.get("made", {})}


def _numbers(value: Any) -> Any:
    """Not a number and infinity as floats again: JSON keeps them as words."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def identity(study: str, settings: Mapping[str, Any]) -> str:
    """What makes a trial the same trial: its study and its settings, in one canonical string.

    Raises:
        TypeError: A setting is nothing that JSON has.
        ValueError: A setting is not finite.

    Example:
        >>> identity("depth", {"seed": 0, "depth": 8})
        '["depth",{"depth":8,"seed":0}]'
    """
    return json.dumps([study, settings], sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval; nan bounds where one value cannot tell.

    Args:
        mean: In the unit of the values, as `low` and `high`.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: How many values.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) as a `Verdict` takes it; `None` where one value cannot tell."""
        return None if math.isnan(self.low) or math.isnan(self.high) else (self.low, self.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of independent values and its confidence interval by Student's t.

    Args:
        values: One a seed, in any unit.
        confidence: In (0, 1).

    Raises:
        ValueError: `confidence` outside (0, 1).
        Missing: There is no value.

    Example:
        >>> estimate = mean_interval([1.0, 2.0, 3.0])
        >>> round(estimate.low, 3), estimate.mean, round(estimate.high, 3)
        (-0.484, 2.0, 4.484)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"mean_interval: confidence must be in (0, 1). Got {confidence}. Use 0.95.")
    if not len(values):
        raise Missing("No value to take the mean of.")
    with np.errstate(invalid="ignore"):
        mean = float(np.mean(values))
        if len(values) == 1:
            return Estimate(mean, math.nan, math.nan, 1)
        from scipy.special import stdtrit

        deviation = np.std(values, ddof=1) / math.sqrt(len(values))
        reach = float(stdtrit(len(values) - 1, (1 + confidence) / 2) * deviation)
    return Estimate(mean, mean - reach, mean + reach, len(values))


def verdict_word(holds: bool) -> str:
    """`REPRODUCED` where a claim holds, else `NOT_REPRODUCED`.

    Example:
        >>> verdict_word(0.98 > 0.97)
        'reproduced'
    """
    return REPRODUCED if holds else NOT_REPRODUCED


def lead_word(interval: tuple[float, float]) -> str:
    """`REPRODUCED` where a claimed lead's interval is above 0, `NOT_REPRODUCED` below it, `NOT_JUDGED` around it.

    Example:
        >>> [lead_word(interval) for interval in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3))]
        ['reproduced', 'not reproduced', 'not judged']
    """
    low, high = interval
    return REPRODUCED if low > 0 else NOT_REPRODUCED if high < 0 else NOT_JUDGED


def within(ours: float, paper: float, tolerance: float, *, digits: int = 6) -> Verdict:
    """The verdict on a plain constant: reproduced where ours is within `tolerance` of the paper's.

    Args:
        ours: Our number.
        paper: The paper's number.
        tolerance: How far apart they may be, in their unit, at least 0.
        digits: Significant digits to print.

    Example:
        >>> within(1.6732632, 1.6733, 1e-4).word, within(1.70, 1.6733, 1e-4).word
        ('reproduced', 'not reproduced')
    """
    apart = abs(ours - paper)
    note = f"{apart:.2g} apart; at most {tolerance:.2g} is allowed."
    return Verdict(verdict_word(apart <= tolerance), ours=f"{ours:.{digits}g}", paper=f"{paper:.{digits}g}", note=note)
