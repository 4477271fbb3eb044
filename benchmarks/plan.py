"""What `hooke plan` predicts against what is measured: on this machine, and over links that carry little.

    python benchmarks/plan.py [--rounds 5] [--here] [--links] [--star]

here    examples/s of one and of two workers of benchmarks/planned.py under `hooke run`, in alternation with the plan's
        own measurement.
links   the same script by two ranks with a `hooke.ReplicatedCenter`, each in a network namespace, the cable between
        them slowed down. The step's time is what the plan measures for two at once.
star    workers that sleep for their steps, then send a vector to a center and get one back, by plain sockets; so there
        may be more workers than cores, and the formula alone is tried.

The last two need root. Without a word all three run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import machine
import network

from hooke.plan import Ring, Star
from hooke.run import RunDirectory

ROOT = Path(__file__).parent.parent
SCRIPT = str(Path(__file__).with_name("planned.py"))
HOOKE = [sys.executable, "-m", "hooke.cli"]
Row = dict[str, Any]


def output(command: Sequence[str], **environment: str) -> str:
    """What a command prints; PYTHONPATH so that this checkout is used."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=known)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


def planned(script: Sequence[str]) -> Row:
    """What `hooke plan SCRIPT` says, as JSON."""
    words = ["--json", "--workers", "2", "--curvature", "1", *script, "--steps", "1000000"]
    return json.loads(output([*HOOKE, "plan", *words]))


def last_rate(text: str) -> float:
    lines = [line for line in text.splitlines() if "examples_per_second" in line]
    return float(json.loads(lines[-1])["examples_per_second"])


def row(what: str, predicted: list[float], measured: list[float], **more: Any) -> Row:
    """Medians, and the ratios of all rounds."""
    ratios = sorted(told / true for told, true in zip(predicted, measured, strict=True))
    made = {
        "what": what,
        "predicted": statistics.median(predicted),
        "measured": statistics.median(measured),
        "ratio": statistics.median(ratios),
        "range": [ratios[0], ratios[-1]],
        **more,
    }
    print(f"{what:60} {made['predicted']:9.4g} {made['measured']:9.4g}  {made['ratio']:.3f}  {ratios}", flush=True)
    return made


# On this machine ------------------------------------------------------------------------------------------------


def run_here(script: Sequence[str], workers: int, steps: int) -> float:
    """Examples/s of all workers under `hooke run`."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        output([*HOOKE, "run", "--workers", str(workers), "--out", out, *script, "--steps", str(steps)])
        return sum(last_rate(RunDirectory(Path(out)).log(number).read_text()) for number in range(workers))


def here(rounds: int) -> list[Row]:
    rows = []
    for batch, period in ((64, 10), (8, 10), (8, 1)):
        script = [SCRIPT, "--batch", str(batch), "--period", str(period)]
        predicted: dict[int, list[float]] = {1: [], 2: []}
        measured: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            told = planned(script)["measured"]["here"]
            for workers, rate in ((one["workers"], one["examples_per_second"]) for one in told):
                predicted[workers].append(rate)
                steps = 20 + int(6 * rate / workers / batch)
                measured[workers].append(run_here(script, workers, steps))
        for workers in (1, 2):
            what = f"{workers} worker{'s' * (workers > 1)}, batch {batch}, period {period}"
            rows.append(row(what, predicted[workers], measured[workers]))
    return rows


# Ranks over slow links ------------------------------------------------------------------------------------------


def run_ranks(script: Sequence[str], ranks: int, steps: int) -> float:
    """Examples/s of ranks in namespaces of their own."""
    common = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": network.address(0), "MASTER_PORT": "29533", "GLOO_SOCKET_IFNAME": "cable"}
    command = [sys.executable, *script, "--steps", str(steps)]
    processes = [
        subprocess.Popen(
            network.inside(rank, command),
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a rank failed: {said[0][1][-1000:]}")
    return sum(last_rate(text) for text, _ in said)


def links(rounds: int) -> list[Row]:
    rows = []
    for bits, rule, period in ((100e6, "local-sgd", 10), (100e6, "easgd", 40), (20e6, "local-sgd", 40)):
        script = [SCRIPT, "--center", "replicated", "--rule", rule, "--period", str(period), "--skip", str(period + 1)]
        predicted, measured = [], []
        for _ in range(rounds):
            told = planned(script)
            seconds = max(copy["step_seconds"] for copy in told["measured"]["together"])  # all wait for the slowest
            ring = Ring(told["setting"]["parameters"], seconds, bits, period=period)
            predicted.append(64 * ring.steps_per_second(2))
            with network.cables(2, bits):
                measured.append(run_ranks(script, 2, 1 + period * max(3, 1 + int(8 / (period * seconds)))))
        what = f"2 ranks, {bits / 1e6:g} Mbit/s, {rule}, period {period}"
        rows.append(row(what, predicted, measured))
    return rows


# Sleeping workers around a center -------------------------------------------------------------------------------


def receive(stream: socket.socket, count: int) -> None:
    left = count
    while left:
        got = len(stream.recv(min(left, 1 << 16)))
        if not got:
            raise EOFError
        left -= got


class Turns:
    """Whoever asks first is first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._next = self._next, self._next + 1
            self._changed.wait_for(lambda: self._serving == mine)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


