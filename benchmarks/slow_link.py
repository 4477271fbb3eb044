"""How fast workers train over slow links, by hooke and by its peers, and what they have learned then. Needs root.

    pip install -r benchmarks/peers.txt -c constraints.txt
    python benchmarks/slow_link.py --speed [--only hooke ddp] [--mbits 100] [--rounds 3] [--again]
    python benchmarks/slow_link.py --accuracy [--data FOLDER] [--only hooke ddp] [--seeds 3] [--again]

Each worker has a network namespace of its own (network.py), and so has hooke's center. The figure is examples/s of all
workers as a share of what the same processes reach, at the same time on the same processors and seconds before and
after, when each trains without any communication. Bytes are counted by the cables. Cells that are in
`results/slow_link.jsonl` under the same commit are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import linked
import machine
import network

ROOT = Path(__file__).parent.parent
STEPS = {"ddp", "fp16", "powersgd", "averager", "accelerate", "torchft-local", "torchft-diloco", "torchft-streaming"}
"""Ways in which all workers must take equally many steps."""

EVERY_STEP = {"ddp", "fp16", "powersgd"}
"""Ways that communicate at every step."""

PEERS = [*sorted(EVERY_STEP), "averager", "accelerate", "torchft-local", "torchft-diloco", "torchft-streaming"]
MEETING = 100
"""Steps of hivemind between two averages: its peers take 3 s or more to find each other, so 10 would be unfair."""

LEARNING_RATE = 0.05
PATIENCE = 600.0
"""Seconds in which a command must be answered."""

START = 240.0
"""Seconds in which a cell must be ready: DDP sends the parameters once, and 10 million take long at 10 Mbit/s."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What is measured once.

    Attributes:
        how: Way to communicate, one of `linked.WAYS`.
        mbits: Each direction of each cable, in Mbit/s.
        model: One of `linked.MODELS`.
        workers: How many.
        period: Steps between two exchanges; 0 where hooke chooses.
        codec: Of hooke.
    """

    how: str
    mbits: float
    model: str = "convnet"
    workers: int = 2
    period: int = 10
    codec: str = "float32"

    def __str__(self) -> str:
        name = f"{self.how} {self.codec} period {self.period or 'auto'}" if self.how == "hooke" else self.how
        return f"{self.model}, {self.workers} workers, {self.mbits:g} Mbit/s: {name}"


def of_hooke(mbits: float, codec: str, period: int = 10, **more: Any) -> Cell:
    return Cell("hooke", mbits, codec=codec, period=period, **more)


def speed_cells() -> list[Cell]:
    """The most telling ones first."""
    small = [Cell(how, mbits) for mbits in (100, 10) for how in PEERS]
    small += [Cell("hivemind", mbits, period=MEETING) for mbits in (100, 10)]
    small += [Cell(how, 1000) for how in ("ddp", "averager", "torchft-streaming")]
    small += [of_hooke(1000, "float32")]
    small += [of_hooke(100, codec) for codec in ("float32", "int8", "int4")]
    small += [of_hooke(10, codec, 0) for codec in ("int8", "int4")]
    large = [Cell(how, 100, "transformer") for how in ("ddp", "powersgd", "averager", "torchft-streaming")]
    large += [Cell("powersgd", 10, "transformer")]
    large += [of_hooke(100, codec, model="transformer") for codec in ("int8", "int4")]
    large += [of_hooke(10, "int4", 0, model="transformer")]
    four = [Cell(how, 100, workers=4) for how in ("ddp", "powersgd", "averager", "torchft-streaming")]
    four += [of_hooke(100, "int8", workers=4), of_hooke(10, "int4", 0, workers=4)]
    return [*small, *large, *four]


def accuracy_cells() -> list[Cell]:
    """What the peers learn does not depend on the link, so they have the fastest."""
    peers = [*sorted(EVERY_STEP), "averager", "torchft-diloco", "torchft-streaming"]
    own = [of_hooke(1000, "float32"), of_hooke(100, "int8"), of_hooke(100, "int4")]
    return [Cell("alone", 1000, workers=1), *(Cell(how, 1000) for how in peers), *own, of_hooke(10, "int4", 0)]


# Processes ----------------------------------------------------------------------------------------------------------


class Broken(Exception):
    """A cell that did not work, with the reason."""


class Node:
    """A process at a node, which answers commands."""

    def __init__(self, node: int, workers: int, words: Sequence[object], folder: Path) -> None:
        known = {"MASTER_ADDR": network.address(0), "MASTER_PORT": str(linked.PORT), "GLOO_SOCKET_IFNAME": "cable"}
        known |= {"RANK": str(node), "WORLD_SIZE": str(workers), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        known |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHFT_TIMEOUT_SEC": "600"}
        self._log = (folder / f"node{node}").open("w+")
        self._process = subprocess.Popen(
            network.inside(node, [sys.executable, linked.__file__, "--workers", str(workers), *map(str, words)]),
            env={**machine.KEPT, **os.environ, **known},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@ "):
                self._answers.put(json.loads(line[2:]))
        self._answers.put(None)

    def tell(self, **command: Any) -> None:
        """Give it a command."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps(command), file=self._process.stdin, flush=True)

    def answer(self, patience: float) -> Row:
        """What it says to the command before; `Broken` where it says nothing for so many seconds."""
        try:
            answer = self._answers.get(timeout=patience)
        except queue.Empty:
            raise Broken(f"no answer within {patience:.0f} s") from None
        if answer is None:
            self._log.seek(0)
            said = [line.strip() for line in self._log.read().splitlines() if line.strip()]
            errors = [line for line in said if "Error" in line]
            why = (errors or said or ["it ended without a word"])[-1][-300:]
            raise Broken(why.replace(sys.prefix, "PREFIX"))  # a record names no folder of this machine
        return answer

    def hang_up(self) -> None:
        """No command will come any more."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def end(self, patience: float) -> None:
        """Wait so many seconds for it and what it has started, then kill them."""
        self.hang_up()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # hivemind's processes, too
        self._process.wait()
        self._log.close()


class Fleet:
    """All workers of a cell, and hooke's center."""

    def __init__(self, workers: list[Node], center: Node | None) -> None:
        self._workers, self._center = workers, center

    def ask(self, patience: float, **command: Any) -> list[Row]:
        """What each worker answers; all work at the same time."""
        for worker in self._workers:
            worker.tell(**command)
        return [worker.answer(patience) for worker in self._workers]

    def ask_first(self, patience: float, **command: Any) -> Row:
        """What worker 0 answers."""
        self._workers[0].tell(**command)
        return self._workers[0].answer(patience)

    def center(self) -> Row:
        """What the center has done so far."""
        if self._center is None:
            return {"exchanges": 0, "moved": [0, 0]}
        self._center.tell()
        return self._center.answer(60.0)


