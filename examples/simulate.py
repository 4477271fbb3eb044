"""Eight workers of unequal speed on a slow link, simulated in one process: EASGD against DOWNPOUR and Local SGD.

python examples/simulate.py
python examples/simulate.py --workers 16 --bandwidth 1e7 --rows runs/simulated     # and `hooke report` draws the runs

Real gradients, virtual seconds: nothing waits for a clock. Worker i needs 1 + i / 4 times the seconds of a step of
worker 0. EASGD and DOWNPOUR exchange when they are ready; Local SGD waits for the slowest.
"""

import argparse
from pathlib import Path

import torch
from data import digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hooke

METHODS = {
    "EASGD": (hooke.EASGD(beta=0.9), False),
    "DOWNPOUR": (hooke.Downpour(), False),
    "Local SGD": (hooke.LocalSGD(), True),
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return cross_entropy(model(images), labels)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--period", type=int, default=10, help="steps between two exchanges with the center")
    parser.add_argument("--step-seconds", type=float, default=0.02, help="of the fastest worker")
    parser.add_argument("--bandwidth", type=float, default=4e6, help="of each link, in bit/s")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=8.0, help="virtual, of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="folder for one run directory a method")
    args = parser.parse_args()

    train_images, train_labels, test_images, test_labels = digits()
    cluster = hooke.Cluster(
        args.workers,
        step_seconds=[args.step_seconds * (1 + worker / 4) for worker in range(args.workers)],
        jitter=0.1,
        bandwidth=args.bandwidth,
        latency=0.01,
    )

    def batch(worker: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((args.seed * 1000 + worker) * 100_000 + step)
        chosen = torch.randint(len(train_images), (8,), generator=generator)
        return train_images[chosen], train_labels[chosen]

    for method, (rule, synchronous) in METHODS.items():
        torch.manual_seed(args.seed)
        simulation = hooke.Simulation(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
            loss,
            batch,
            rule,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=args.lr),
            cluster=cluster,
            communication_period=args.period,
            synchronous=synchronous,
            seed=args.seed,
            rows=None if args.rows is None else args.rows / method,
        )
        curve = []
        with simulation:
            for quarter in range(1, 5):
                simulation.run(until=args.seconds * quarter / 4)
                with simulation.center_weights() as center:
                    curve.append(accuracy(center, test_images, test_labels))
                simulation.record(accuracy=curve[-1])
            knows = ", ".join(f"{share:.0%}" for share in curve)
            print(f"{method:9s} {simulation.steps:5d} steps, {simulation.exchanges:4d} exchanges; knows {knows}")


if __name__ == "__main__":
    main()
