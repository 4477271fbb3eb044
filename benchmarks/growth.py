"""What growth costs: one to ten thousand simulated workers around one center, a sharded one, or a tree of centers.

    python benchmarks/growth.py [--workers 1 4 16 ...] [--speed]

Everything but `--speed` is virtual time, the same on every machine. Each row is one layout, link and number of workers:
how busy the busiest link is, how old the center's knowledge is, how much faster p workers step than one, and after how
many seconds the center of EASGD is within a given error of the minimum of a noisy quadratic, at the learning rate that
would be best if the workers never differed. Rows that are in the record are not made again. `--speed` measures the
simulator itself: the seconds that a million exchanges of ten thousand workers take.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import machine
import numpy as np

from hooke.simulate import Bowl, Cluster, Descent, Tree, TreeDescent, timeline, tree_timeline

VALUES, STEP, JITTER, PERIOD, BETA = 25_000_000, 0.1, 0.1, 10, 0.9
TRANSFER_BITS = 32 * VALUES
LINKS = (1e10, 1e11)
WORKERS = (4, 16, 64, 256, 1024, 10_000)
CURVATURES, SIGMA, START, ERROR = tuple(np.geomspace(0.02, 1, 16).tolist()), 3.0, 4.0, 0.01
COPIES = 16  # of each direction, so that the loss, averaged over them, says little of luck
LAYOUTS = ("star", "star, overlap", "8 shards", "64 shards", "tree, multi-scale", "tree, up/down")
MOST = 3_000_000  # messages of a run; whoever has not arrived by then never does


class Look(NamedTuple):
    """What was seen at one moment: the loss, the age of the center, the steps of all workers."""

    now: float
    excess: float
    age: float
    steps: float


class Layout:
    """One way to join p workers: its events, and what they do to the numbers of a bowl and to the age of the center."""

    def __init__(self, name: str, workers: int, link: float) -> None:
        self.name, self.workers, self.link = name, workers, link
        self.transfer = TRANSFER_BITS / link
        self.shards = int(name.split()[0]) if "shards" in name else 1
        self.overlap = "overlap" in name
        round_trip = max(2 * self.transfer, workers * self.transfer / self.shards)
        hidden = int(np.ceil(round_trip / STEP * 1.1))  # with room for the jitter, so that nothing is missed
        self.period = max(PERIOD, hidden) if self.overlap else PERIOD
        jitter = JITTER if self.period <= 1000 else 0.0  # over longer periods it averages out
        self.cluster = Cluster(workers, STEP, jitter=jitter, bandwidth=link, shards=self.shards)
        self.alpha, self.known = min(1.0, BETA / workers), 0.0  # known: the mean moment of what the center knows
        self.busy = self.steps = 0.0

    def events(self, seconds: float) -> Iterator[Any]:
        """In order of time."""
        return timeline(
            self.cluster, values=VALUES, communication_period=self.period, seconds=seconds, overlap=self.overlap
        )

    def descent(self, bowl: Bowl, start: np.ndarray) -> Any:
        """What the events do to the center."""
        return Descent(bowl, self.workers, start=start.tolist(), beta=BETA)

    def now(self, event: Any) -> float:
        """When an event happens."""
        return event.absorbed

    def note(self, event: Any) -> None:
        """Add up steps and busy seconds, and move the center's knowledge."""
        self.steps += len(event.ran.ends)
        if event.kind == "exchange":
            self.known += self.alpha * (event.begun - self.known)
            self.busy += self.transfer / self.shards


class InTree(Layout):
    """The leaves of a tree, which never wait."""

    def __init__(self, name: str, workers: int, link: float) -> None:
        super().__init__(name, workers, link)
        self.tree = Tree.multi_scale(workers) if "scale" in name else Tree.up_down(workers)
        self.alpha = BETA / (self.tree.degree + 1)
        nodes = sum(self.tree.sizes)
        self.moments, self.under_way = [0.0] * nodes, dict[tuple[int, int], float]()
        self.carried = [0.0] * nodes, [0.0] * nodes  # seconds of each node's link, in and out

    def events(self, seconds: float) -> Iterator[Any]:
        """In order of time."""
        return tree_timeline(self.cluster, self.tree, values=VALUES, seconds=seconds)

    def descent(self, bowl: Bowl, start: np.ndarray) -> Any:
        """What the events do to the center."""
        return TreeDescent(bowl, self.tree, start=start.tolist(), beta=BETA)

    def now(self, event: Any) -> float:
        """When an event happens."""
        return event.at

    def note(self, event: Any) -> None:
        """Add up the seconds of each link, and move each node's knowledge."""
        source, target = event.source, event.target
        if event.kind == "sent":
            leaf = source < self.workers
            self.under_way[source, target] = event.at if leaf else self.moments[source]
            self.steps += self.tree.up[0] * leaf
            self.carried[1][source] += self.transfer
            self.busy = max(self.busy, self.carried[1][source])
        elif event.kind == "received":
            self.moments[target] += self.alpha * (self.under_way.pop((source, target)) - self.moments[target])
            self.known = self.moments[-1]
            self.carried[0][target] += self.transfer
            self.busy = max(self.busy, self.carried[0][target])
        elif source < self.workers:
            self.steps += self.tree.up[0]


