"""WHEN, by measurement: the smallest period whose exchanges stay hidden behind the steps. No torch.

Behind `communication_period="auto"`. Each worker measures its own steps and exchanges, and chooses alone.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hooke.schedule import Period, Schedule

if TYPE_CHECKING:
    from hooke.exchange import Outcome

AUTO = "auto"

FIRST = 10
"""The period until enough is measured."""

LONGEST = 10_000
"""No longer period is chosen; an exchange that takes longer delays the next one."""

SHARE = 0.02
"""Which part of the steps' time exchanges may take from the processor, hidden or not."""

HEADROOM = 1.1
"""How much longer than needed a chosen period is, so that no uneven step or exchange undoes the choice."""

SLACK = 0.8
"""A shorter period is chosen once it is this part of the present one: what is uneven by a tenth changes none."""

KEPT, FEWEST = 9, 3
"""Measurements of which the median counts, and how many there must be: one that is far off changes nothing."""

LEG_STEPS, LEG_SECONDS, LONGEST_LEG = 10, 0.5, 5.0
"""Steps are timed by legs: at least so many and so long, but a leg of long steps may end after 5 seconds."""


@dataclass(frozen=True)
class Choice:
    """A period, and the measurements behind it.

    Attributes:
        period: In steps.
        step_seconds: Of one step without what exchanges hold it up.
        exchange_seconds: Of one exchange, beside the steps.
        busy_seconds: What one exchange takes from the processor.
    """

    period: int
    step_seconds: float
    exchange_seconds: float
    busy_seconds: float

    @property
    def needed(self) -> float:
        """Steps, as a fraction, that hide an exchange and keep its share of the processor small."""
        return max(self.exchange_seconds, self.busy_seconds / SHARE) / self.step_seconds

    @property
    def why(self) -> str:
        """The measurements in a sentence.

        Example:
            >>> print(Choice(17, 0.004, 0.06, 0.0002).why)
            An exchange takes 60 ms, as long as 15 steps of 4 ms; with headroom it is hidden behind 17.
            >>> print(Choice(14, 0.004, 0.006, 0.001).why)
            An exchange takes 1 ms from the processor, 2% of 12.5 steps of 4 ms; with headroom of 14.
        """
        step, needed = f"{self.needed:.3g} steps of {1000 * self.step_seconds:.3g} ms", self.exchange_seconds
        if needed < self.busy_seconds / SHARE:
            busy = f"{1000 * self.busy_seconds:.3g} ms from the processor, {SHARE:.0%}"
            why = f"An exchange takes {busy} of {step}; with headroom of {self.period}."
        else:
            hidden = f"with headroom it is hidden behind {self.period}"
            why = f"An exchange takes {1000 * needed:.3g} ms, as long as {step}; {hidden}."
        return why if self.needed < LONGEST else f"{why} {LONGEST} is the longest period."


