"""Advice on a user's script: what its first steps measure, where no number is given by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hooke.launch.evidence import cores
from hooke.launch.request import WORKERS
from hooke.pacing import HEADROOM, LONGEST
from hooke.plan.advice import METHODS, Advice, advice_on, no_border
from hooke.plan.measurement import WAIT_SECONDS, Copy, Measured, Say, measure, say_nothing
from hooke.plan.star import Star

BANDWIDTH = 1e9
"""Bit/s of the links, if none is given."""

NAMES = {
    "EASGD": "easgd",
    "EAMSGD": "eamsgd",
    "Downpour": "downpour",
    "LocalSGD": "local-sgd",
    "Lookahead": "lookahead",
    "SlowMo": "slowmo",
    "DiLoCo": "diloco",
}
"""What `--method` calls a rule."""


def advice_on_script(
    script: str | Path,
    arguments: Sequence[str] = (),
    *,
    workers: int | None = None,
    wait: float = WAIT_SECONDS,
    say: Say = say_nothing,
    **given: Any,
) -> Advice:
    """Advice on a run of a script: its first steps tell what is not given.

    They tell the size of the vector, seconds of a step and of an exchange, top curvature, rule, period, learning rate,
    momentum and batch. The step is timed with one process that has the machine for itself and, where this machine has a
    core for each of `workers`, with that many at once.

    Args:
        script: The user's script, with `hooke.Worker` in it. It is stopped after some steps.
        arguments: Its arguments.
        workers: p. Default 2, as `hooke run` has it.
        wait: Seconds that a process of it may take to its first step. Default 60.
        say: Is told how far the measuring is, line by line. Default: nobody is.
        given: Arguments of `advice_on`, which win over what is measured. Links have 1 Gbit/s if `bandwidth` is not
            given.

    Raises:
        PlanError: The script can't be measured, or a number is outside its range.

    Example:
        ```python
        print(hooke.plan.advice_on_script("train.py", ["--lr", "0.1"], workers=2, bandwidth=1e8))
        ```
    """
    workers = WORKERS if workers is None else workers
    known = {name: value for name, value in given.items() if value is not None}
    advice_on(**{"parameters": 1, "step_seconds": 1.0, "bandwidth": BANDWIDTH, **_lenient(known)}, workers=workers)
    copies = workers if workers <= cores() else 1
    wanted = {"workers": copies, "curvature": "curvature" not in known}
    measured = measure(script, arguments, **wanted, wait=wait, say=say)
    return advise(measured, workers, known)


def _lenient(known: dict[str, Any]) -> dict[str, Any]:
    """For a check before anything runs: what depends on the script's own method is left for later."""
    later = () if "method" in known else ("momentum", "beta", "outer_lr", "outer_momentum")
    return {name: value for name, value in known.items() if name not in later}


def advise(measured: Measured, workers: int, known: dict[str, Any]) -> Advice:
    """Advice from what was measured, and from what is known better."""
    copy = measured.alone
    rule = NAMES.get(copy.rule, copy.rule)
    method = known.get("method", rule)
    told = {
        "parameters": copy.parameters,
        "step_seconds": copy.step_seconds,
        "bandwidth": BANDWIDTH,
        "period": copy.period,
        "center": "replicated" if copy.synchronous else "star",
        "lr": copy.lr or None,
        "curvature": measured.curvature,
        "batch": copy.batch,
        **(_settings(copy) if method == rule else {}),
        **known,
    }
    stand_in = method if method in METHODS else "local-sgd"
    made = advice_on(**{**told, "method": stand_in}, workers=workers)
    if copy.automatic and "period" not in known and isinstance(made.network, Star):
        made = replace(made, network=replace(made.network, period=_chosen(made.network.hiding_period(workers))))
    alpha = (
        copy.rule_settings.get("moving_rate") if method == rule and made.is_elastic and "beta" not in known else None
    )
    return replace(
        made,
        method=method,
        moving_rate=alpha,
        order=copy.rule_settings.get("order", "jacobi") if made.is_elastic else "jacobi",
        unjudged=no_border(method, told["center"]) or _unknown(copy, method),
        measured=measured,
    )


def _chosen(hiding: int) -> int:
    """What `communication_period="auto"` comes to on that network, where the processor has time for it."""
    return min(LONGEST, math.ceil(HEADROOM * hiding))


def _settings(copy: Copy) -> dict[str, Any]:
    """The rule's settings, as `advice_on` calls them."""
    rule, settings = NAMES.get(copy.rule), copy.rule_settings
    if rule in ("easgd", "eamsgd"):
        own = {} if settings.get("beta") is None else {"beta": settings["beta"]}
        return own | ({"momentum": copy.momentum} if rule == "eamsgd" else {})
    names = {
        "lookahead": ("alpha", ""),
        "slowmo": ("slow_lr", "slow_momentum"),
        "diloco": ("outer_lr", "outer_momentum"),
    }
    rate, momentum = names.get(str(rule), ("", ""))
    own = {"outer_lr": settings[rate]} if rate else {}
    return own | ({"outer_momentum": settings[momentum]} if momentum else {})


def _unknown(copy: Copy, method: str) -> str:
    """Why the script's optimizer keeps stability from being judged; empty if it does not."""
    if copy.optimizer != "SGD":
        return f"Borders of stability are known for SGD, and not for {copy.optimizer}."
    if copy.momentum and method != "eamsgd":
        return f"With momentum the border is known for EAMSGD, and not for {METHODS.get(method, method)}."
    if copy.by_halves:
        return "No border is known for separate periods or pull='every_step'."
    return ""