@contextmanager
def fleet(cell: Cell, *options: object) -> Iterator[tuple[Fleet, Row]]:
    """The cell's processes at their nodes, and what the first says of itself."""
    with ExitStack() as stack:
        stack.enter_context(network.cables(cell.workers + (cell.how == "hooke"), 1e6 * cell.mbits))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        center = None
        if cell.how == "hooke":
            words = ["--how", "center", "--address", network.address(cell.workers)]
            center = Node(cell.workers, cell.workers, words, folder)
            stack.callback(center.end, 5.0)
            center.answer(START)
        if cell.how.startswith("torchft"):
            stack.callback(end, lighthouse(cell.workers))
        workers = []
        for rank in range(cell.workers):
            words = ["--how", cell.how, "--model", cell.model, "--rank", rank, "--period", cell.period]
            words += ["--codec", cell.codec, "--address", network.address(rank), "--first", network.address(0)]
            words += ["--center", network.address(cell.workers), "--meeting", folder / "meeting", *options]
            workers.append(Node(rank, cell.workers, words, folder))
            stack.callback(workers[-1].end, 0.5 if rank else 10.0)
        ready = [worker.answer(START) for worker in workers]
        yield Fleet(workers, center), ready[0]
        for worker in workers:  # together: some say goodbye to each other
            worker.hang_up()


