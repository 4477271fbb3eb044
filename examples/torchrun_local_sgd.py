"""Local SGD without a server: every rank of torchrun holds the center, one all-reduce keeps the copies equal.

torchrun --nproc-per-node 2 examples/torchrun_local_sgd.py

The ranks exchange at once, so each must take the same number of steps, as under DistributedDataParallel.
"""

import argparse

import torch
import torch.distributed as dist
from data import digits
from digits import evaluate, network
from torch.nn.functional import cross_entropy

import hooke


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--period", type=int, default=10, help="steps between two averages")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--evaluate-every", type=int, default=50, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    train_images, train_labels, test_images, test_labels = digits()
    torch.manual_seed(args.seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, nesterov=True)
    center = hooke.ReplicatedCenter()

    with hooke.Worker(model, optimizer, hooke.LocalSGD(), center=center, communication_period=args.period) as worker:
        generator = torch.Generator().manual_seed(1000 * args.seed + rank)  # every rank draws from all images
        for step in range(1, args.steps + 1):
            batch = torch.randint(len(train_images), (args.batch,), generator=generator)
            loss = cross_entropy(model(train_images[batch]), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            if rank == 0 and (step % args.evaluate_every == 0 or step == args.steps):
                with worker.center_weights():
                    result = evaluate(model, test_images, test_labels)
                print(f"step {step}: the center knows {result['accuracy']:.1%} of the test images")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
