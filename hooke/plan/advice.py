"""What `hooke plan` says: a star's speed beside a rule's stability, for one setting and other numbers of workers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hooke.plan.quantity import PlanError as PlanError
from hooke.plan.star import BITS, Star
from hooke.stability import BETA, PERIOD, Stability, elastic_stability, way_stability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {"easgd": "EASGD", "eamsgd": "EAMSGD", "downpour": "DOWNPOUR", "local-sgd": "Local SGD"}
"""What `--method` may be, and how it is spelled."""

WIDTHS = {"float32": BITS, "bfloat16": 16, "int8": 8, "int4": 4}
"""Bits of a value. Only float32 is sent today; the others are what a codec would send."""

MOST_WORKERS = 4096


@dataclass(frozen=True)
class Row:
    """One number of workers.

    Attributes:
        workers: p.
        is_stable: Whether the method is; `None` where learning rate or curvature is not known.
        border: Smallest learning rate times curvature that is not stable.
        speed_up: Examples a second, over one worker that never exchanges; exchanges hold up the worker.
        overlap_speed_up: The same where exchanges run beside the steps.
        overlap_period: Mean steps between two exchanges then.
        hiding_period: Smallest period whose exchanges stay hidden then.
        examples_per_second: Of all workers, exchanges holding them up; steps where the batch is not known.
        overlap_examples_per_second: The same with overlap.
        bytes_per_example: Sent and received by one worker, for each of its examples.
    """

    workers: int
    is_stable: bool | None
    border: float
    speed_up: float
    overlap_speed_up: float
    overlap_period: float
    hiding_period: int
    examples_per_second: float
    overlap_examples_per_second: float
    bytes_per_example: float


@dataclass(frozen=True)
class Advice:
    """What is known about one setting; made by `advice_on`, which says what its numbers mean."""

    star: Star
    workers: int
    method: str
    lr: float | None
    curvature: float | None
    momentum: float
    beta: float
    batch: int | None

    @property
    def is_judged(self) -> bool:
        """Whether learning rate and curvature are both known."""
        return self.lr is not None and self.curvature is not None

    @property
    def is_stable(self) -> bool | None:
        """Whether the method is stable here; `None`: not judged."""
        return self.stability().is_stable if self.is_judged else None

    def stability(self, workers: int | None = None, *, period: int | None = None, under_way: int = 1) -> Stability:
        """The method's stability where it is not said otherwise; learning rate and curvature are 1 if not known."""
        p = self.workers if workers is None else workers
        lr, curvature = (1.0 if value is None else value for value in (self.lr, self.curvature))
        tau = self.star.period if period is None else period
        if self.is_elastic:
            rate = min(1.0, self.beta / p)
            more = {"moving_rate": rate, "momentum": self.momentum, "steps_under_way": under_way}
            return elastic_stability(lr=lr, curvature=curvature, num_workers=p, period=tau, **more)
        share = 1.0 if self.method == "downpour" else 1 / p
        return way_stability(lr=lr, curvature=curvature, num_workers=p, period=tau, share=share)

    @property
    def is_elastic(self) -> bool:
        """Whether the method is a spring."""
        return self.method in ("easgd", "eamsgd")

    def overlap_border(self) -> float | None:
        """Border of lr * curvature where corrections arrive as late as an exchange takes; `None`: not known."""
        if not self.is_elastic:
            return None
        latest = self.star.hiding_period(self.workers)
        tau = max(latest, math.ceil(self.star.real_period(self.workers, overlap=True)))
        lates = {1, math.ceil(latest / 2), latest}
        return min(self.stability(period=tau, under_way=late).border for late in lates)

    def row(self, workers: int) -> Row:
        """The same setting with other workers."""
        star, batch, stability = self.star, self.batch or 1, self.stability(workers)
        return Row(
            workers,
            stability.is_stable if self.is_judged else None,
            stability.border,
            star.speed_up(workers),
            star.speed_up(workers, overlap=True),
            star.real_period(workers, overlap=True),
            star.hiding_period(workers),
            batch * star.steps_per_second(workers),
            batch * star.steps_per_second(workers, overlap=True),
            star.bytes_per_step(workers) / batch,
        )

    def rows(self) -> list[Row]:
        """1, 2, 4, ... up to 4096 workers, and the number asked for."""
        counts = {2**power for power in range(MOST_WORKERS.bit_length())} | {self.workers}
        return [self.row(workers) for workers in sorted(counts)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        stability = self.stability()
        judged = {"radius": stability.radius, "margin": stability.margin, "remedy": stability.remedy}
        setting = {name: getattr(self, name) for name in ("workers", "method", "lr", "curvature", "batch")}
        if self.is_elastic:
            setting |= {"beta": self.beta, "momentum": self.momentum}
        return {
            "setting": setting | asdict(self.star),
            "stability": {
                "is_stable": self.is_stable,
                "border": stability.border,
                "overlap_border": self.overlap_border(),
                **(judged if self.is_judged else dict.fromkeys(judged)),
            },
            "exchange": [self.exchange(name) for name in WIDTHS],
            "saturated_from": self.star.saturated_from,
            "rows": [asdict(row) for row in self.rows()],
        }

    def exchange(self, width: str) -> dict[str, Any]:
        """One exchange with values of that width."""
        star = replace(self.star, bits=WIDTHS[width])
        return {
            "values": width,
            "sent_today": WIDTHS[width] == BITS,
            "bytes_each_way": star.bytes_each_way,
            "seconds": star.exchange_seconds,
            "hiding_period": star.hiding_period(self.workers),
        }

    def __str__(self) -> str:
        from hooke.plan.table import table

        return table(self)

    def picture(self) -> Figure:
        """Speed-up against workers, and the border of lr * curvature against the period; needs matplotlib.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from hooke.plan.table import picture

        return picture(self)


def advice_on(
    *,
    parameters: int,
    workers: int,
    step_seconds: float,
    bandwidth: float,
    latency: float = 0.0,
    period: int = PERIOD,
    method: str = "easgd",
    lr: float | None = None,
    curvature: float | None = None,
    momentum: float | None = None,
    beta: float | None = None,
    batch: int | None = None,
) -> Advice:
    """Advice on a run from numbers alone.

    Args:
        parameters: Values in the model.
        workers: p.
        step_seconds: Of one optimizer step of one worker, on its own processor.
        bandwidth: Bit/s in each direction, of the center's link and of each worker's.
        latency: Seconds one way.
        period: Steps between two exchanges of a worker.
        method: One of `METHODS`.
        lr: Learning rate.
        curvature: Largest eigenvalue of the loss's Hessian.
        momentum: Of Nesterov SGD, for `eamsgd`. Default 0.9.
        beta: p alpha of an elastic method. Default 0.9.
        batch: Examples in a step; without it steps are counted.

    Raises:
        PlanError: A number outside its range, in one sentence.

    Example:
        >>> advice = advice_on(parameters=25_000_000, workers=8, step_seconds=0.1, bandwidth=1e9, lr=0.1, curvature=10)
        >>> advice.is_stable, round(advice.row(8).speed_up, 2), advice.row(8).hiding_period
        (True, 1.25, 64)
    """
    _check(method in METHODS, "--method", f"one of {', '.join(METHODS)}", method, "easgd")
    for option, count in (("--parameters", parameters), ("--workers", workers), ("--period", period)):
        _check(count >= 1, option, "1 or more", count, "10")
    _check(batch is None or batch >= 1, "--batch", "1 or more", batch, "64")
    amounts = {"--step-seconds": step_seconds, "--bandwidth": bandwidth, "--lr": lr, "--curvature": curvature}
    for option, amount in amounts.items():
        _check(amount is None or 0 < amount < math.inf, option, "above 0 and finite", amount, "0.1")
    _check(0 <= latency < math.inf, "--latency", "0 or more seconds, and finite", latency, "0.01")
    _check(momentum is None or 0 <= momentum < 1, "--momentum", "in [0, 1)", momentum, "0.9")
    _check(beta is None or 0 < beta <= 2, "--beta", "in (0, 2]", beta, "0.9")
    if momentum is not None and method != "eamsgd":
        raise PlanError(f"--momentum needs --method eamsgd. Got {method}. Drop it, or use eamsgd.")
    if beta is not None and method not in ("easgd", "eamsgd"):
        raise PlanError(f"--beta needs --method easgd or eamsgd. Got {method}. Drop it, or use one of them.")
    star = Star(parameters, step_seconds, bandwidth, latency, period)
    default = 0.9 if method == "eamsgd" else 0.0
    speed = default if momentum is None else momentum
    return Advice(star, workers, method, lr, curvature, speed, BETA if beta is None else beta, batch)


def _check(holds: bool, option: str, must: str, got: object, example: str) -> None:
    if not holds:
        raise PlanError(f"{option} must be {must}. Got {got}. Use e.g. {example}.")
