"""How long one elastic exchange takes, against a plain copy of as many bytes (the memory's limit).

    python benchmarks/exchange.py [--numel 10000000] [--repeats 25]

One thread. An exchange reads x and the center and writes both; the copy reads and writes as many bytes. All are timed
in turn, repeated, and compared by the median of the ratios within a round. Beside them: the three lines of torch that
one would write instead, without check, locks or blocks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import machine
import torch

import hooke


def ways(numel: int) -> dict[str, Callable[[], object]]:
    """What is timed."""
    x, plain_center = torch.randn(numel), torch.randn(numel)
    source, target, correction = torch.randn(2 * numel), torch.empty(2 * numel), torch.empty(numel)
    center = hooke.LocalCenter()
    center.join(torch.randn(numel), hooke.CenterSpec((), numel))
    easgd, downpour = hooke.EASGD(moving_rate=0.225), hooke.Downpour()
    memory = downpour.init(x)

    def three_lines() -> None:
        difference = 0.225 * (x - plain_center)
        x.sub_(difference)
        plain_center.add_(difference)

    return {
        "copy": lambda: target.copy_(source),
        "EASGD, in place": lambda: center.exchange_(x, easgd),
        "EASGD, correction kept for after the step": lambda: center.exchange(x, easgd, out=correction),
        "DOWNPOUR, in place": lambda: center.exchange_(x, downpour, memory),
        "three lines of torch, unchecked": three_lines,
        "pull": lambda: center.pull(correction),
    }


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--numel", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(ways(arguments.numel), arguments.repeats)
    copy = seconds["copy"]
    rows = []
    for name, mine in seconds.items():
        ratios = sorted(one / other for one, other in zip(mine, copy, strict=True))
        row = {
            "what": name,
            "milliseconds": 1e3 * statistics.median(mine),
            "times_a_copy": statistics.median(ratios),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        }
        rows.append(row)
        print(f"{name:45} {row['milliseconds']:8.2f} ms   {row['times_a_copy']:.2f} times a copy")
    machine.append("exchange", {"numel": arguments.numel, "repeats": arguments.repeats, "rows": rows})


if __name__ == "__main__":
    main()
