"""What `hooke plan` says: a network's speed beside a rule's stability, for one setting and other numbers of workers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hooke.plan.quantity import PlanError as PlanError
from hooke.plan.ring import Ring
from hooke.plan.star import WIDTHS, Star
from hooke.stability import BETA, PERIOD, Stability, elastic_stability, outer_stability, way_stability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hooke.plan.measurement import Measured

METHODS = {
    "easgd": "EASGD",
    "eamsgd": "EAMSGD",
    "downpour": "DOWNPOUR",
    "local-sgd": "Local SGD",
    "lookahead": "Lookahead",
    "slowmo": "SlowMo",
    "diloco": "DiLoCo",
}
"""What `--method` may be, and how it is spelled."""

CENTERS = {"star": "one center, workers exchange one by one", "replicated": "a copy on each rank, all exchange at once"}
"""What `--center` may be: as `hooke.LocalCenter` is used, or `hooke.ReplicatedCenter`."""

ELASTIC = ("easgd", "eamsgd")
OUTER = {"lookahead": (0.5, 0.0), "slowmo": (1.0, 0.5), "diloco": (0.7, 0.9)}
"""Methods with an outer optimizer, and its learning rate and momentum if none are given."""

MOST_WORKERS = 4096


@dataclass(frozen=True)
class Row:
    """One number of workers.

    Attributes:
        workers: p.
        is_stable: Whether the method is; `None` where it is not judged.
        border: Smallest learning rate times curvature that is not stable; `None` where no border is known.
        speed_up: Examples a second, over one worker that never exchanges; exchanges hold up the worker.
        overlap_speed_up: The same where exchanges run beside the steps; `None` where ranks exchange at once.
        overlap_period: Mean steps between two exchanges then.
        hiding_period: Smallest period whose exchanges stay hidden then; where ranks exchange at once, smallest one at
            which they wait no more than a tenth of their time.
        examples_per_second: Of all workers, exchanges holding them up; steps where the batch is not known.
        overlap_examples_per_second: The same with overlap.
        bytes_per_example: Sent and received by one worker, for each of its examples.
    """

    workers: int
    is_stable: bool | None
    border: float | None
    speed_up: float
    overlap_speed_up: float | None
    overlap_period: float | None
    hiding_period: int
    examples_per_second: float
    overlap_examples_per_second: float | None
    bytes_per_example: float


@dataclass(frozen=True)
class Advice:
    """What is known about one setting; made by `advice_on`, which says what its numbers mean, or `advice_on_script`.

    Attributes:
        network: Who sends what to whom, and how fast.
        workers: p.
        method: One of `METHODS`, or another rule's name.
        lr: Learning rate, if it is known.
        curvature: Largest eigenvalue of the loss's Hessian, if it is known.
        momentum: Of Nesterov SGD.
        beta: p alpha of an elastic method.
        batch: Examples in a step, if it is known.
        moving_rate: alpha of an elastic method, where it does not follow the number of workers.
        order: Of an elastic method.
        outer_lr: Of the outer optimizer, where there is one.
        outer_momentum: Its momentum.
        unjudged: Why stability is not judged, beside missing numbers; empty if it can be.
        measured: What a script's first steps told, if one was measured.
    """

    network: Star | Ring
    workers: int
    method: str
    lr: float | None
    curvature: float | None
    momentum: float
    beta: float
    batch: float | None
    moving_rate: float | None = None
    order: str = "jacobi"
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    unjudged: str = ""
    measured: Measured | None = None

    @property
    def title(self) -> str:
        """The method as people spell it."""
        return METHODS.get(self.method, self.method)

    @property
    def is_judged(self) -> bool:
        """Whether the method's border, the learning rate and the curvature are all known."""
        return self.lr is not None and self.curvature is not None and self.has_border

    @property
    def is_stable(self) -> bool | None:
        """Whether the method is stable here; `None`: not judged."""
        return self.stability().is_stable if self.is_judged else None

    @property
    def has_border(self) -> bool:
        """Whether it is known which settings are stable."""
        return not self.unjudged

    @property
    def at_once(self) -> bool:
        """Whether all workers exchange at once."""
        return isinstance(self.network, Ring)

    def stability(self, workers: int | None = None, *, period: int | None = None, late: int | None = None) -> Stability:
        """The method's stability; learning rate and curvature are 1 if not known.

        Args:
            workers: p, if not the one asked for.
            period: tau, if not the one asked for.
            late: Steps between an exchange's beginning and its correction, where it overlaps them.

        Raises:
            ValueError: The method has no border.
        """
        if not self.has_border:
            raise ValueError(f"Advice: stability needs a method with a known border. {self.unjudged}")
        p = self.workers if workers is None else workers
        lr, curvature = (1.0 if value is None else value for value in (self.lr, self.curvature))
        tau = self.network.period if period is None else period
        setting: dict[str, Any] = {"lr": lr, "curvature": curvature, "num_workers": p, "period": tau}
        if self.is_elastic:
            rate = self.moving_rate or min(1.0, self.beta / p)
            under_way = (1 if self.order == "jacobi" else 0) if late is None else late
            more = {"moving_rate": rate, "momentum": self.momentum, "steps_under_way": under_way}
            return elastic_stability(**setting, **more, synchronous=self.at_once)
        if self.method in ("slowmo", "diloco"):
            outer: dict[str, Any] = {"outer_lr": self.outer_lr, "outer_momentum": self.outer_momentum}
            return outer_stability(**setting, **outer, nesterov=self.method == "diloco")
        share = 1.0 if self.method == "downpour" else self.outer_lr / p
        return way_stability(**setting, share=share, synchronous=self.at_once)

    @property
    def is_elastic(self) -> bool:
        """Whether the method is a spring."""
        return self.method in ELASTIC

    def overlap_border(self) -> float | None:
        """Border of lr * curvature where corrections arrive as late as an exchange takes; `None`: not known."""
        if not self.is_elastic or not self.has_border or isinstance(self.network, Ring):
            return None
        latest = self.network.hiding_period(self.workers)
        tau = max(latest, math.ceil(self.network.real_period(self.workers, overlap=True)))
        lates = {1, math.ceil(latest / 2), latest}
        return min(self.stability(period=tau, late=late).border for late in lates)

    def row(self, workers: int) -> Row:
        """The same setting with other workers."""
        network, batch = self.network, self.batch or 1
        stability = self.stability(workers) if self.has_border else None
        overlap: tuple[float | None, ...] = (None, None, None)
        if isinstance(network, Star):
            speed_up = network.speed_up(workers, overlap=True)
            steps = network.steps_per_second(workers, overlap=True)
            overlap = speed_up, network.real_period(workers, overlap=True), batch * steps
        return Row(
            workers=workers,
            is_stable=stability.is_stable if stability is not None and self.is_judged else None,
            border=None if stability is None else stability.border,
            speed_up=network.speed_up(workers),
            overlap_speed_up=overlap[0],
            overlap_period=overlap[1],
            hiding_period=network.hiding_period(workers),
            examples_per_second=batch * network.steps_per_second(workers),
            overlap_examples_per_second=overlap[2],
            bytes_per_example=network.bytes_per_step(workers) / batch,
        )

    def rows(self) -> list[Row]:
        """1, 2, 4, ... up to 4096 workers, and the number asked for."""
        counts = {2**power for power in range(MOST_WORKERS.bit_length())} | {self.workers}
        return [self.row(workers) for workers in sorted(counts)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        stability = self.stability() if self.has_border else None
        judged = {"radius": None, "margin": None, "remedy": None}
        if stability is not None and self.is_judged:
            judged = {"radius": stability.radius, "margin": stability.margin, "remedy": stability.remedy}
        names = ["workers", "method", "lr", "curvature", "batch"]
        names += ["beta", "moving_rate", "momentum", "order"] if self.is_elastic else []
        names += ["outer_lr", "outer_momentum"] if self.method in OUTER else []
        setting = {name: getattr(self, name) for name in names}
        return {
            "setting": setting | {"center": "replicated" if self.at_once else "star"} | asdict(self.network),
            "stability": {
                "is_stable": self.is_stable,
                "unjudged": self.unjudged or None,
                "border": None if stability is None else stability.border,
                "overlap_border": self.overlap_border(),
                **judged,
            },
            "exchange": [self.exchange(name) for name in WIDTHS],
            "saturated_from": self.network.saturated_from if isinstance(self.network, Star) else None,
            "rows": [asdict(row) for row in self.rows()],
            "measured": None if self.measured is None else self.measured.to_dict(self.network.period),
        }

    def exchange(self, codec: str) -> dict[str, Any]:
        """One exchange with values as that codec writes them; ranks that exchange at once have none but float32."""
        network = replace(self.network, bits=WIDTHS[codec])
        return {
            "values": codec,
            "bits": network.bits,
            "is_there": codec == "float32" or not self.at_once,
            "bytes_each_way": network.sent_bytes(self.workers),
            "seconds": network.wait_seconds(self.workers),
            "hiding_period": network.hiding_period(self.workers),
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
    center: str = "star",
    lr: float | None = None,
    curvature: float | None = None,
    momentum: float | None = None,
    beta: float | None = None,
    outer_lr: float | None = None,
    outer_momentum: float | None = None,
    batch: float | None = None,
) -> Advice:
    """Advice on a run from numbers alone.

    Args:
        parameters: Values in the model.
        workers: p.
        step_seconds: Of one optimizer step of one worker, on its own processor.
        bandwidth: Bit/s in each direction, of each worker's link and, where there is one, of the center's.
        latency: Seconds one way.
        period: Steps between two exchanges of a worker.
        method: One of `METHODS`.
        center: One of `CENTERS`.
        lr: Learning rate.
        curvature: Largest eigenvalue of the loss's Hessian.
        momentum: Of Nesterov SGD, for `eamsgd`. Default 0.9.
        beta: p alpha of an elastic method. Default 0.9.
        outer_lr: Of the outer optimizer: alpha of `lookahead` (default 0.5), `slow_lr` of `slowmo` (1), `outer_lr` of
            `diloco` (0.7).
        outer_momentum: Of `slowmo` (default 0.5) and `diloco` (0.9).
        batch: Examples in a step; without it steps are counted.

    Raises:
        PlanError: A number outside its range, in one sentence.

    Example:
        >>> advice = advice_on(parameters=25_000_000, workers=8, step_seconds=0.1, bandwidth=1e9, lr=0.1, curvature=10)
        >>> advice.is_stable, round(advice.row(8).speed_up, 2), advice.row(8).hiding_period
        (True, 1.25, 64)
    """
    _check(method in METHODS, "--method", f"one of {', '.join(METHODS)}", method, "easgd")
    _check(center in CENTERS, "--center", f"one of {', '.join(CENTERS)}", center, "star")
    for option, count in (("--parameters", parameters), ("--workers", workers), ("--period", period)):
        _check(count >= 1, option, "1 or more", count, "10")
    _check(batch is None or batch >= 1, "--batch", "1 or more", batch, "64")
    amounts = {"--step-seconds": step_seconds, "--bandwidth": bandwidth, "--lr": lr, "--curvature": curvature}
    for option, amount in {**amounts, "--outer-lr": outer_lr}.items():
        _check(amount is None or 0 < amount < math.inf, option, "above 0 and finite", amount, "0.1")
    _check(0 <= latency < math.inf, "--latency", "0 or more seconds, and finite", latency, "0.01")
    for option, speed in (("--momentum", momentum), ("--outer-momentum", outer_momentum)):
        _check(speed is None or 0 <= speed < 1, option, "in [0, 1)", speed, "0.9")
    _check(beta is None or 0 < beta <= 2, "--beta", "in (0, 2]", beta, "0.9")
    _check_fits("--momentum", momentum, method, ("eamsgd",))
    _check_fits("--beta", beta, method, ELASTIC)
    _check_fits("--outer-lr", outer_lr, method, tuple(OUTER))
    _check_fits("--outer-momentum", outer_momentum, method, ("slowmo", "diloco"))
    kind = Ring if center == "replicated" else Star
    default = 0.9 if method == "eamsgd" else 0.0
    outer = OUTER.get(method, (1.0, 0.0))
    return Advice(
        network=kind(parameters, step_seconds, bandwidth, latency, period),
        workers=workers,
        method=method,
        lr=lr,
        curvature=curvature,
        momentum=default if momentum is None else momentum,
        beta=BETA if beta is None else beta,
        batch=batch,
        outer_lr=outer[0] if outer_lr is None else outer_lr,
        outer_momentum=outer[1] if outer_momentum is None else outer_momentum,
        unjudged=no_border(method, center),
    )


def no_border(method: str, center: str) -> str:
    """Why no border of the method is known there; empty if one is."""
    if method not in METHODS:
        return f"No border of stability is known for {method}: judge it by a short run."
    if method in ("slowmo", "diloco") and center == "star":
        return f"The stability of {METHODS[method]} is known where all exchange at once: use --center replicated."
    return ""


def _check_fits(option: str, value: object, method: str, methods: tuple[str, ...]) -> None:
    if value is not None and method not in methods:
        names = " or ".join(methods) if len(methods) < 3 else f"{', '.join(methods[:-1])} or {methods[-1]}"
        use = f"use {methods[0]}" if len(methods) == 1 else "use one of them"
        raise PlanError(f"{option} needs --method {names}. Got {method}. Drop it, or {use}.")


def _check(holds: bool, option: str, must: str, got: object, example: str) -> None:
    if not holds:
        raise PlanError(f"{option} must be {must}. Got {got}. Use e.g. {example}.")
