"""Does the center of EAMSGD learn faster than one process? Fashion-MNIST, every worker on a processor of its own.

    python benchmarks/learning.py --root FOLDER [--seconds 60] [--seeds 3] [--cores 2]

Each trial trains for the same seconds of processor time a worker (one thread each), which is what a worker of its own
processor would take; the seconds by the clock stand beside them. Now and then worker 0 copies the center (the one
process: its parameters), and the copies are evaluated after training, so that evaluation costs no training time.
Both cores are always busy: one process of the base line runs beside another of another trial. Every method searches its
learning rate with seed 0, on one grid for those with momentum and one for those without; the other seeds run its
best rates (accuracy at the end). Finished trials are never run again. `--summary` prints what the record says: the
share of the seconds in which each method reaches the accuracy that the one process has at the end of its run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing as mp
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import machine
import numpy as np
import torch
from torch import nn

import hooke

RATES = {True: (0.1, 0.05, 0.02, 0.01, 0.005), False: (0.2, 0.1, 0.05, 0.02)}  # with momentum, without
BATCH, MOMENTUM, WORKERS = 32, 0.9, 2
METHODS = {  # rule, communication period, whether the inner optimizer has Nesterov momentum
    "msgd": (None, 0, True),
    "eamsgd": (hooke.EAMSGD(beta=0.9), 10, True),
    "easgd": (hooke.EASGD(beta=0.9), 16, False),
    "downpour": (hooke.Downpour(), 16, False),
}

TITLES = {
    "msgd": "one process, Nesterov SGD",
    "eamsgd": "EAMSGD, 2 workers, period 10",
    "easgd": "EASGD, 2 workers, period 16",
    "downpour": "DOWNPOUR, 2 workers, period 16",
}


def load(root: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images scaled to mean 0 and variance 1, and labels, from the standard idx.gz files."""

    def read(name: str, skip: int) -> np.ndarray:
        with gzip.open(root / f"{part}-{name}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=skip)

    images = torch.from_numpy(read("images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32))
    return (images / 255 - 0.286) / 0.353, torch.from_numpy(read("labels-idx1", 8).astype(np.int64))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def train(trial: dict, index: int, core: int, root: Path, center_path: str, gate, answers) -> None:
    """One worker: trains for the trial's seconds; worker 0 answers with the accuracies of its copies."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    rule, period, nesterov = METHODS[trial["method"]]
    images, labels = load(root, "train")
    torch.manual_seed(trial["seed"])
    model = network()
    torch.manual_seed(1000 * trial["seed"] + index)
    momentum = MOMENTUM if nesterov else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=trial["lr"], momentum=momentum, nesterov=nesterov)
    worker = None
    if rule is not None:
        worker = hooke.Worker(
            model, optimizer, rule, center=hooke.LocalCenter(center_path), communication_period=period
        )
        worker.start()
    copies, step, every = [], 0, trial["seconds"] / trial["points"]
    gate.wait()
    began, clock_began = time.process_time(), time.perf_counter()
    while (seconds := time.process_time() - began) < trial["seconds"]:
        if index == 0 and seconds >= every * (len(copies) + 1):
            copies.append((seconds, time.perf_counter() - clock_began, step, copy(model, worker)))
        batch = torch.randint(len(images), (BATCH,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    if index == 0:
        copies.append((seconds, time.perf_counter() - clock_began, step, copy(model, worker)))
    gate.wait()  # nobody leaves while another still trains: the moving rate follows the number of workers
    if worker is not None:
        worker.stop()
    if index == 0:
        answers.put(evaluate(copies, model, root))


def copy(model: nn.Module, worker: hooke.Worker | None) -> tuple[torch.Tensor, ...]:
    if worker is None:
        return tuple(p.detach().clone() for p in model.parameters())
    with worker.center_weights():
        return tuple(p.detach().clone() for p in model.parameters())


@torch.no_grad()
def evaluate(copies: list, model: nn.Module, root: Path) -> list[dict]:
    images, labels = load(root, "t10k")
    curve = []
    for seconds, clock, step, values in copies:
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
        logits = torch.cat([model(part) for part in images.split(1000)])
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        loss = nn.functional.cross_entropy(logits, labels).item()
        point = {"seconds": seconds, "clock": clock, "step": step, "accuracy": accuracy, "test_loss": loss}
        curve.append({name: round(value, 5) for name, value in point.items()})
    return curve


def run_trial(trial: dict, cores: list[int], root: Path) -> dict:
    context = mp.get_context("spawn")
    gate, answers = context.Barrier(len(cores)), context.SimpleQueue()
    center = hooke.LocalCenter()
    workers = [
        context.Process(target=train, args=(trial, index, core, root, str(center.path), gate, answers))
        for index, core in enumerate(cores)
    ]
    for worker in workers:
        worker.start()
    curve = answers.get()
    for worker in workers:
        worker.join()
    center.close()
    return {**trial, "curve": curve}


def run(trials: list[dict], arguments: argparse.Namespace) -> None:
    """Run what the record lacks, as many trials at once as there are cores for."""
    done = {key(row) for row in machine.read(arguments.out)}
    free: SimpleQueue[int] = SimpleQueue()
    for core in range(arguments.cores):
        free.put(core)
    taking = threading.Lock()

    def one(trial: dict) -> None:
        with taking:  # all cores of a trial or none, so that two trials never wait for each other
            cores = [free.get() for _ in range(1 if trial["method"] == "msgd" else WORKERS)]
        try:
            row = {**run_trial(trial, cores, arguments.root), **machine.facts()}
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(trial, "->", row["curve"][-1], flush=True)
        finally:
            for core in cores:
                free.put(core)

    with ThreadPoolExecutor(arguments.cores) as pool:
        list(pool.map(one, [trial for trial in trials if key(trial) not in done]))


def key(row: dict) -> tuple:
    return row["method"], row["lr"], row["seed"], row["seconds"]


def last(curve: list[dict]) -> float:
    """The accuracy at the end: the mean over the last tenth, since one evaluation is a matter of luck."""
    return statistics.mean(point["accuracy"] for point in curve[-max(1, len(curve) // 10) :])


def reaches(curve: list[dict], accuracy: float) -> float:
    """Seconds until the running median of three evaluations is at least `accuracy`; infinity if never."""
    for before, here, after in zip(curve, curve[1:], curve[2:], strict=False):
        if statistics.median(point["accuracy"] for point in (before, here, after)) >= accuracy:
            return after["seconds"]
    return float("inf")


def best_rates(rows: list[dict], method: str) -> list[float]:
    """The rates of a method, those with most seeds and then the best mean accuracy at the end first."""
    ends: dict[float, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            ends.setdefault(row["lr"], []).append(last(row["curve"]))
    return sorted(ends, key=lambda lr: (-len(ends[lr]), -statistics.mean(ends[lr])))


def targets(rows: list[dict], rate: float) -> dict[int, float]:
    """For each seed, the accuracy that the one process has at the end of its run at this rate."""
    return {r["seed"]: last(r["curve"]) for r in rows if (r["method"], r["lr"]) == ("msgd", rate)}


def summary(rows: list[dict]) -> None:
    base = best_rates(rows, "msgd")[0]
    goal = targets(rows, base)
    print(f"one process, Nesterov SGD, best rate {base}: {goal}")
    for method, lr in sorted({(r["method"], r["lr"]) for r in rows}):
        chosen = sorted((r for r in rows if (r["method"], r["lr"]) == (method, lr)), key=lambda r: r["seed"])
        shares = [reaches(r["curve"], goal[r["seed"]]) / r["seconds"] for r in chosen if r["seed"] in goal]
        ends = [round(last(r["curve"]), 4) for r in chosen]
        print(f"{method:9} lr {lr:<6} end {ends}  share of the seconds to the target {[round(s, 2) for s in shares]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder with the four Fashion-MNIST idx.gz files")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "learning.jsonl")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of each worker")
    parser.add_argument("--points", type=int, default=20, help="evaluations a trial")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--keep", type=int, default=2, help="best rates of a method that the other seeds run")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    settings = {"seconds": arguments.seconds, "points": arguments.points, "batch": BATCH, "workers": WORKERS}

    def trials(seeds: range, rates_of: dict[str, list[float]]) -> list[dict]:
        every = [(seed, method, lr) for seed in seeds for method, rates in rates_of.items() for lr in rates]
        return [{"seed": seed, "method": method, "lr": lr, **settings} for seed, method, lr in every]

    if not arguments.summary:
        run(trials(range(1), {method: list(RATES[METHODS[method][2]]) for method in arguments.methods}), arguments)
        searched = [row for row in machine.read(arguments.out) if row["seed"] == 0]
        run(
            trials(
                range(1, arguments.seeds),
                {method: best_rates(searched, method)[: arguments.keep] for method in arguments.methods},
            ),
            arguments,
        )
    summary(machine.read(arguments.out))


if __name__ == "__main__":
    main()
