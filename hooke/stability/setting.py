"""Which numbers a setting may have, and how a border is told."""

from __future__ import annotations

import math


def check_setting(**settings: float) -> None:
    """Refuse what no number of workers, period or rate can be."""
    for name, value in settings.items():
        whole = name in ("num_workers", "period", "turns")
        if whole and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"stability: {name} must be a whole number, at least 1. Got {value}. Use e.g. 4.")
        if not whole and not 0 < value < math.inf:
            raise ValueError(f"stability: {name} must be above 0 and finite. Got {value}. Use e.g. 0.1.")


def check_elastic(alpha: float, momentum: float, under_way: int, most: int) -> None:
    """Refuse what no elastic rule can be."""
    if not 0 < alpha <= 1:
        raise ValueError(f"stability: moving_rate must be in (0, 1]. Got {alpha}. Use e.g. 0.9 / num_workers.")
    check_momentum("momentum", momentum)
    if not 0 <= under_way <= most:
        raise ValueError(
            f"stability: steps_under_way must be from 0 to the period, and at most 1 where all exchange at once. Got "
            f"{under_way}, at most {most}. Where an exchange takes longer, the period is longer: give that one."
        )


def check_momentum(name: str, value: float) -> None:
    """Refuse what no momentum can be."""
    if not 0 <= value < 1:
        raise ValueError(f"stability: {name} must be in [0, 1). Got {value}. Use e.g. 0.9.")


def rounded_down(value: float) -> str:
    """Three digits, so that what is told as a border is never beyond it.

    Example:
        >>> rounded_down(0.66666), rounded_down(2.0)
        ('0.666', '2')
    """
    if value <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.floor(value / unit * (1 + 1e-9)) * unit:.3g}"
