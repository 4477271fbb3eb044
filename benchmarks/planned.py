"""A user's script whose speed `hooke plan` predicts and benchmarks/plan.py measures: the network of scaling.py.

hooke run --workers 2 benchmarks/planned.py --steps 500
torchrun --nproc-per-node 2 benchmarks/planned.py --center replicated --steps 500
"""

from __future__ import annotations

import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from scaling import network
from torch import nn

import hooke

RULES = {"easgd": hooke.EASGD(), "downpour": hooke.Downpour(), "local-sgd": hooke.LocalSGD()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--center", choices=("local", "replicated"), default="local")
    parser.add_argument("--rule", choices=RULES, default="easgd")
    parser.add_argument("--period", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--skip", type=int, default=20, help="steps before the clock starts")
    arguments = parser.parse_args()

    if arguments.center == "replicated":
        dist.init_process_group("gloo")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.get_world_size()))
    center = hooke.ReplicatedCenter() if arguments.center == "replicated" else None
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, labels = torch.randn(arguments.batch, 1, 28, 28), torch.randint(10, (arguments.batch,))
    began = 0.0
    with hooke.Worker(
        model, optimizer, RULES[arguments.rule], center=center, communication_period=arguments.period
    ) as worker:
        for step in range(arguments.steps):
            if step == arguments.skip:
                began = time.perf_counter()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            worker.record(examples=arguments.batch)
        seconds = time.perf_counter() - began
    print(json.dumps({"examples_per_second": (arguments.steps - arguments.skip) * arguments.batch / seconds}))
    if center is not None:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
