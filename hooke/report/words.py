"""How numbers, names and quantities are said in a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Who = int | str
"""A worker's number, or `"center"`."""


def called(who: Who) -> str:
    """How a sentence calls a worker or the center."""
    return "the center" if who == "center" else f"worker {who}"


def times(count: int, what: str = "time") -> str:
    """A count with its noun: `once`, `3 times`, `1 exchange`."""
    return "once" if count == 1 and what == "time" else f"{count:,} {what}{'' if count == 1 else 's'}"


def spell_seconds(seconds: float) -> str:
    """A duration to read: `0.42 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 99.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"


def spell_short(value: float, unit: str = "", digits: int = 3) -> str:
    """A number to a few digits: `0.042`, `640`, `12.3 k`, `1.2 M`; with a unit, `12.3 kB`."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return f"{value / power:.{digits}g} {letter}{unit}"
    return f"{value:.{digits}g} {unit}".strip()


def spell_percent(value: float, digits: int = 4) -> str:
    """A share as a percentage to a few digits."""
    return f"{100 * value:.{digits}g} %"


def spell_share(share: float) -> str:
    """A share of 1 as whole percent."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def spell_command(words: object) -> str:
    """A command line as one would type it; anything else as it is."""
    return (shlex.join(str(word) for word in words) or "none") if isinstance(words, list) else str(words)


@dataclass(frozen=True)
class Metric:
    """How a row is called and written, and which end of it is the good one."""

    label: str
    about: str
    best: Callable[[np.ndarray], Any] = np.max
    best_word: str = "at most"
    spell: Callable[..., str] = spell_short

    @property
    def ranks(self) -> bool:
        """Whether one end of it is the good one."""
        return self.best_word == "at best"


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", "share of held-out examples classified correctly", np.max, "at best", spell_percent),
    "test_loss": Metric("Held-out loss", "mean loss on held-out examples", np.min, "at best"),
    "loss": Metric("Training loss", "mean loss of the training batches since the last row", np.min, "at best"),
    "center_distance": Metric("Distance from the center", "Euclidean distance of a worker's parameters from x\u0303"),
    "staleness": Metric("Staleness", "exchanges of other workers since a worker's last one"),
}
"""The rows that are drawn as curves, in the order of the page."""


def place(who: Who | None) -> tuple[bool, int, str]:
    """Sorts workers by number, then whatever else by name."""
    return (False, who, "") if isinstance(who, int) else (True, 0, str(who))
