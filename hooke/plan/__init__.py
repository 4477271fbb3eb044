"""What a run would bring before it is started: stable or not, seconds and bytes of an exchange, speed-up. No torch."""

from hooke.plan.advice import METHODS, Advice, PlanError, Row, advice_on
from hooke.plan.measurement import Copy, Measured, measure
from hooke.plan.quantity import parse_bandwidth, parse_count
from hooke.plan.ring import Ring
from hooke.plan.script import advice_on_script
from hooke.plan.star import Star

__all__ = [
    "METHODS",
    "Advice",
    "Copy",
    "Measured",
    "PlanError",
    "Ring",
    "Row",
    "Star",
    "advice_on",
    "advice_on_script",
    "measure",
    "parse_bandwidth",
    "parse_count",
]
