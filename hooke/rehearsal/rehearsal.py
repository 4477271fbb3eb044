"""What `hooke plan SCRIPT` measures inside the script's process: seconds of a step and of an exchange, top curvature.

First some steps that do not count. A process alone then measures the curvature on the script's own batches. Once every
copy of the script is that far come the steps that are timed; then some with an exchange after each, and the curvature
once more. Until all copies are done each goes on stepping, so that they share the machine as in a run.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooke.checkpoint import write_atomically
from hooke.rehearsal.curvature import Losses, top_eigenvalue
from hooke.run import FIRST_STEP, Run
from hooke.sentence import first_line

WARM_STEPS = 5
EXCHANGES = 5
BATCHES = 3
TIMED_STEPS, TIMED_SECONDS = 20, 2.0
"""At least both; of slow steps a few are enough (`SLOW_STEPS` after `SLOW_SECONDS`)."""
SLOW_STEPS, SLOW_SECONDS = 5, 30.0


class Rehearsal:
    """Follows one worker through its first steps.

    Args:
        run: The run, with `rehearses` set.
        optimizer: The user's.
        device: Where the parameters are.
        rule: What is exchanged.
        about: What else is known of the worker; goes into the result as it is.
        exchange: Makes an exchange now.
        examples: How many examples the script has said it used.
    """

    def __init__(
        self,
        run: Run,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        rule: object,
        about: dict[str, Any],
        *,
        exchange: Callable[[], None],
        examples: Callable[[], int],
    ) -> None:
        self._run, self._optimizer, self._device = run, optimizer, device
        self._about = _described(rule) | about
        self._exchange, self._examples = exchange, examples
        self._folder = run.files.rehearsal(run.worker).parent
        self._stage: Callable[[float], None] = self._warm
        self._next = self._stage
        self._left = 0
        self._steps = 0
        self._counted = (0, 0)  # steps and examples when the timing began
        self._batch: float | None = None
        self._seconds: list[float] = []
        self._waits: list[float] = []
        self._forced = 0
        self._owed = 0.0
        self._last = self._began = time.perf_counter()
        self._losses: Losses | None = None
        self._curvatures: list[list[float]] = []
        self._doubt = 0.0
        self._failure: str | None = None
        self._start: Tensor | None = None
        self._first_lr = _top_lr(optimizer)

    # Called by the worker -------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """The gradients are there, the parameters as they were when the loss was computed."""
        if self._losses is not None:
            self._measure_curvature(self._losses)

    def exchanged(self, seconds: float, *, failed: bool) -> None:
        """An exchange held up the loop for so long."""
        self._owed += seconds
        if self._stage in (self._timed, self._exchanging) and not failed:
            self._waits.append(seconds)

    def after_step(self) -> None:
        """The step and its exchange are done.

        Raises:
            SystemExit: Everything is measured; the script is to stop.
        """
        self._steps += 1
        if self._steps == 1:
            self._mark(FIRST_STEP)
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        now = time.perf_counter()
        self._stage(now - self._last - self._owed)
        self._last, self._owed = time.perf_counter(), 0.0

    def close(self) -> None:
        """Write down what was measured, if the script ends earlier than it was asked to."""
        self._stop_watching()
        if not self._result.exists():
            self._write()

    # Stages: each takes the seconds of one step ---------------------------------------------------------------------

    def _warm(self, seconds: float) -> None:
        if self._steps >= WARM_STEPS:
            self._curve_then(self._waiting)

    def _waiting(self, seconds: float) -> None:
        if self._agreed("ready"):
            self._stage, self._began = self._timed, time.perf_counter()
            self._counted = (self._steps, self._examples())

    def _timed(self, seconds: float) -> None:
        self._seconds.append(seconds)
        gone = time.perf_counter() - self._began
        enough = len(self._seconds) >= TIMED_STEPS and gone >= TIMED_SECONDS
        enough |= len(self._seconds) >= SLOW_STEPS and gone >= SLOW_SECONDS
        if not (self._agreed("enough") if self._about["synchronous"] and enough else enough):
            return
        steps, examples = self._steps - self._counted[0], self._examples() - self._counted[1]
        self._batch = examples / steps if examples else None
        self._stage = self._exchanging

    def _exchanging(self, seconds: float) -> None:
        if len(self._waits) < EXCHANGES and self._forced < EXCHANGES:
            self._forced += 1
            self._exchange()
            return
        if self._agreed("timed"):
            self._curve_then(self._ended)

    def _curve_then(self, stage: Callable[[float], None]) -> None:
        """Look at the next batches, if that is asked for and can be done, then go on with `stage`."""
        if not self._run.curvature or self._failure is not None:
            self._stage = stage
            return
        trained = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._losses = Losses(trained).__enter__()
        self._curvatures.append([])
        self._stage, self._left, self._next = self._curving, BATCHES, stage

    def _curving(self, seconds: float) -> None:
        assert self._losses is not None
        self._losses.clear()
        self._left -= 1
        if self._left == 0 or self._failure is not None:
            self._stop_watching()
            self._stage = self._next

    def _ended(self, seconds: float) -> None:
        self._write()
        raise SystemExit(0)

    def _stop_watching(self) -> None:
        if self._losses is not None:
            self._losses.__exit__()
            self._losses = None

    # Curvature ------------------------------------------------------------------------------------------------------

    def _measure_curvature(self, losses: Losses) -> None:
        if losses.failure is not None:
            self._failure = losses.failure
            return
        if not losses.seen:
            self._failure = "no backward() was seen before optimizer.step()"
            return
        try:
            scale, decay = self._shapes()
            gradient = losses.gradient()
            if not bool(gradient.isfinite().all()):
                self._failure = "the gradient is not finite"
                return
            factor = self._factor(gradient)
            start = _noise(gradient) if self._start is None else self._start
            value, error, self._start = top_eigenvalue(
                lambda v: (scale * losses.product(scale * v)).mul_(factor).add_(decay * v),
                start,
                tolerance=1e-2,  # the value is far nearer: its error goes with the square
                seconds=20.0,
            )
        except (RuntimeError, NotImplementedError) as error:
            self._failure = first_line(error, 200)
            return
        if not (math.isfinite(value) and value > 0):
            self._failure = f"no direction of this loss curves upward (largest eigenvalue {value:.3g})"
            return
        self._curvatures[-1].append(value)
        self._doubt = max(self._doubt, error / value)

    def _shapes(self) -> tuple[Tensor, Tensor]:
        """For each parameter: the root of its learning rate over the largest, and what weight decay adds."""
        top, scales, decays = _top_lr(self._optimizer), [], []
        for group in self._optimizer.param_groups:
            share = float(group.get("lr") or 0.0) / top if top else 1.0
            for parameter in group["params"]:
                if parameter.requires_grad:
                    flat = torch.empty(parameter.numel(), device=parameter.device)
                    scales.append(flat.clone().fill_(math.sqrt(share)))
                    decays.append(flat.fill_(share * float(group.get("weight_decay", 0.0))))
        return torch.cat(scales), torch.cat(decays)

    def _factor(self, gradient: Tensor) -> float:
        """What a scaled loss (mixed precision) must be multiplied by: a power of two, as the optimizer's gradient says.

        Clipped gradients are left as they are: the curvature is the loss's.
        """
        parts = [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1).float()
            for group in self._optimizer.param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        used = torch.cat(parts)
        ratio = float(used @ gradient) / max(float(gradient @ gradient), 1e-38)
        exact = ratio > 0 and abs(math.log2(ratio) - round(math.log2(ratio))) < 1e-3
        return 2.0 ** round(math.log2(ratio)) if exact else 1.0

    # The result -----------------------------------------------------------------------------------------------------

    @property
    def _result(self) -> Path:
        return self._run.files.rehearsal(self._run.worker)

    def _write(self) -> None:
        optimizer = self._optimizer
        first = optimizer.param_groups[0]
        result = self._about | {
            "steps": self._steps,
            "timed_steps": len(self._seconds),
            "step_seconds": _trimmed_mean(self._seconds) if self._seconds else None,
            "exchanges": len(self._waits),
            "exchange_seconds": statistics.median(self._waits) if self._waits else None,
            "batch": self._batch,
            "device": self._device.type,
            "threads": torch.get_num_threads(),
            "optimizer": type(optimizer).__name__,
            "lr": _top_lr(optimizer),
            "lr_changes": self._first_lr != _top_lr(optimizer),
            "momentum": float(first.get("momentum", 0.0)),
            "nesterov": bool(first.get("nesterov", False)),
            "weight_decay": max(float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups),
            "curvatures": [place for place in self._curvatures if place],
            "curvature_doubt": self._doubt,
            "curvature_failure": self._failure,
        }
        write_atomically(self._result, json.dumps(result).encode())

    def _mark(self, name: str) -> None:
        """Say to the other copies, once, at which step this one was that far."""
        file = self._folder / f"{self._run.worker}.{name}"
        if not file.exists():
            write_atomically(file, str(self._steps).encode())

    def _agreed(self, name: str) -> bool:
        """Whether all copies are that far.

        Ranks that exchange at once must go on after the same step, or one of them would wait for an exchange that the
        others never make: a period after the last one's mark each has met the others, and has seen all marks.
        """
        self._mark(name)
        files = [self._folder / f"{number}.{name}" for number in range(self._run.num_workers)]
        if not all(file.exists() for file in files):
            return False
        if not self._about["synchronous"]:
            return True
        return self._steps > max(int(file.read_text()) for file in files) + self._about["period"]


def _described(rule: object) -> dict[str, Any]:
    """A rule by name and plain settings; of one with a running average, the rule within."""
    within = getattr(rule, "rule", rule)
    settings = vars(within).items() if is_dataclass(within) else ()
    return {
        "rule": type(within).__name__,
        "rule_settings": {name: value for name, value in settings if isinstance(value, int | float | str | None)},
    }


def _top_lr(optimizer: torch.optim.Optimizer) -> float:
    """The largest learning rate; 0 where the optimizer has none."""
    return max(float(group.get("lr") or 0.0) for group in optimizer.param_groups)


def _noise(like: Tensor) -> Tensor:
    """Random numbers that leave the script's own random state as it was."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.numel(), generator=generator).to(like.device)


def _trimmed_mean(values: list[float]) -> float:
    """Without the fastest and the slowest tenth: an evaluation now and then, or another program, does not count."""
    kept = sorted(values)
    cut = len(kept) // 10
    return statistics.mean(kept[cut : len(kept) - cut])
