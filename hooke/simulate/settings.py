"""What a `Simulation` is given, checked before anything is built of it. No torch."""

from __future__ import annotations

import math
from numbers import Integral, Real

_EXAMPLES = {
    "loss": "lambda model, batch: model(batch).square().mean()",
    "batches": "lambda worker, step: torch.ones(8, 4)",
    "optimizer": "lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
    "scheduler": "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)",
}


def check_type(name: str, value: object, kind: type, use: str) -> None:
    """Whether it is of that kind.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, kind):
        raise ValueError(f"Simulation: {name} must be a {kind.__name__}. Got {value!r}. Use {use}.")


def check_callables(**given: object) -> None:
    """Whether these are functions; a scheduler may be `None`.

    Raises:
        ValueError: One is not.
    """
    for name, value in given.items():
        if not callable(value) and not (name == "scheduler" and value is None):
            raise ValueError(f"Simulation: {name} must be a function. Got {value!r}. Use e.g. {_EXAMPLES[name]}.")


def check_seed(seed: object) -> None:
    """Whether random generators take it.

    Raises:
        ValueError: They don't.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"Simulation: seed must be a whole number, at least 0. Got {seed!r}. Use e.g. 0.")


def check_until(until: object, reached: float) -> None:
    """Whether it is a time that is still to come.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(until, Real) or not reached <= float(until) < math.inf:
        raise ValueError(
            f"Simulation: until must be a time from the {reached:g} seconds reached on. Got {until!r}. Use a later one."
        )


def check_schedule(period: object, fragments: object, overlap: bool, synchronous: bool) -> None:
    """Whether an exchange can run so, and cuts the period into equal parts.

    Raises:
        ValueError: It can't.
    """
    if overlap and synchronous:
        raise ValueError(
            "Simulation: overlap needs workers that exchange on their own. Got synchronous=True too. Drop one of them."
        )
    if not isinstance(period, int):
        raise ValueError(
            f"Simulation: communication_period must be one whole number of steps. Got {period!r}. Use e.g. 10."
        )
    if isinstance(fragments, int) and 1 <= fragments <= period and period % fragments:  # the rest is the worker's check
        raise ValueError(
            f"Simulation: fragments must divide communication_period. Got {fragments} fragments and a period of "
            f"{period}. Use e.g. fragments={math.gcd(fragments, period)}."
        )
