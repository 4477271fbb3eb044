"""CenterSpec: every worker of a center must bring the same, and is told the first difference."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from hooke.center import LocalCenter
from hooke.flat import FlatParameters
from hooke.spec import CenterSpec


def spec(numel: int, border: int = -1) -> CenterSpec:
    return CenterSpec((), numel, border)


def spec_of(model: nn.Module) -> CenterSpec:
    return CenterSpec.of(FlatParameters(model, buffers=True).entries)


def test_a_spec_survives_json() -> None:
    made = spec_of(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)))
    assert made.parameters_end < made.numel
    assert CenterSpec.from_json(made.to_json()) == made
    with_memory = CenterSpec.of(made.entries, ("momentum", "arrivals"))
    assert CenterSpec.from_json(with_memory.to_json()) == with_memory != made
    with_schedule = CenterSpec.of(made.entries, schedule="period 10, 4 fragments")
    assert CenterSpec.from_json(with_schedule.to_json()) == with_schedule != made
    made.check_same(with_schedule)


def test_a_spec_from_before_there_was_memory_has_none() -> None:
    text = '{"entries": [], "numel": 3, "parameters_end": 2}'
    assert CenterSpec.from_json(text) == CenterSpec((), 3, 2)


def linear(*sizes: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)))


def renamed() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3, 2))
    return model


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        (linear(2, 3), linear(2, 4), "0.weight has shape (4, 2), in the center it is (3, 2) (0.weight)."),
        (linear(2, 3), linear(2, 3).half(), "0.weight has dtype float16, in the center it is float32 (0.weight)."),
        (linear(2, 3), renamed(), "weight has name weight, in the center it is 0.weight (0.weight)."),
        (
            nn.Conv2d(2, 3, 2, bias=False),
            nn.Conv2d(2, 3, 2, bias=False).to(memory_format=torch.channels_last),
            "weight has memory order (0, 2, 3, 1), in the center it is (0, 1, 2, 3) (weight).",
        ),
        (
            linear(2, 3),
            linear(2, 3, 4),
            "Got 2 tensors (32 elements, 32 with averaged buffers), the center holds 1 tensors (16 elements, 16 with "
            "averaged buffers); the first that is not on both sides is 1.weight.",
        ),
        (
            nn.BatchNorm1d(2),
            nn.BatchNorm1d(2, track_running_stats=False),
            "Got 2 tensors (32 elements, 32 with averaged buffers), the center holds 4 tensors (32 elements, 64 with "
            "averaged buffers); the first that is not on both sides is running_mean.",
        ),
    ],
)
def test_another_model_is_refused_by_its_first_difference(
    center: LocalCenter, ours: nn.Module, theirs: nn.Module, difference: str
) -> None:
    ours, theirs = spec_of(ours), spec_of(theirs)
    center.join(torch.zeros(ours.numel), ours)
    other = LocalCenter(center.path)
    with pytest.raises(ValueError) as raised:
        other.join(torch.zeros(theirs.numel), theirs)
    other.close()
    assert str(raised.value).startswith(f"center: every worker must bring the same model. {difference} Build the same ")
    assert center.num_workers == 1


@pytest.mark.parametrize("other", [spec(4), spec(3, 2)])
def test_specs_without_names_differ_by_their_sizes(center: LocalCenter, other: CenterSpec) -> None:
    center.join(torch.zeros(3), spec(3))
    with pytest.raises(ValueError, match=r"^center: every worker must bring the same model\. Got 0 tensors \("):
        LocalCenter(center.path).join(torch.zeros(other.numel), other)


def test_a_rule_with_another_memory_is_refused(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    sentence = (
        "center: every worker must bring the same rule. Got one that keeps momentum and arrivals beside the center, "
        "which keeps nothing. Use the same rule on every worker."
    )
    other, theirs = LocalCenter(center.path), CenterSpec((), 3, memory=("momentum", "arrivals"))
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        other.join(torch.zeros(3), theirs, (torch.zeros(3), torch.zeros(3)))
    other.close()


def test_a_refused_worker_can_come_back_with_the_right_model(center: LocalCenter) -> None:
    center.join(torch.zeros(3), spec(3))
    other = LocalCenter(center.path)
    with pytest.raises(ValueError, match="same model"):
        other.join(torch.zeros(4), spec(4))
    other.join(torch.zeros(3), spec(3))
    assert center.num_workers == 2
    other.close()
