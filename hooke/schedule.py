"""WHEN, as a pure function of a worker's own steps: what is exchanged after which of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Period = int | Mapping[int, int]
"""One period, or by the step from which it counts: `{0: 1, 1000: 16}`."""


@dataclass(frozen=True)
class Schedule:
    """When a worker exchanges, and which part of its vector.

    A phase begins at its step with an exchange of the last fragment and goes on every `period` steps. With F fragments,
    the i-th (from 0) follows `period * (i + 1) // F` steps after, so that each is exchanged once a period.

    Args:
        phases: `(first step, period)` of each, by their steps; the first begins at 0.
        fragments: F, at most the shortest period.

    Example:
        >>> schedule = Schedule.of({0: 1, 4: 3})
        >>> [step for step in range(12) if schedule.due(step) is not None]
        [0, 1, 2, 3, 4, 7, 10]
        >>> [Schedule.of(6, fragments=2).due(step) for step in range(1, 7)]
        [None, None, 0, None, None, 1]
        >>> Schedule.of(6, fragments=2).part(0, numel=7)
        slice(0, 3, None)
    """

    phases: tuple[tuple[int, int], ...]
    fragments: int = 1

    @staticmethod
    def of(period: Period, fragments: int = 1) -> Schedule:
        """The schedule that a worker's settings say.

        Raises:
            ValueError: A setting outside its range.
        """
        phases = dict(period) if isinstance(period, Mapping) else {0: period}
        for value in phases.values():
            check_count("communication_period", value)
        if not phases or any(not _is_whole(step) or step < 0 for step in phases) or min(phases) != 0:
            raise ValueError(
                "Worker: phases of communication_period must be whole numbers of steps, the first at 0. Got "
                f"{sorted(phases, key=str)}. Use e.g. {{0: 1, 1000: 16}}."
            )
        shortest = min(phases.values())
        if check_count("fragments", fragments) > shortest:
            raise ValueError(
                f"Worker: fragments must be at most communication_period, so that one at a time is exchanged. Got "
                f"{fragments} fragments and a period of {shortest}. Use at most {shortest}."
            )
        return Schedule(tuple(sorted(phases.items())), fragments)

    def __str__(self) -> str:
        """In words, e.g. `period 1 from step 0, 16 from step 1000, 4 fragments`."""
        (_, first), *later = self.phases
        periods = f"{first} from step 0, " + ", ".join(f"{period} from step {step}" for step, period in later)
        return f"period {periods if later else first}, {self.fragments} fragment{'s' if self.fragments > 1 else ''}"

    def due(self, step: int) -> int | None:
        """The fragment to be exchanged when `step` steps are taken, or `None`."""
        since, period = next(phase for phase in reversed(self.phases) if phase[0] <= step)
        passed = (step - since) % period or period
        fragment = -(-passed * self.fragments // period) - 1
        return fragment if period * (fragment + 1) // self.fragments == passed else None

    def part(self, fragment: int, numel: int) -> slice | None:
        """Where that fragment lies in a vector of `numel` elements; `None` for the whole vector."""
        if self.fragments == 1:
            return None
        return slice(numel * fragment // self.fragments, numel * (fragment + 1) // self.fragments)

    def check_fits(self, numel: int) -> None:
        """Refuse more fragments than elements.

        Raises:
            ValueError: There are.
        """
        if self.fragments > max(1, numel):
            raise ValueError(
                f"Worker: fragments must be at most the elements of the model's vector. Got {self.fragments} fragments "
                f"of {numel} elements. Use fewer."
            )


def check_count(name: str, value: int) -> int:
    """Refuse what is not a count.

    Raises:
        ValueError: `value` is not a whole number, at least 1.
    """
    if not _is_whole(value) or value < 1:
        unit = " of steps" if name.endswith("period") else ""
        raise ValueError(
            f"Worker: {name} must be a whole number{unit}, at least 1. Got {value!r}. Use e.g. {10 if unit else 4}."
        )
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
