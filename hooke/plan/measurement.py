"""Runs a user's script for its first steps, alone or several copies at once, and takes what it measured. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hooke.launch.folder import memory_folder
from hooke.launch.process import WorkerProcess, how_it_ended
from hooke.launch.request import LaunchError, check_script
from hooke.plan.quantity import PlanError
from hooke.run import Run

END_SECONDS = 5.0
"""How long a script may take to end once everything is measured."""

WAIT_SECONDS = 60.0
"""How long a script may take to its first step, unless the user says otherwise."""

SAY_SECONDS = 10.0
"""Between two lines that tell the user that it is still waited for."""

FEWEST_STEPS = 3

Say = Callable[[str], None]
"""Takes a line about how far the measuring is."""


def say_nothing(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Copy:
    """What one process of the script measured; as `hooke.rehearsal` writes it.

    Attributes:
        parameters: Values in the vector that is exchanged (averaged buffers and padding included).
        rule: Its class's name.
        rule_settings: Its plain settings.
        period: Steps between two exchanges.
        by_halves: Whether collection and delivery differ, or the spring pulls at every step.
        synchronous: Whether an exchange waits for all workers.
        overlap: Whether exchanges run beside the steps.
        steps: Optimizer steps taken in all.
        timed_steps: Those that were timed.
        step_seconds: Of a step without its exchange; mean without the fastest and slowest tenth.
        exchanges: Those that were timed.
        exchange_seconds: How long one held up the loop; median.
        batch: Examples a step, if the script records them.
        device: Where the parameters are.
        threads: Of torch.
        optimizer: Its class's name.
        lr: The largest learning rate among its groups, at the last step.
        lr_changes: Whether it was another at the first step.
        momentum: Of the first group.
        nesterov: Of the first group.
        weight_decay: The largest.
        curvatures: Top curvature of single batches, at the first steps and at the last; weight decay included, groups
            weighed by their learning rates.
        curvature_doubt: Largest part of a value by which it may miss an eigenvalue.
        curvature_failure: Why there are none; `None` where it was not asked for.
        automatic: Whether the period is chosen by measurement; `period` is the one before anything is measured.
    """

    parameters: int
    rule: str
    rule_settings: dict[str, Any]
    period: int
    by_halves: bool
    synchronous: bool
    overlap: bool
    steps: int
    timed_steps: int
    step_seconds: float | None
    exchanges: int
    exchange_seconds: float | None
    batch: float | None
    device: str
    threads: int
    optimizer: str
    lr: float
    lr_changes: bool
    momentum: float
    nesterov: bool
    weight_decay: float
    curvatures: list[list[float]]
    curvature_doubt: float
    curvature_failure: str | None
    automatic: bool = False

    def examples_per_second(self, period: int) -> float:
        """Examples a second with an exchange every `period` steps; steps where the batch is not known."""
        assert self.step_seconds is not None
        return (self.batch or 1) / (self.step_seconds + (self.exchange_seconds or 0.0) / period)


@dataclass(frozen=True)
class Measured:
    """A script's first steps on this machine: alone, and as several processes at once.

    Attributes:
        script: Its name.
        alone: One process that has the machine for itself.
        together: The processes at once; empty where they were not tried.
    """

    script: str
    alone: Copy
    together: tuple[Copy, ...] = ()

    @property
    def curvature(self) -> float | None:
        """The median over batches, at the first steps or the last, whichever is larger; `None` if there is none."""
        return max(map(statistics.median, self.alone.curvatures), default=None)

    def examples_per_second(self, workers: int, period: int) -> float | None:
        """Of one worker, or of as many as were tried at once, on this machine; `None` for others."""
        if workers == 1:
            return self.alone.examples_per_second(period)
        if workers != len(self.together):
            return None
        return sum(copy.examples_per_second(period) for copy in self.together)

    def to_dict(self, period: int) -> dict[str, Any]:
        """Plain numbers for `json.dumps`."""
        counts = sorted({1, len(self.together) or 1})
        return {
            "script": self.script,
            "alone": asdict(self.alone),
            "together": [asdict(copy) for copy in self.together],
            "here": [{"workers": p, "examples_per_second": self.examples_per_second(p, period)} for p in counts],
        }


def measure(
    script: str | Path,
    arguments: Sequence[str] = (),
    *,
    workers: int = 1,
    curvature: bool = True,
    wait: float = WAIT_SECONDS,
    say: Say = say_nothing,
) -> Measured:
    """Run the script's first steps: by one process, then, for several workers, by as many at once.

    What the script writes goes where it would go in a run, but for the run directory, which is a temporary one.

    Args:
        script: The user's script, with `hooke.Worker` in it.
        arguments: Its arguments.
        workers: How many processes at once.
        curvature: Whether to measure the curvature too, which can take longer than the rest.
        wait: Seconds from the start of a process to its first step, at most.
        say: Is told how far it is, line by line.

    Raises:
        PlanError: The script can't be measured.
    """
    if not 0 < wait < math.inf:
        raise PlanError(f"--wait must be above 0 and finite. Got {wait}. Use e.g. {WAIT_SECONDS:g}.")
    script = Path(script)
    try:
        check_script(script)
    except LaunchError as error:
        raise PlanError(str(error)) from None
    words = [str(script), *arguments]
    (alone,) = _copies(words, 1, curvature=curvature, wait=wait, say=say)
    together = _copies(words, workers, curvature=False, wait=wait, say=say) if workers > 1 else []
    return Measured(script.name, alone, tuple(together))


def _copies(words: Sequence[str], count: int, *, curvature: bool, wait: float, say: Say) -> list[Copy]:
    """What so many processes at once measure."""
    with tempfile.TemporaryDirectory(prefix="hooke-plan-") as folder, memory_folder() as memory:
        run = Run(
            directory=folder,
            center=str(memory / "center"),
            worker=0,
            num_workers=count,
            started=time.monotonic(),
            checkpoint_every=1e9,
            rehearses=True,
            curvature=curvature,
        )
        run.files.rehearsal(0).parent.mkdir()
        said: deque[str] = deque(maxlen=20)
        errors: deque[str] = deque(maxlen=20)  # pipes are read apart: a print may be heard after the traceback

        def hear(worker: int, lines: list[str], error: bool) -> None:
            told = [line for line in lines if line.strip()]
            said.extend(told)
            errors.extend(told if error else ())

        port = str(_free_port())
        workers = [
            WorkerProcess(dataclasses.replace(run, worker=number), words, hear, _as_torchrun_does(number, count, port))
            for number in range(count)
        ]
        with _started(workers):
            codes = _watched(workers, _Beginning(workers, words[0], said, wait, say))
        ended = sorted(
            zip(codes, workers, strict=True), key=lambda pair: pair[0] is None or not pair[0]
        )  # failed first
        copies = {worker.number: _result(worker, code, words[0], errors or said) for code, worker in ended}
        return [copies[number] for number in range(count)]


@contextlib.contextmanager
def _started(workers: Sequence[WorkerProcess]) -> Iterator[None]:
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        for worker in workers:
            worker.kill()
        while any(worker.alive() for worker in workers):
            time.sleep(0.005)


class _Beginning:
    """Waits for the first step of every process, and says so.

    Args:
        workers: The processes, started.
        script: Its name.
        said: The last lines that they wrote.
        wait: Seconds at most.
        say: Takes a line now and then.
    """

    def __init__(
        self, workers: Sequence[WorkerProcess], script: str, said: Sequence[str], wait: float, say: Say
    ) -> None:
        self._workers, self._script, self._said, self._wait, self._say = workers, script, said, wait, say
        self._count = "one process" if len(workers) == 1 else f"{len(workers)} processes at once"
        self._began = time.monotonic()
        self._next = SAY_SECONDS
        self._over = False
        say(f"{script}, {self._count}: waiting for the first step, at most {wait:g} s")

    def look(self) -> None:
        """See whether they train.

        Raises:
            PlanError: One of them takes too long.
        """
        if self._over:
            return
        seconds = time.monotonic() - self._began
        if all(_trains(worker) for worker in self._workers):
            self._over = True
            self._say(f"{self._script}, {self._count}: first step after {seconds:.0f} s, measuring")
        elif seconds > self._wait:
            raise PlanError(
                "SCRIPT must take its first step inside `with hooke.Worker(model, optimizer, rule)` within "
                f"{self._wait:g} seconds. Got {self._script}, which has not; its last line: {_last(self._said)}. Put "
                f"its loop there, or wait longer: --wait {10 * self._wait:g}."
            )
        elif seconds > self._next:
            self._next += SAY_SECONDS
            self._say(
                f"{self._script}, {self._count}: no step after {seconds:.0f} s; its last line: {_last(self._said)}"
            )


def _trains(worker: WorkerProcess) -> bool:
    files = worker.run.files
    return files.first_step(worker.number).exists() or files.rehearsal(worker.number).exists()


def _last(said: Sequence[str]) -> str:
    return said[-1].strip().rstrip(".") if said else "nothing"


def _watched(workers: Sequence[WorkerProcess], beginning: _Beginning) -> list[int | None]:
    """Each one's exit code, `None` where it went on: until all have ended or measured, or one can't any more."""
    codes: list[int | None] = [None] * len(workers)
    deadline = float("inf")
    while None in codes and time.monotonic() < deadline:
        for index, worker in enumerate(workers):
            if codes[index] is None and not worker.alive():
                codes[index] = worker.exit_code
        there = [worker.run.files.rehearsal(worker.number).exists() for worker in workers]
        if any(codes) or any(code == 0 and not file for code, file in zip(codes, there, strict=True)):
            break
        beginning.look()
        if all(there):
            deadline = min(deadline, time.monotonic() + END_SECONDS)
        time.sleep(0.02)
    return codes


def _result(worker: WorkerProcess, code: int | None, script: str, said: Sequence[str]) -> Copy:
    file = worker.run.files.rehearsal(worker.number)
    if code:
        raise PlanError(
            f"SCRIPT must run for its first steps. Got {script}, which {how_it_ended(code)}; its last line: "
            f"{_last(said)}. Repair it: python {script} shows more."
        )
    if not file.exists():
        raise PlanError(
            f"SCRIPT must train inside `with hooke.Worker(model, optimizer, rule)`. Got {script}, which ended without "
            "one. Put its loop there, or give --parameters, --step-seconds and the other numbers yourself."
        )
    copy = Copy(**json.loads(file.read_text(encoding="utf-8")))
    if copy.timed_steps < FEWEST_STEPS:
        raise PlanError(
            f"SCRIPT must take more steps, so that some can be timed. Got {script}, which ended after {copy.steps}. "
            "Let it take 50 or more."
        )
    return copy


def _as_torchrun_does(number: int, count: int, port: str) -> dict[str, str]:
    """For scripts with a `ReplicatedCenter`, which torchrun would start."""
    numbers = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
