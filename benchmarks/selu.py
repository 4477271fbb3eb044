"""How long SELU and alpha dropout take, forward and backward, against torch's own pair; what an audit of a net costs.

    python benchmarks/selu.py [--audit]

torch's pair and hooke's run in eager mode and compiled; the yardstick is a plain copy of as many bytes as the pair must
move: forward reads x and writes y, backward reads x and dy and writes dx. All ways are timed in turn, round after
round, and compared by the median of the ratios within a round. With `--audit`: `hooke.nn.audit` of a net with 32 hidden
layers against plain forward and backward passes of the same net.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import machine
import torch
from torch import Tensor, nn

import hooke.nn

RATE = 0.05
SIZES = ((128, 256), (512, 1024), (4096, 1024))
YARDSTICK, BASE = "copy", "torch"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def forward_backward(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Callable[[], None]:
    def run() -> None:
        function(x).backward(gradient)
        x.grad = None

    return run


def ways(size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """What is timed."""
    x, gradient = torch.randn(size, requires_grad=True), torch.randn(size)
    source, target = (
        torch.empty(5 * x.numel() // 2) for _ in range(2)
    )  # 3 read and 2 written, as many as a copy of 2.5
    pairs: dict[str, Callable[[Tensor], Tensor]] = {
        BASE: nn.Sequential(nn.SELU(), nn.AlphaDropout(RATE)),
        "hooke": nn.Sequential(hooke.nn.SELU(), hooke.nn.AlphaDropout(RATE)),
    }
    if COMPILER:
        pairs |= {f"{name}, compiled": torch.compile(pair, dynamic=False) for name, pair in pairs.items()}
    timed: dict[str, Callable[[], object]] = {YARDSTICK: lambda: target.copy_(source)}
    return timed | {name: forward_backward(pair, x, gradient) for name, pair in pairs.items()}


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, after three that do not count (the first compiles)."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 3):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def quartiles(ratios: list[float]) -> list[float]:
    return statistics.quantiles(ratios, n=4)


def pair_rows(threads: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Times of one size, and how often each way fits into the time of torch's eager pair."""
    torch._dynamo.reset()  # compiled code is for one number of threads
    seconds = measure(ways(size), rounds=max(50, min(600, 200_000_000 // (size[0] * size[1]))))
    rows = []
    for name, mine in seconds.items():
        low, middle, high = quartiles([base / one for one, base in zip(mine, seconds[BASE], strict=True)])
        row = {
            "threads": threads,
            "size": list(size),
            "what": name,
            "milliseconds": 1e3 * statistics.median(mine),
            "times_as_fast": middle,
            "quartiles": [low, high],
            "rounds": len(mine),
        }
        rows.append(row)
        print(
            f"{threads} threads  {size[0]:5} x {size[1]:5}  {name:20} {row['milliseconds']:8.3f} ms   "
            f"{middle:5.2f} times as fast ({low:.2f} to {high:.2f})"
        )
    return rows


def audit_row(threads: int, batch: int, width: int, depth: int, rounds: int) -> dict[str, Any]:
    """An audit in plain forward and backward passes of the same net and inputs."""
    net = hooke.nn.SelfNormalizingMLP(width, 10, width, depth)
    inputs = torch.randn(batch, width)

    def plain() -> None:
        net(inputs).square().sum().backward()
        net.zero_grad()

    seconds = measure({"plain": plain, "audit": lambda: hooke.nn.audit(net, inputs)}, rounds)
    ratios = [audit / one for audit, one in zip(seconds["audit"], seconds["plain"], strict=True)]
    low, middle, high = quartiles(ratios)
    row = {
        "threads": threads,
        "size": [batch, width],
        "depth": depth,
        "milliseconds": 1e3 * statistics.median(seconds["audit"]),
        "passes": middle,
        "quartiles": [low, high],
        "rounds": rounds,
    }
    print(f"{threads} threads  {batch} x {width}, {depth} layers  audit {middle:.2f} passes ({low:.2f} to {high:.2f})")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--audit", action="store_true", help="time the audit instead")
    arguments = parser.parse_args()
    rows, load = [], os.getloadavg()[0]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        if arguments.audit:
            rows += [audit_row(threads, batch, width, 32, 40) for batch, width in ((256, 256), (1024, 512))]
        else:
            rows += [row for size in SIZES for row in pair_rows(threads, size)]
    machine.append(
        "selu",
        {
            "section": "audit" if arguments.audit else "pair",
            "p": RATE,
            "compiler": bool(COMPILER),
            "load": load,  # programs that wanted a core before this one began
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