class Pace:
    """The schedule of `communication_period="auto"`; one object a worker.

    With s the seconds of a step, e those of an exchange and b what it takes from the processor (its thread's time, and
    what it holds up the training loop), medians of the last 9 measurements each:

        needed = max(e, b / 0.02) / s          period = ceil(1.1 needed), from 1 to 10,000

    It changes when `needed` no longer fits into the period, or when the new one is shorter by a fifth. A failed
    exchange is no measurement. One that comes due while the last is under way begins as soon as that has come in.

    Args:
        clock: Tells seconds.

    Attributes:
        period: The present one.

    Example:
        >>> from types import SimpleNamespace
        >>> seconds = iter(range(1000))
        >>> pace = Pace(clock=lambda: float(next(seconds)))  # a step takes a second
        >>> outcome = SimpleNamespace(exchange_seconds=6.0, wait_seconds=0.0, busy_seconds=0.0, failure=None)
        >>> for step in range(40):
        ...     if pace.due(step) is not None:
        ...         pace.begun(step)
        ...         pace.exchanged(outcome)
        ...     choice = pace.stepped()
        ...     if choice is not None:
        ...         print(step + 1, choice.period)
        21 7
    """

    fragments = 1
    """The whole vector is exchanged at once."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.period = FIRST
        self._clock = clock
        self._begun: int | None = None
        self._has_chosen = self._is_news = False
        self._steps: deque[float] = deque(maxlen=KEPT)
        self._exchanges: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self.rest()

    # As a schedule ----------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """In words."""
        return f"period {AUTO}, 1 fragment"

    @property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """The present one."""
        return ((0, self.period),)

    def due(self, step: int) -> int | None:
        """0 if an exchange is due when `step` steps are taken, and goes on being due until it has begun."""
        return 0 if self._begun is None or step - self._begun >= self.period else None

    def part(self, fragment: int, numel: int) -> None:
        """The whole vector."""

    def check_fits(self, numel: int) -> None:
        """Any vector does."""

    # What is measured -------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Time no step until the next has ended: the worker starts again."""
        self._leg: float | None = None
        self._leg_steps, self._waited = 0, 0.0

    def begun(self, step: int) -> None:
        """An exchange begins when `step` steps are taken."""
        self._begun = step

    def exchanged(self, outcome: Outcome) -> None:
        """An exchange has ended."""
        self._waited += outcome.wait_seconds
        if outcome.failure is None:
            self._exchanges.append((outcome.exchange_seconds, outcome.busy_seconds + outcome.wait_seconds))
            self._is_news = True

    def stepped(self) -> Choice | None:
        """A step has ended; the new choice, if it changes the period or is the first."""
        now = self._clock()
        if self._leg is None:
            self._leg = now
            return None
        self._leg_steps += 1
        self._end_leg(now, now - self._leg)
        if not self._is_news or min(len(self._steps), len(self._exchanges)) < FEWEST:
            return None
        self._is_news = False
        return self._chosen()

    def _end_leg(self, now: float, seconds: float) -> None:
        """Steps are timed together: on an accelerator, a single one may end before its work is done."""
        if (self._leg_steps < LEG_STEPS or seconds < LEG_SECONDS) and seconds < LONGEST_LEG:
            return
        self._steps.append(max(seconds - self._waited, 1e-9) / self._leg_steps)
        self._leg, self._leg_steps, self._waited, self._is_news = now, 0, 0.0, True

    def _chosen(self) -> Choice | None:
        exchange, busy = (statistics.median(values) for values in zip(*self._exchanges, strict=True))
        choice = Choice(self.period, statistics.median(self._steps), exchange, busy)
        period = min(LONGEST, max(1, math.ceil(HEADROOM * choice.needed * (1 - 1e-9))))  # no step more by rounding
        is_short = choice.needed > self.period and period != self.period
        if self._has_chosen and not is_short and period > SLACK * self.period:
            return None
        self.period, self._has_chosen = period, True
        return Choice(period, choice.step_seconds, exchange, busy)

    # State ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed worker goes on with; measurements are made anew, where it runs then."""
        return {"period": self.period, "begun": self._begun, "has_chosen": self._has_chosen}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with what `state` returned."""
        self.period, self._begun, self._has_chosen = state["period"], state["begun"], state["has_chosen"]
        self._steps.clear()
        self._exchanges.clear()
        self.rest()


def schedule_of(period: Period | str, fragments: int = 1, *, overlap: bool = False) -> Schedule | Pace:
    """The schedule that a worker's settings say: by its own steps, or by what is measured.

    Raises:
        ValueError: A setting outside its range, or one that does not go with `"auto"`.
    """
    if period != AUTO or not isinstance(period, str):
        return Schedule.of(period, fragments)  # type: ignore[arg-type]
    if not overlap:
        raise ValueError(
            'Worker: communication_period="auto" hides exchanges behind the steps, which needs overlap=True. Got '
            "overlap=False. Set overlap=True, or a whole number of steps."
        )
    if fragments != 1:
        raise ValueError(
            'Worker: communication_period="auto" exchanges the whole vector. Got '
            f"fragments={fragments!r}. Drop fragments, or set a whole number of steps."
        )
    return Pace()