class Alone(Layout):
    """One worker without a center: the "center" is its own parameters."""

    def descent(self, bowl: Bowl, start: np.ndarray) -> Any:
        """What the events do to the one worker."""
        return Descent(bowl, 1, method="local-sgd", start=start.tolist())


def layout(name: str, workers: int, link: float) -> Layout:
    kind = InTree if "tree" in name else Alone if name == "alone" else Layout
    return kind(name, workers, link)


def rate(workers: int) -> float:
    """The learning rate, up to 1, whose mean of p workers, if they never differed, is soonest within the error."""
    candidates = 2.0 ** -np.arange(0, 16, 0.25)
    return float(min(candidates, key=lambda lr: ideal_steps(workers, lr)))


def ideal_steps(workers: int, lr: float) -> float:
    """Steps of SGD with 1 / p of the variance until the expected loss is within the error, or infinity."""
    h = np.array(CURVATURES)
    e = lr * h
    steps = np.geomspace(1, 1e7, 4000)[:, None]
    faded = np.exp(2 * steps * np.log1p(-np.minimum(e, 1 - 1e-12)))
    start = 2 * START / len(h) / h
    loss = (h / 2 * (start * faded + (lr * SIGMA) ** 2 / workers * (1 - faded) / (e * (2 - e)))).sum(1)
    within = np.flatnonzero(loss <= ERROR)
    return float(steps[within[0], 0]) if within.size else math.inf


def row(name: str, workers: int, link: float) -> dict[str, Any]:
    """A run until the median of three looks (each after 2% more time) is within the error; means of its second half."""
    made, lr = layout(name, workers, link), rate(workers)
    h = np.repeat(CURVATURES, COPIES)
    run = made.descent(Bowl(h.tolist(), SIGMA, lr), np.sqrt(2 * START / len(CURVATURES) / h))
    looks, next_look, within = [Look(0.0, START, 0.0, 0.0)] * 3, 0.0, False
    for count, event in enumerate(made.events(1e9)):
        now = made.now(event)
        if now >= next_look:
            looks.append(Look(now, run.excess / COPIES, now - made.known, made.steps))
            within = statistics.median(look.excess for look in looks[-3:]) <= ERROR
            if within or count > MOST or looks[-1].excess > 100 * START:
                break
            next_look = now + max(STEP, 0.02 * now)
        run.absorb(event)
        made.note(event)
    end = looks[-1]
    late = [look for look in looks if look.now >= end.now / 2]
    return {
        "section": "growth", "layout": name, "workers": workers, "link": link, "period": made.period, "lr": lr,
        "load": made.busy / end.now if math.isfinite(link) else 0.0,
        "age": statistics.fmean(look.age for look in late),
        "speed_up": (end.steps - late[0].steps) * STEP / (end.now - late[0].now),
        "seconds_to_error": end.now if within else None,
    }  # fmt: skip


def speed() -> dict[str, Any]:
    """Seconds of a million exchanges of ten thousand workers: the clock alone, and with the numbers of a bowl.

    Seconds of one processor, which other work on the machine lengthens less than those by the clock.
    """
    found: dict[str, Any] = {"section": "speed", "workers": 10_000, "exchanges": 1_000_000, "load": os.getloadavg()[0]}
    made = layout("star", 10_000, 1e13)
    for what in ("timeline", "with numbers"):
        run = made.descent(Bowl(CURVATURES, SIGMA, 0.1), np.ones(len(CURVATURES)))
        began, exchanges = (time.process_time(), time.perf_counter()), 0
        for event in made.events(1e9):
            if what != "timeline":
                run.absorb(event)
            exchanges += event.kind == "exchange"
            if exchanges == found["exchanges"]:
                break
        found[what] = time.process_time() - began[0]
        found[f"{what}, by the clock"] = time.perf_counter() - began[1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    if arguments.speed:
        machine.append("growth", speed())
        return
    record = machine.read(machine.RESULTS / "growth.jsonl")
    made = {(each["layout"], each["workers"], each["link"]) for each in record if each["section"] == "growth"}
    for name, workers, link in cells(arguments.workers):
        if (name, workers, link) not in made:
            began = time.perf_counter()
            new = row(name, workers, link)
            machine.append("growth", new)
            print(new, f"{time.perf_counter() - began:.1f} s", flush=True)


def cells(workers: Sequence[int]) -> Iterator[tuple[str, int, float]]:
    """All rows that the record should have."""
    yield "alone", 1, math.inf
    for count, link, name in itertools.product(workers, LINKS, LAYOUTS):
        if count >= (16 if "tree" in name else 2):
            yield name, count, link


if __name__ == "__main__":
    main()
