"""A worker that only needs a center's address: start it by torchrun, Slurm, Kubernetes or by hand, as many as you like.

hooke center --listen 127.0.0.1:29400 --out runs/center
torchrun --nproc-per-node 2 examples/machines.py grpc://127.0.0.1:29400
HOOKE_TOKEN=... python examples/machines.py grpc+tls://center:29400 --authority ca.pem --codec int8

Workers come and go: none waits for another, and nothing tells them of each other but the center.
"""

import argparse
import os

import torch
from data import digits
from digits import evaluate, network
from torch.nn.functional import cross_entropy

import hooke


def train(url: str, *, steps: int = 300, codec: str = "float32", authority: str | None = None) -> float:
    """One worker; what it knows of the test images when it has finished."""
    train_images, train_labels, test_images, test_labels = digits()
    torch.manual_seed(0)  # the first worker's weights become the center's; the others take them from there
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    center = hooke.connect(url, authority=authority, codec=codec, wait=30)
    with hooke.Worker(model, optimizer, hooke.EAMSGD(), center=center, overlap=True) as worker:
        generator = torch.Generator().manual_seed(worker.seed)  # every worker draws from all images, in its own order
        for _ in range(steps):
            batch = torch.randint(len(train_images), (8,), generator=generator)
            loss = cross_entropy(model(train_images[batch]), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            worker_accuracy = evaluate(model, test_images, test_labels)["accuracy"]
    center.close()
    return worker_accuracy


def number_of_this_process() -> int:
    """As torchrun, Slurm or nobody says."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("center", help="its address, as it printed it; the token is in HOOKE_TOKEN")
    parser.add_argument("--authority", help="PEM file, for grpc+tls")
    parser.add_argument("--codec", default="float32")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    number = number_of_this_process()
    accuracy = train(args.center, steps=args.steps, codec=args.codec, authority=args.authority)
    print(f"worker {number} has finished: it knows {accuracy:.1%} of the test images")


if __name__ == "__main__":
    main()
