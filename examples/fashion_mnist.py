"""A convolutional network learns Fashion-MNIST with EAMSGD: an ordinary loop over epochs of a DataLoader.

hooke run --workers 2 examples/fashion_mnist.py --root ~/data
hooke run --resume examples/fashion_mnist.py --root ~/data    # goes on at the epoch of the last checkpoint
"""

import argparse

import torch
from data import fashion_mnist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hooke


def network() -> nn.Module:
    convolutions = [nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10))


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    model.eval()
    outputs = torch.cat([model(part / 255) for part in images.split(500)])
    model.train()
    accuracy = (outputs.argmax(1) == labels).float().mean()
    return {"accuracy": accuracy.item(), "test_loss": cross_entropy(outputs, labels).item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of the data; default: the environment variable HOOKE_DATA")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9, help="with 0, EAMSGD is EASGD")
    parser.add_argument("--period", type=int, default=10, help="steps between two exchanges with the center")
    parser.add_argument("--epochs", type=int, default=5, help="of each worker")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    images, labels, *test = (part.to(args.device) for part in fashion_mnist(args.root))
    torch.manual_seed(args.seed)
    model = network().to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, nesterov=args.momentum > 0)

    with hooke.Worker(model, optimizer, hooke.EAMSGD(beta=0.9), communication_period=args.period) as worker:
        number = worker.run.worker if worker.run else 0
        generator = torch.Generator().manual_seed(
            1000 * args.seed + worker.seed
        )  # an order of its own for every worker
        loader = DataLoader(TensorDataset(images, labels), args.batch, shuffle=True, generator=generator)
        last_step = args.epochs * len(loader)
        position = worker.restore() or {"epoch": 0, "generator": generator.get_state()}
        generator.set_state(position["generator"])

        for epoch in range(position["epoch"] + 1, args.epochs + 1):
            for x, y in loader:
                loss = cross_entropy(model(x / 255), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                worker.record(loss=loss.item(), examples=len(x))

                if number == 0 and (worker.steps % args.evaluate_every == 0 or worker.steps == last_step):
                    with worker.center_weights():
                        result = evaluate(model, *test)
                    worker.record(of="center", **result)
                    print(f"epoch {epoch}, step {worker.steps}: the center's test accuracy is {result['accuracy']:.2%}")
            if worker.checkpoint_due:
                worker.save(epoch=epoch, generator=generator.get_state())


if __name__ == "__main__":
    main()
