"""What a `Worker` is given, checked before anything is built of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hooke.pacing import Pace
from hooke.ranks import ranks_of
from hooke.rule import EASGD, Rule
from hooke.schedule import Schedule, check_count

if TYPE_CHECKING:
    from hooke.center import Center


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        raise ValueError(f"Worker: {name} must be one of {choices}. Got {value!r}. Use {choices[0]!r}.")


def separate_periods(
    schedule: Schedule | Pace, collect: int | None, deliver: int | None, every_step: bool
) -> tuple[int, int] | None:
    """Of collection and delivery, where the two halves of an exchange don't go together.

    Raises:
        ValueError: They don't go with the schedule.
    """
    given = {"collect_period": collect, "delivery_period": deliver}
    named = [name for name, value in given.items() if value is not None and check_count(name, value)]
    named += ["pull='every_step'"] if every_step else []
    if named and isinstance(schedule, Pace):
        raise ValueError(
            f'Worker: communication_period="auto" is one period for both directions. Got {" and ".join(named)} too. '
            "Drop one of the two."
        )
    if named and (schedule.fragments > 1 or len(schedule.phases) > 1):
        raise ValueError(
            f"Worker: {' and '.join(named)} must stand beside one communication_period and no fragments. Got phases or "
            "fragments. Drop one of the two."
        )
    period = dict(schedule.phases)[0]
    periods = (period if collect is None else collect, period if deliver is None else deliver)
    return periods if every_step or periods[0] != periods[1] else None


def check_halves(rule: Rule, halves: bool, overlap: bool) -> None:
    """Refuse separate periods beside what needs one.

    Raises:
        ValueError: They stand beside another than an elastic rule, or overlap.
    """
    if halves and not isinstance(rule, EASGD):
        raise ValueError(
            f"Worker: collect_period, delivery_period and pull='every_step' need an elastic rule. Got {rule!r}. "
            "Use hooke.EASGD() or hooke.EAMSGD(), or one communication_period."
        )
    if halves and overlap:
        raise ValueError(
            "Worker: overlap needs one communication_period. Got separate periods or pull='every_step'. Drop one."
        )


def check_center(center: Center, schedule: Schedule | Pace, overlap: bool) -> None:
    """Refuse what needs a center where each worker exchanges on its own.

    Raises:
        ValueError: The center is another.
    """
    if isinstance(schedule, Pace) and ranks_of(center).size > 1:
        raise ValueError(
            'Worker: communication_period="auto" needs a worker that is one process. Got one of '
            f"{ranks_of(center).size} ranks, whose clocks differ. Set a whole number of steps."
        )
    if not (overlap and center.is_synchronous):
        return
    kind = f"Got {type(center).__name__}, where all ranks exchange at once."
    if isinstance(schedule, Pace):
        raise ValueError(
            'Worker: communication_period="auto" needs a center where each worker exchanges on its own. '
            f"{kind} Set a whole number of steps and drop overlap, or use LocalCenter."
        )
    raise ValueError(
        f"Worker: overlap needs a center where each worker exchanges on its own. {kind} Drop overlap, or use "
        "LocalCenter."
    )


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, rule: Rule) -> None:
    """Refuse an optimizer that does not fit the model or the rule.

    Raises:
        ValueError: It does not.
    """
    if not isinstance(rule, Rule):
        raise ValueError(f"Worker: rule must be a hooke rule. Got {rule!r}. Use an object, e.g. hooke.EASGD().")
    own = {id(parameter) for parameter in model.parameters()}
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strange = [parameter for parameter in updated if id(parameter) not in own]
    if strange:
        raise ValueError(
            f"Worker: optimizer must update parameters of model. Got {len(strange)} tensors that are not (first: shape "
            f"{tuple(strange[0].shape)}). Pass the model whose parameters optimizer updates."
        )
    if rule.plain_point:
        _check_nesterov(optimizer, rule)


def _check_nesterov(optimizer: torch.optim.Optimizer, rule: Rule) -> None:
    """`EAMSGD` knows where the look-ahead point of torch's Nesterov SGD is, and of nothing else."""
    is_nesterov = isinstance(optimizer, torch.optim.SGD) and all(
        group["nesterov"] or group["momentum"] == 0 for group in optimizer.param_groups
    )
    if not is_nesterov:
        raise ValueError(
            f"Worker: {type(rule).__name__} needs torch.optim.SGD with nesterov=True. Got {type(optimizer).__name__}. "
            "Use SGD(..., momentum=0.9, nesterov=True), or hooke.EASGD() with this optimizer."
        )
