"""Numbers with suffixes: 25M parameters, 10Mbit a second."""

from __future__ import annotations

import math
import re

_POWERS = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}


class PlanError(ValueError):
    """Why a plan can't be made, in one sentence."""


def parse_count(text: str) -> int:
    """A count: digits with k, M, B (or G), T for thousands, millions, ... or none.

    Raises:
        PlanError: It is something else, or not a whole number above 0.

    Example:
        >>> parse_count("1.2B")
        1200000000
    """
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kmgbt]?)", text.strip().replace("_", "").lower())
    value = _product(found, 0.0)
    if not 1 <= value <= 1e18 or value != round(value):
        raise PlanError(f"--parameters must be a count above 0. Got {text}. Use e.g. 25M, 1.2B or 857336.")
    return round(value)


def parse_bandwidth(text: str) -> float:
    """Bits a second: a number with k, M, G, T and, if you like, bit, bit/s or bps.

    Raises:
        PlanError: It is something else, is 0, or is in bytes.

    Example:
        >>> parse_bandwidth("10Mbit"), parse_bandwidth("1.5 Gbit/s")
        (10000000.0, 1500000000.0)
    """
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kKmMgGtT]?)(?:bits?|bit/s|bits/s|bps|b/s)?", text.strip())
    value = _product(found, 0.0)
    if not 0 < value < math.inf:
        raise PlanError(f"--bandwidth must be in bit/s, above 0. Got {text}. Use e.g. 100M, 1G or 10Mbit (1 byte: 8).")
    return value


def _product(found: re.Match[str] | None, otherwise: float) -> float:
    try:
        return float(f"{found[1]}") * 10.0 ** _POWERS[found[2].lower()] if found else otherwise
    except (ValueError, OverflowError):
        return otherwise


def spell(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix.

    Example:
        >>> spell(100e6, "B"), spell(1234), spell(0.002, "s")
        ('100 MB', '1.23k', '0.002 s')
    """
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power * 0.9995:
            return f"{value / 10**power:.3g}{' ' if unit else ''}{prefix}{unit}"
    return f"{value:.3g}{' ' if unit else ''}{unit}"


def spell_seconds(value: float) -> str:
    """Three digits in seconds or below.

    Example:
        >>> spell_seconds(0.00025), spell_seconds(90)
        ('0.25 ms', '90 s')
    """
    if value < 0.1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
