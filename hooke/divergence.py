"""Whether a run leaves its stable region, told from the distance between worker and center alone. No torch.

The top curvature is not known in a run. What is seen is that in an unstable setting the distance from the center grows
exchange after exchange by a factor, without end, until it is as large as the parameters themselves; in a stable one it
settles. So the evidence is a distance that is larger than ever, many times its median so far, and no small part of the
parameters' own length. A learning rate that rises explains as much growth as its own; so does a longer period, and each
phase of a schedule is judged by itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Sign:
    """That a run diverges.

    Attributes:
        growth: As `Divergence.grown` tells it.
        text: What to say.
    """

    growth: float
    text: str


class Watch:
    """Follows one worker through the phases of its schedule; says once in all that it diverges.

    Args:
        rule: What is exchanged.
        optimizer: Whose learning rate and momentum count now.
        phases: `(first step, period)` of each, by their steps. Distances of different periods are never compared.
        synchronous: Whether an exchange waits for all workers.
        has_border: Whether the border of stability is known for such an optimizer and such exchanges.

    Example:
        >>> from types import SimpleNamespace
        >>> from hooke.rule import Downpour
        >>> optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
        >>> watch = Watch(Downpour(), optimizer, [(0, 1), (100, 500)], synchronous=False, has_border=False)
        >>> steps = [*range(1, 101), *range(600, 20_000, 500)]
        >>> distances = [1.0 if step <= 100 else 500.0 for step in steps]
        >>> [watch.sign(d, k, num_workers=4, length=lambda: 2.0) for d, k in zip(distances, steps)] == [None] * 139
        True
    """

    def __init__(
        self, rule: Any, optimizer: Any, phases: Sequence[tuple[int, int]], *, synchronous: bool, has_border: bool
    ) -> None:
        self._rule, self._optimizer, self._phases = rule, optimizer, tuple(phases)
        self._synchronous, self._has_border = synchronous, has_border
        self._since, self._divergence = 0, Divergence()
        self._judged_at = self._phases[-1][1]
        self._said = False

    def paced(self, step: int, period: int) -> None:
        """From `step` on the worker has another period, which was not known before.

        Distances go on being compared until the period is twice as long, or half, as where they began to be.
        """
        (before, last), judged_at = self._phases[-1], self._judged_at
        if max(period, judged_at) < 2 * min(period, judged_at):
            self._phases = (*self._phases[:-1], (before, period))
        else:
            self._phases, self._judged_at = ((0, last), (step, period)), period

    def sign(self, distance: float, step: int, *, num_workers: int, length: Callable[[], float]) -> Sign | None:
        """Take in a distance; tell it if it is a sign of divergence, the first.

        Args:
            distance: Of the worker's parameters from the center's, just before an exchange.
            step: Steps taken by then.
            num_workers: p.
            length: The parameters' length; asked for only where the distance has grown.
        """
        if self._said:
            return None
        # the exchange with which a phase begins ends a period of the phase before
        since, period = next(phase for phase in reversed(self._phases) if phase[0] < max(step, 1))
        if since != self._since:
            self._since, self._divergence = since, Divergence()
        lr = max(float(group.get("lr") or 1.0) for group in self._optimizer.param_groups)  # some have none
        growth = self._divergence.grown(distance, lr=lr, length=length)
        if not growth:
            return None
        self._said = True
        border = self._border(num_workers, period)
        return Sign(growth, sentence(type(self._rule).__name__, lr, num_workers, period, border, growth))

    def _border(self, num_workers: int, period: int) -> float | None:
        """Smallest lr * curvature that is not stable; `None` where that is not known."""
        if not self._has_border:
            return None
        from hooke.stability import stability_of  # imports much: only for who needs it

        momentum = max(float(group["momentum"]) for group in self._optimizer.param_groups)
        setting = {
            "num_workers": num_workers,
            "communication_period": period,
            "synchronous": self._synchronous,
            "momentum": momentum,
        }
        try:
            return stability_of(self._rule, lr=1.0, curvature=1.0, **setting).border
        except ValueError:  # no border is known
            return None


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
