"""Rules as plain data: every public one, there and back, and nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from cases import RULES

import hooke
from hooke.rule import Rule
from hooke.rule_json import KNOWN, rule_from_plain, rule_to_plain


def test_every_public_rule_is_known() -> None:
    public = {getattr(hooke, name) for name in hooke.__all__ if isinstance(getattr(hooke, name), type)}
    assert {kind for kind in public if issubclass(kind, Rule) and kind is not Rule} == set(KNOWN.values())


@pytest.mark.parametrize(
    "rule",
    [*(case.rule for case in RULES), hooke.LSGD(0.2), hooke.DiLoCo(mixing=0.5, num_workers=3), hooke.EASGD(0.7)],
    ids=repr,
)
def test_there_and_back(rule: Rule) -> None:
    assert rule_from_plain(json.loads(json.dumps(rule_to_plain(rule)))) == rule


class Own(hooke.EASGD):
    """A rule of the user's own."""


def test_a_rule_of_one_s_own_stays_at_home() -> None:
    with pytest.raises(
        ValueError, match=r"must be one of hooke's own.*Got Own\. Use one of EASGD, .*, or a LocalCenter"
    ):
        rule_to_plain(Own())


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        (None, "rule must be one of EASGD"),
        ([], "rule must be one of"),
        ({}, "rule must be one of"),
        ({"kind": "Rule"}, "rule must be one of"),
        ({"kind": ["EASGD"]}, "rule must be one of"),
        ({"kind": "os.system"}, "rule must be one of"),
        ({"kind": "EASGD", "speed": 3}, "settings of EASGD must be this version's"),
        ({"kind": "EASGD", "moving_rate": "fast"}, "settings of EASGD must be this version's"),
        ({"kind": "EASGD", "moving_rate": 2.0}, "moving_rate must be in"),
        ({"kind": "EASGD", "moving_rate": math.nan}, "moving_rate must be a finite number"),
        ({"kind": "DiLoCo", "outer_lr": 1e30}, "outer_lr must be a finite number up to 1e+06"),
        ({"kind": "LocalSGD", "num_workers": [4]}, "num_workers must be a finite number"),
        ({"kind": "Averaged", "rule_": {}}, "rule must be one of"),
        ({"kind": "x" * 500}, "rule must be one of"),
    ],
)
def test_nothing_else_is_made(plain: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("+", r"\+")) as caught:
        rule_from_plain(plain)
    assert len(str(caught.value)) < 400
