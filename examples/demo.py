"""The demo: four ways to train one small network on scikit-learn's digits, side by side.

make demo        # or: python examples/demo.py

A master and four workers train by DOWNPOUR, EASGD and EAMSGD, beside one process of Nesterov SGD. Each worker takes the
same number of steps, as if it had a processor of its own: the axis of arXiv 1412.6651. Four workers use four times the
examples in all; the table says so. Every run is an ordinary `hooke run` of `digits.py`.

Learning rates: the best of 0.01, 0.02, 0.05, 0.1, 0.2, 0.5 for each method, by the mean test accuracy over the last
quarter of 600 steps with seeds 10, 11, 12 (four workers that step in random order in one process); chosen on the test
images, alike for every method. The runs here have other seeds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hooke.record import read
from hooke.report import write_report

GOAL = 0.95
PERIOD = 10  # tau of the paper's study of the number of workers
METHODS = {
    "msgd": ("Nesterov SGD", 0.02),
    "downpour": ("DOWNPOUR", 0.05),
    "easgd": ("EASGD", 0.2),
    "eamsgd": ("EAMSGD", 0.05),
}


def train(method: str, workers: int, steps: int, seed: int, out: Path) -> None:
    """One `hooke run`; what it shows on the terminal is the progress."""
    launch = [sys.executable, "-m", "hooke.cli", "run", "--workers", str(workers), "--out", str(out)]
    settings = {"method": method, "lr": METHODS[method][1], "period": PERIOD, "steps": steps, "seed": seed}
    options = [f"--{name}={value}" for name, value in settings.items()]
    script = Path(__file__).with_name("digits.py")
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # one core a worker, always
    code = subprocess.run([*launch, str(script), *options], env=environment, stdout=subprocess.DEVNULL).returncode
    if code:
        raise SystemExit(f"demo: the run in {out} failed with exit code {code}. Its workers' logs are there.")


def outcome(run: Path) -> dict[str, float]:
    """The numbers of one run; accuracies are the center's, on the test images."""
    workers = [list(read(path)) for path in (run / "workers").glob("*.jsonl")]
    rows = [row for worker in workers for row in worker]
    accuracies = {row["t"]: row["value"] for row in rows if row["name"] == "accuracy"}
    reached = [t for t, accuracy in accuracies.items() if accuracy >= GOAL]
    # The workers' mean step at that moment: the one that evaluates is behind the others.
    steps = [
        max((row["step"] for row in worker if row["t"] <= min(reached, default=0)), default=0) for worker in workers
    ]
    return {
        "examples": sum(max(row["value"] for row in worker if row["name"] == "examples") for worker in workers),
        "seconds": max(row["t"] for row in rows) - min(row["t"] for row in rows),
        "steps to goal": statistics.mean(steps) if reached else float("inf"),
        "best": max(accuracies.values()),
        "end": accuracies[max(accuracies)],
    }


def compare(outcomes: dict[str, list[dict[str, float]]], workers: int, steps: int) -> Table:
    count = len(outcomes["msgd"])
    seeds = f"{count} seeds, mean \u00b1 half the range" if count > 1 else "1 seed"
    title = f"{steps} steps per worker, period {PERIOD}, {seeds}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    for column in ("workers", "rate", "examples", "seconds", f"to {GOAL:.0%}", "best %", "end %"):
        table.add_column(column, justify="right", no_wrap=True)
    for method, runs in outcomes.items():
        name, lr = METHODS[method]
        values = {key: [run[key] for run in runs] for key in runs[0]}
        mean = {key: statistics.mean(column) for key, column in values.items()}
        wide = {key: (max(column) - min(column)) / 2 for key, column in values.items()}
        reached = f"{mean['steps to goal']:.0f}" if mean["steps to goal"] < float("inf") else "-"
        shares = [
            f"{mean[k]:.1%}"[:-1] + (f" \u00b1 {100 * wide[k]:.1f}" if count > 1 else "") for k in ("best", "end")
        ]
        number = "1" if method == "msgd" else str(workers)
        table.add_row(name, number, f"{lr:g}", f"{mean['examples']:,.0f}", f"{mean['seconds']:.1f}", reached, *shares)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="what was there is removed")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600, help="of each worker")
    parser.add_argument("--seeds", type=int, default=3, help="at most")
    parser.add_argument("--seconds", type=float, default=100, help="no further seed begins that would end later")
    args = parser.parse_args()

    console, began = Console(), time.monotonic()
    shutil.rmtree(args.out, ignore_errors=True)
    outcomes: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for seed in range(args.seeds):
        if seed and (time.monotonic() - began) / seed * (seed + 1) > args.seconds:
            break
        for method, (name, _) in METHODS.items():
            console.rule(f"{name}, seed {seed}", align="left")
            out = args.out / (f"{method}-seed{seed}" if seed else method)
            train(method, 1 if method == "msgd" else args.workers, args.steps, seed, out)
            outcomes[method].append(outcome(out))

    console.print("", compare(outcomes, args.workers, args.steps), "", sep="\n")
    console.print(
        f"to {GOAL:.0%}: steps per worker until the center knew {GOAL:.0%} of the 797 test images. best, end: of the "
        "center; less than about 1% between two methods says little. seconds: the workers share this machine's "
        f"{os.cpu_count()} cores."
    )
    report = write_report([args.out / method for method in METHODS], args.out / "report.html")
    console.print(f"The curves of seed 0: {report}", soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
