"""Six workers and a center on bad days: killed, stopped, cut off and restarted every few seconds. Does training end?

    python benchmarks/chaos.py [--minutes 5] [--workers 6] [--seed 0] [--every 3]

Each worker is a process that reaches the center through a proxy of its own; half of them exchange beside their steps.
The center is `hooke center`, which saves itself every two seconds. A supervisor starts again what has been killed, as
systemd or Kubernetes would; nothing else helps. The same training runs once in quiet and once with faults, drawn by the
seed. Step times are those of a worker that computes for 30 ms, mostly asleep, so that two cores carry them all.

What must hold, or it ends with an error: both trainings end; the loss of the center after faults is within a tenth of
the quiet one; no step of any worker was held up longer than the time-out of its exchanges. A row goes to
`results/chaos.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import machine
import torch
from torch import nn

import hooke

sys.path.append(str(Path(__file__).parents[1] / "tests" / "remote"))
from proxy import Proxy  # pyright: ignore[reportMissingImports]

TIMEOUT = 2.0
"""Seconds that one exchange of these workers may take."""

STEP_SECONDS = 0.03
PERIOD = 4
TOLERANCE = 0.25
"""Seconds by which a busy machine may wake a worker too late."""

FAULTS = (
    "kill a worker",
    "stop a worker",
    "cut a link",
    "cut a stream",
    "silence a link",
    "stop the center",
    "kill the center",
)


# What is learned ------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))


def examples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points, and what a network of another shape says of them."""
    torch.manual_seed(7)
    teacher = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    points = torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return points, teacher(points).argmax(1)


def judged(model: nn.Module) -> tuple[float, float]:
    """Loss and accuracy on points that no worker has seen."""
    points, labels = examples(4000, seed=1_000_000)
    with torch.no_grad():
        said = model(points)
    return nn.functional.cross_entropy(said, labels).item(), (said.argmax(1) == labels).float().mean().item()


# One worker -----------------------------------------------------------------------------------------------------------