def lighthouse(workers: int) -> subprocess.Popen[bytes]:
    """torchft's, beside worker 0, as it does with its own rank 0; it looks for a quorum often, so that none waits."""
    program = str(Path(sys.executable).with_name("torchft_lighthouse"))
    words = ["--min_replicas", str(workers), "--bind", f"[::]:{linked.LIGHTHOUSE}", "--quorum_tick_ms", "10"]
    return subprocess.Popen(network.inside(0, [program, *words]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# Speed --------------------------------------------------------------------------------------------------------------


def rate(rows: list[Row], batch: int) -> float:
    """Examples/s of all workers together."""
    return sum(row["steps"] * batch / row["seconds"] for row in rows)


def speed(cell: Cell, rounds: int, seconds: float, limit: float) -> Row:
    """The cell's figures; a way that waits for a slow link takes fewer rounds, so that it ends within about `limit`."""
    with fleet(cell) as (workers, about):
        batch, unit = about["batch"], 1 if cell.how in EVERY_STEP else cell.period
        steps = 2 * unit or None  # by seconds, where the way chooses its period
        first = workers.ask(PATIENCE, do="train", lead=max(2, unit) if unit else None, steps=steps, seconds=seconds)
        bases, parts = [workers.ask(PATIENCE, do="alone", seconds=seconds / 2)], []
        step = max(row["seconds"] / row["steps"] for row in [*first, *bases[0]])
        lead, steps, seconds = amount(cell, unit, step, seconds)
        one = (2 if steps is None else 1) * seconds + seconds + unit * step
        for _ in range(max(1, min(rounds, int(limit / one)))):
            before = workers.center()
            train = workers.ask(PATIENCE, do="train", lead=lead, steps=steps, seconds=seconds)
            after = workers.center()
            bases.append(workers.ask(PATIENCE, do="alone", seconds=min(seconds, 10.0) / 2))
            parts.append((train, before, after))
        return {"parameters": about["parameters"], "batch": batch, **figures(cell, parts, bases, batch)}


def amount(cell: Cell, unit: int, step: float, seconds: float) -> tuple[int | None, int | None, float]:
    """Steps before the clock starts and by the clock, or None for as many as fit into so many seconds."""
    if cell.how == "hivemind":  # its peers stop by the clock: they wait for each other now and then, not at set steps
        return unit, None, max(3 * seconds, unit * step)
    if not unit:
        return None, None, (9 if cell.model == "transformer" else 3) * seconds
    return unit, unit * max(1 if cell.how in STEPS else 2, round(seconds / (step * unit))), seconds


def figures(cell: Cell, parts: list[Any], bases: list[list[Row]], batch: int) -> Row:
    """Medians over the rounds."""
    shares, rates, both, center, apart = [], [], [], [], []
    for index, (train, before, after) in enumerate(parts):
        base = (rate(bases[index], batch) + rate(bases[index + 1], batch)) / 2
        rates.append(rate(train, batch))
        shares.append(rates[-1] / base)
        examples = batch * sum(row["steps"] for row in train)
        both.append([sum(row[name] for row in train) / examples for name in ("sent", "received")])
        all_examples = examples + batch * sum(row["lead"] for row in train)
        center.append(sum(b - a for a, b in zip(before["moved"], after["moved"], strict=True)) / all_examples)
        exchanges = after["exchanges"] - before["exchanges"]
        apart.append(all_examples / batch / exchanges if exchanges else float(cell.period))
    return {
        "share": statistics.median(shares),
        "range": [min(shares), max(shares)],
        "rounds": len(shares),
        "examples_per_second": statistics.median(rates),
        "alone": statistics.median(rate(rows, batch) for rows in bases),
        "sent_per_example": statistics.median(sent for sent, _ in both),
        "received_per_example": statistics.median(received for _, received in both),
        "center_bytes_per_example": statistics.median(center),
        "steps_between_exchanges": 1.0 if cell.how in EVERY_STEP else statistics.median(apart),
    }


# Accuracy -----------------------------------------------------------------------------------------------------------


def learned(cell: Cell, seed: int, steps: int, data: Path) -> Row:
    """Test accuracy after as many examples as two workers use in so many steps."""
    steps = 2 * steps // cell.workers
    options = ["--data", data, "--seed", seed, "--lr", LEARNING_RATE, "--powersgd-start", max(2, steps // 10)]
    with fleet(cell, *options) as (workers, about):
        done = workers.ask(1200, do="train", lead=0, steps=steps, seconds=0.0)
        exchanges = workers.center()["exchanges"]
        right = workers.ask_first(120, do="evaluate")["accuracy"]
        apart = cell.workers * steps / exchanges if exchanges else None
        made = {"accuracy": right, "steps_between_exchanges": apart, "seconds_taken": done[0]["seconds"]}
        return {
            "seed": seed,
            "steps": steps,
            "lr": LEARNING_RATE,
            "examples": steps * about["batch"] * cell.workers,
            **made,
        }


def run(section: str, cells: list[tuple[Cell, Row]], measure: Any, again: bool) -> None:
    """Measure and write down the cells that the record lacks."""
    commit = machine.commit()
    record = [row for row in machine.read(machine.RESULTS / "slow_link.jsonl") if row["section"] == section]
    done = [
        {name: row.get(name) for name in ("how", "seed", *asdict(cells[0][0]))}
        for row in record
        if row["commit"] == commit
    ]
    for cell, more in cells:
        if not again and {"seed": None, **asdict(cell), **more} in done:
            continue
        load = os.getloadavg()[0]
        try:
            made = measure(cell, **more)
        except Broken as error:
            made = {"failed": str(error)}
        shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in made.items()}
        print(f"{cell}: {shown}", flush=True)
        machine.append("slow_link", {"section": section, **asdict(cell), **more, "load": load, **made})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--only", nargs="+", choices=linked.WAYS)
    parser.add_argument("--model", choices=linked.MODELS)
    parser.add_argument("--mbits", type=float, nargs="+")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--codec")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round, where the link lets a way")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a cell, about, after the first steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=469, help="of each of two workers, for the accuracy; an epoch")
    home = Path(os.environ.get("HOOKE_DATA", "data")) / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=home, help="folder with the four Fashion-MNIST idx.gz files")
    parser.add_argument("--again", action="store_true", help="run what the record has, too")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the namespaces go

    def wanted(cell: Cell) -> bool:
        pairs = ((asked.model, cell.model), (asked.workers, cell.workers), (asked.codec, cell.codec))
        lists = ((asked.only, cell.how), (asked.mbits, cell.mbits))
        return all(a in (None, b) for a, b in pairs) and all(a is None or b in a for a, b in lists)

    if asked.speed:
        cells = [(cell, {}) for cell in speed_cells() if wanted(cell)]
        run("speed", cells, lambda cell: speed(cell, asked.rounds, asked.seconds, asked.limit), asked.again)
    if asked.accuracy:
        if not asked.data.is_dir():
            parser.error(f"--data must be a folder. Got {asked.data}. Name that of the four Fashion-MNIST files.")
        cells = [(cell, {"seed": seed}) for seed in range(asked.seeds) for cell in accuracy_cells() if wanted(cell)]
        run("accuracy", cells, lambda cell, seed: learned(cell, seed, asked.steps, asked.data.absolute()), asked.again)


if __name__ == "__main__":
    main()