def serve(count: int, in_turn: bool, clients: int) -> None:
    """A center's traffic: a vector in, a vector out, for each of the clients, who begin together."""
    ways = (Turns(), Turns()) if in_turn else (nullcontext(), nullcontext())
    with socket.create_server(("", 29600), backlog=64) as listening:
        print("ready", flush=True)
        joined = [listening.accept()[0] for _ in range(clients)]
        threads = [threading.Thread(target=answer, args=(client, count, *ways)) for client in joined]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def answer(client: socket.socket, count: int, up: AbstractContextManager, down: AbstractContextManager) -> None:
    """One client's exchanges; a byte asks, a byte says when to send, a byte says that all is there."""
    with client:
        client.sendall(b"!")
        try:
            while True:
                receive(client, 1)
                with up:
                    client.sendall(b"!")
                    receive(client, count)
                with down:
                    client.sendall(bytes(count))
                    receive(client, 1)
        except (EOFError, OSError):
            return


def work(count: int, seconds: float, period: int, duration: float) -> None:
    """A worker's traffic; prints its steps a second, after a quarter of the time."""
    jitter = random.Random(os.getpid())
    with socket.create_connection((network.address(0), 29600)) as center:
        receive(center, 1)
        began, counted, since = time.perf_counter(), 0, 0.0
        while (now := time.perf_counter()) - began < duration:
            if now - began > duration / 4:
                since = since or now
                counted += period
            time.sleep(period * seconds * jitter.uniform(0.95, 1.05))
            center.sendall(b"?")
            receive(center, 1)
            center.sendall(bytes(count))
            receive(center, count)
            center.sendall(b".")
        print(json.dumps({"examples_per_second": counted / (time.perf_counter() - since)}), flush=True)


def part(words: Sequence[object]) -> list[str]:
    return [sys.executable, __file__, *map(str, words)]


def run_star(made: Star, workers: int, duration: float, in_turn: bool) -> float:
    count = int(made.bytes_each_way)
    common: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
        "stdout": subprocess.PIPE,
        "text": True,
    }
    with network.cables(workers + 1, made.bandwidth):
        center = subprocess.Popen(network.inside(0, part(["--serve", count, int(in_turn), workers])), **common)
        try:
            assert center.stdout is not None and center.stdout.readline() == "ready\n"
            words = ["--work", count, made.step_seconds, made.period, duration]
            clients = [subprocess.Popen(network.inside(node, part(words)), **common) for node in range(1, workers + 1)]
            return sum(last_rate(client.communicate()[0]) for client in clients)
        finally:
            center.kill()
            center.wait()


def star(rounds: int) -> list[Row]:
    rows = []
    made = Star(parameters=250_000, step_seconds=0.02, bandwidth=100e6, period=10)
    for workers, in_turn in ((1, True), (2, True), (4, True), (8, True), (2, False), (4, False), (8, False)):
        measured = [run_star(made, workers, 12.0, in_turn) for _ in range(rounds)]
        what = f"{workers} worker{'s' * (workers > 1)}, {'served in turn' if in_turn else 'all served at once'}"
        rows.append(row(what, [made.steps_per_second(workers)] * rounds, measured))
    return rows


SECTIONS: dict[str, Callable[[int], list[Row]]] = {"here": here, "links": links, "star": star}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    for section in SECTIONS:
        parser.add_argument(f"--{section}", action="store_true")
    parser.add_argument("--serve", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=4, type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the namespaces go
    if arguments.serve:
        serve(arguments.serve[0], bool(arguments.serve[1]), arguments.serve[2])
    elif arguments.work:
        count, seconds, period, duration = arguments.work
        work(int(count), seconds, int(period), duration)
    else:
        asked = [name for name in SECTIONS if getattr(arguments, name)]
        for name in asked or SECTIONS:
            load = os.getloadavg()[0]
            rows = SECTIONS[name](arguments.rounds)
            machine.append("plan", {"section": name, "rounds": arguments.rounds, "load": load, "rows": rows})


if __name__ == "__main__":
    main()