class Stops:
    """How long this process stood still because it was sent SIGSTOP: nothing that a center could be blamed for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(0.02)
            now = time.monotonic()
            if now - last > 0.3:
                self.seconds += now - last
            last = now


def work(url: str, number: int, steps: int, seed: int, progress: Path) -> None:
    """Train up to `steps` steps, those of earlier lives included."""
    torch.set_num_threads(1)
    done = json.loads(progress.read_text()) if progress.exists() else {"steps": 0, "longest": 0.0, "lives": 0}
    done["lives"] += 1
    stops, model = Stops(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    points, labels = examples(20_000, seed=1 + number)
    chance = torch.Generator().manual_seed(1000 * seed + 10 * number + done["lives"])
    link = hooke.connect(url, codec="int8", timeout=TIMEOUT, wait=120.0, name=f"worker {number}")
    with hooke.Worker(
        model, optimizer, hooke.EASGD(), center=link, communication_period=PERIOD, overlap=number % 2 == 1
    ):
        while done["steps"] < steps:
            batch = torch.randint(len(points), (64,), generator=chance)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(points[batch]), labels[batch]).backward()
            before, began = stops.seconds, time.monotonic()
            optimizer.step()
            took = time.monotonic() - began
            if took > 0.3:
                time.sleep(0.1)  # until the ticks are counted
            done["steps"] += 1
            done["longest"] = max(done["longest"], took - (stops.seconds - before if took > 0.3 else 0.0))
            if done["steps"] % 10 == 0 or took > 0.3:
                write(progress, done)
            time.sleep(max(0.0, STEP_SECONDS - took))
    write(progress, {**done, "finished": True})


def write(path: Path, plain: dict[str, Any]) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(plain))
    beside.rename(path)


# All of them ----------------------------------------------------------------------------------------------------------


class Kept:
    """A process that is started again when it has been killed."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment())

    def again_if_killed(self) -> None:
        """Start it again, if that is what happened."""
        if self.process.poll() is not None and self.process.returncode == -signal.SIGKILL:
            self._start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    @property
    def has_failed(self) -> bool:
        """Whether it gave up by itself."""
        return self.process.poll() not in (None, 0, -signal.SIGKILL)

    def end(self) -> None:
        """Ask it to end, and wait; kill it if it does not."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }


class Town:
    """A center, its workers and the links between them."""

    def __init__(self, stack: ExitStack, folder: Path, *, workers: int, steps: int, seed: int) -> None:
        self.port = free_port()
        listen = ["--listen", f"127.0.0.1:{self.port}", "--out", str(folder / "center"), "--checkpoint-every", "2"]
        command = [sys.executable, "-m", "hooke.cli", "center", *listen]
        self.folder, self.center = folder, Kept(command, folder / "center.log")
        stack.callback(self.center.end)
        self.proxies = [stack.enter_context(Proxy(self.port)) for _ in range(workers)]
        self.workers, self.progress = [], [folder / f"worker{number}.json" for number in range(workers)]
        for number, proxy in enumerate(self.proxies):
            about = [proxy.url, str(number), str(steps), str(seed), str(self.progress[number])]
            made = Kept([sys.executable, __file__, "--work", *about], folder / f"worker{number}.log")
            self.workers.append(made)
            stack.callback(made.end)

    def reports(self) -> list[dict[str, Any]]:
        """What each worker has written down; nothing from one that has not begun."""
        return [json.loads(path.read_text()) if path.exists() else {} for path in self.progress]

    @property
    def has_ended(self) -> bool:
        """Whether every worker has taken its steps."""
        return all(report.get("finished") for report in self.reports())

    def tend(self) -> None:
        """What a supervisor does."""
        for kept in (self.center, *self.workers):
            kept.again_if_killed()
            if kept.has_failed:
                raise SystemExit(f"chaos: a process gave up. {self.logs()}")

    def logs(self) -> str:
        """The end of what each process has printed."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))

    def harm(self, fault: str, dice: random.Random) -> None:
        """Do one fault; those that last end by themselves."""
        number = dice.randrange(len(self.workers))
        worker, proxy, seconds = self.workers[number], self.proxies[number], dice.uniform(1.0, 5.0)

        def later(end: Any, *args: Any) -> None:
            timer = threading.Timer(seconds, end, args)
            timer.daemon = True
            timer.start()

        if fault == "kill a worker":
            worker.send(signal.SIGKILL)
        elif fault == "kill the center":
            self.center.send(signal.SIGKILL)
        elif fault in ("stop a worker", "stop the center"):
            kept = worker if fault == "stop a worker" else self.center
            kept.send(signal.SIGSTOP)
            later(kept.send, signal.SIGCONT)
        elif fault == "cut a link":
            proxy.cut()
        elif fault == "cut a stream":
            proxy.cut_after(**{dice.choice(("up", "down")): dice.randrange(1, 30_000)})
        else:
            proxy.is_silent = True
            later(setattr, proxy, "is_silent", False)

    def judged(self) -> tuple[float, float]:
        """Loss and accuracy of the center."""
        model = network()
        link = hooke.connect(f"grpc://127.0.0.1:{self.port}", wait=30.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with hooke.Worker(model, optimizer, hooke.EASGD(), center=link):
            return judged(model)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def run(
    *,
    workers: int,
    steps: int,
    seed: int,
    every: float,
    longest: float,
    faults: tuple[str, ...] = FAULTS,
    rounds: float = math.inf,
) -> dict[str, Any]:
    """Train to the end, with faults or, without any, in quiet; what came of it.

    Args:
        workers: How many.
        steps: Of each worker.
        seed: Of faults and batches.
        every: Mean seconds between two faults.
        longest: Seconds after which it has not ended.
        faults: Which. Empty: none.
        rounds: How often each of them. Default: until training ends.
    """
    dice, count, began = random.Random(seed), Counter[str](), time.monotonic()
    bag: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hooke-chaos-")))
        town = Town(stack, folder, workers=workers, steps=steps, seed=seed)
        while not all(town.reports()):  # quiet until all have begun
            check_time(began, longest, town)
        started = due = time.monotonic()
        while not town.has_ended:
            if faults and count.total() < rounds * len(faults) and time.monotonic() >= due:
                if not bag:
                    bag = dice.sample(faults, len(faults))  # each kind as often as the others
                fault = bag.pop()
                town.harm(fault, dice)
                count[fault] += 1
                due = time.monotonic() + dice.uniform(0.5, 1.5) * every
            check_time(began, longest, town)
        seconds = time.monotonic() - started
        town.center.send(signal.SIGCONT)
        loss, accuracy = town.judged()
        reports = town.reports()
        return {
            "seconds": round(seconds, 1),
            "loss": loss,
            "accuracy": accuracy,
            "longest_blocked": max(report["longest"] for report in reports),
            "worker_starts": [worker.starts for worker in town.workers],
            "center_starts": town.center.starts,
            "faults": dict(count),
        }


def check_time(began: float, longest: float, town: Town) -> None:
    town.tend()
    time.sleep(0.2)
    if time.monotonic() - began > longest:
        raise SystemExit(f"chaos: training must end within {longest:g} seconds. Got none. {town.logs()}")


def verdict(quiet: dict[str, Any], chaos: dict[str, Any]) -> list[str]:
    """What does not hold, in words."""
    wrong = []
    if abs(chaos["loss"] / quiet["loss"] - 1) > 0.1 and chaos["loss"] > quiet["loss"]:
        wrong.append(f"the loss is {chaos['loss']:.3f}, in quiet {quiet['loss']:.3f}")
    if chaos["longest_blocked"] > TIMEOUT + TOLERANCE:
        wrong.append(f"a step was held up for {chaos['longest_blocked']:.2f} s, its time-out is {TIMEOUT} s")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=3.0)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        url, number, steps, seed, progress = given.work
        work(url, int(number), int(steps), int(seed), Path(progress))
        return
    seconds = 60 * given.minutes
    plan = {"workers": given.workers, "steps": int(seconds / STEP_SECONDS / 2), "seed": given.seed}
    quiet = run(**plan, every=given.every, longest=3 * seconds + 60, faults=())
    chaos = run(**plan, every=given.every, longest=4 * seconds + 60)
    row = {**plan, "every": given.every, "timeout": TIMEOUT, "period": PERIOD, "quiet": quiet, "chaos": chaos}
    print(json.dumps(row, indent=1))
    wrong = verdict(quiet, chaos)
    if wrong:
        raise SystemExit(f"chaos: {'; '.join(wrong)}")
    machine.append("chaos", row)


if __name__ == "__main__":
    main()
