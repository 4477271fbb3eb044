"""Rules as plain data, so that a center elsewhere can act on them: only hooke's own, by name, and checked when read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hooke.averaged import Averaged
from hooke.leader import LSGD
from hooke.outer import AsyncDiLoCo, DiLoCo, Lookahead, MDownpour, SlowMo
from hooke.rule import EAMSGD, EASGD, Downpour, LocalSGD, Rule

KNOWN: dict[str, type[Rule]] = {
    kind.__name__: kind
    for kind in (
        EASGD,
        EAMSGD,
        Downpour,
        LocalSGD,
        Lookahead,
        SlowMo,
        DiLoCo,
        AsyncDiLoCo,
        MDownpour,
        LSGD,
        Averaged,
    )
}

LARGEST_SETTING = 1e6
"""No rule needs a larger number; with it, finite parameters stay finite in the center."""


def rule_to_plain(rule: Rule) -> dict[str, Any]:
    """Name and settings.

    Raises:
        ValueError: A rule of the user's own.

    Example:
        >>> rule_to_plain(EASGD(moving_rate=0.25))
        {'kind': 'EASGD', 'beta': None, 'moving_rate': 0.25, 'order': 'jacobi'}
    """
    name = type(rule).__name__
    if KNOWN.get(name) is not type(rule):
        raise ValueError(
            f"connect: the rule must be one of hooke's own, which the center knows by name. Got {name}. Use one of "
            f"{', '.join(KNOWN)}, or a LocalCenter."
        )
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule) if field.init}  # type: ignore[arg-type]
    return {"kind": name} | {
        key: rule_to_plain(value) if isinstance(value, Rule) else value for key, value in values.items()
    }


def rule_from_plain(plain: Any) -> Rule:
    """Back from `rule_to_plain`.

    Raises:
        ValueError: Anything else.

    Example:
        >>> rule_from_plain({"kind": "LocalSGD", "num_workers": 4})
        LocalSGD(num_workers=4, mixing=0.0)
    """
    name = plain.get("kind") if isinstance(plain, dict) else None
    kind = KNOWN.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"serve: rule must be one of {', '.join(KNOWN)}. Got {_short(plain)}. Use the same hooke.")
    settings = {key: _setting(key, value) for key, value in plain.items() if key != "kind"}
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(
            f"serve: settings of {name} must be this version's. Got: {error}. Use the same version of hooke "
            "on both sides."
        ) from None


def _setting(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return rule_from_plain(value)
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST_SETTING:
        return value
    raise ValueError(
        f"serve: {name} must be a finite number up to {LARGEST_SETTING:g}. Got {_short(value)}. Use the rule's default."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
