"""Whether a run leaves its stable region, told from the distance between worker and center alone. No torch.

The top curvature is not known in a run. What is seen is that in an unstable setting the distance from the center grows
exchange after exchange by a factor, without end, until it is as large as the parameters themselves; in a stable one it
settles. So the evidence is a distance that is larger than ever, many times its median so far, and no small part of the
parameters' own length. A learning rate that rises explains as much growth as its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

FEWEST = 8
"""Distances before one is judged: the first ones of a healthy run grow from 0."""

GROWTH = 100.0
"""How many times the median a distance must be. Healthy runs of the examples' network reach 4, under a warmup 6."""

LEAP = 1e6
"""How many times, where there are fewer distances: what grows so fast would not be finite soon."""

PART = 0.03
"""Which part of the parameters' length it must be. A net that leaves a flat start grows as fast, but its center too."""

_MOST = 512


class Divergence:
    """Follows one worker's distances; says once that they grow without end.

    Example:
        >>> watch = Divergence()
        >>> said = [watch.grown(1.3**k, lr=0.1, length=lambda: 2.0) for k in range(60)]
        >>> [(k, round(growth)) for k, growth in enumerate(said) if growth]
        [(35, 112)]
    """

    def __init__(self) -> None:
        self._seen: list[float] = []
        self._largest = 0.0
        self._top_lr = 0.0
        self._stride = self._skipped = 0
        self.warned = False

    def grown(self, distance: float, *, lr: float, length: Callable[[], float]) -> float:
        """Take in a distance; tell how many times the median it is if that is a sign of divergence, else 0.

        Args:
            distance: Of the worker's parameters from the center's, just before an exchange.
            lr: Largest learning rate now.
            length: The parameters' length; asked for only where the distance has grown.
        """
        self._top_lr = max(self._top_lr, lr)
        if self.warned or not (distance > 0 and self._top_lr > 0 and math.isfinite(distance)):
            return 0.0
        value = distance / self._top_lr
        is_largest, self._largest = value > self._largest, max(value, self._largest)
        growth = value / statistics.median(self._seen) if is_largest and self._seen else 0.0
        enough = GROWTH if len(self._seen) >= FEWEST else LEAP
        self._keep(value)
        if growth <= enough or distance <= PART * length():
            return 0.0
        self.warned = True
        return growth

    def _keep(self, value: float) -> None:
        """Every distance of a short run; of a long one every second, fourth, ... so that all of it counts."""
        self._skipped += 1
        if self._skipped < 2**self._stride:
            return
        self._skipped = 0
        self._seen.append(value)
        if len(self._seen) == _MOST:
            self._seen, self._stride = self._seen[::2], self._stride + 1


def sentence(rule: str, lr: float, num_workers: int, period: int, border: float | None, growth: float) -> str:
    """What to say: evidence, border, remedy.

    Args:
        rule: Its name.
        lr: Learning rate.
        num_workers: p.
        period: tau.
        border: Smallest lr * curvature that is not stable, if it is known.
        growth: As `Divergence.grown` tells it.

    Example:
        >>> print(sentence("Downpour", 0.1, 4, 16, 0.0361, 120))  # doctest: +NORMALIZE_WHITESPACE
        Worker: the run must stay in its stable region. Got a distance from the center that has grown 120-fold and goes
        on growing. This is Downpour with 4 workers, lr 0.1 and period 16, stable only where the loss curves less than
        0.361. Lower lr or communication_period, or use EASGD; `hooke plan SCRIPT` measures how far.
    """
    workers = f"{num_workers} worker{'s' if num_workers != 1 else ''}"
    limit = "" if border is None or lr <= 0 else f", stable only where the loss curves less than {border / lr:.3g}"
    shorter = "" if rule in ("EASGD", "EAMSGD") else " or communication_period, or use EASGD"
    setting = f"{rule} with {workers}, lr {lr:.3g} and period {period}{limit}"
    return (
        "Worker: the run must stay in its stable region. Got a distance from the center that has grown "
        f"{growth:,.0f}-fold and goes on growing. This is {setting}. "
        f"Lower lr{shorter}; `hooke plan SCRIPT` measures how far."
    )
