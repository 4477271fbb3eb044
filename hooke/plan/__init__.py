"""What a run would bring before it is started: stable or not, seconds and bytes of an exchange, speed-up. No torch."""

from hooke.plan.advice import METHODS, Advice, PlanError, Row, advice_on
from hooke.plan.quantity import parse_bandwidth, parse_count
from hooke.plan.star import Star

__all__ = ["METHODS", "Advice", "PlanError", "Row", "Star", "advice_on", "parse_bandwidth", "parse_count"]
