"""The paper's seven-layer network learns CIFAR-10 with EAMSGD, on random 28x28 crops.

hooke run --workers 4 examples/cifar10.py --root ~/data
hooke run --resume examples/cifar10.py --root ~/data          # goes on after Ctrl-C or a crash

As in arXiv 1412.6651, section 5: batches of 128, weight decay 1e-4, period 10, beta 0.9. The paper's momentum is 0.99,
with learning rates from 0.001 to 0.01.
"""

import argparse

import torch
from data import cifar10
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hooke


def network() -> nn.Module:
    """(3,28) C(64,24) P(64,12) C(128,8) P(128,4) C(64,2) D(256,1) S(10,1) in the paper's notation."""
    first = [nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(64, 128, 5), nn.ReLU(), nn.MaxPool2d(2)]
    third = [nn.Conv2d(128, 64, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, *second, *third, nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))


def random_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """28x28 pixels of each image, somewhere, half of them mirrored."""
    windows = images.unfold(2, 28, 1).unfold(3, 28, 1)  # image, color, 5 places down, 5 across, 28, 28
    down, across = torch.randint(5, (2, len(images)), generator=generator)
    crops = windows[torch.arange(len(images)), :, down, across] / 255
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, crops.flip(3), crops)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, device: str) -> dict[str, float]:
    model.eval()
    outputs = torch.cat([model(part[:, :, 2:30, 2:30].to(device) / 255).cpu() for part in images.split(500)])
    model.train()
    accuracy = (outputs.argmax(1) == labels).float().mean()
    return {"accuracy": accuracy.item(), "test_loss": cross_entropy(outputs, labels).item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of the data; default: the environment variable HOOKE_DATA")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9, help="with 0, EAMSGD is EASGD")
    parser.add_argument("--period", type=int, default=10, help="steps between two exchanges with the center")
    parser.add_argument("--steps", type=int, default=4000, help="of each worker")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    images, labels, test_images, test_labels = cifar10(args.root)
    torch.manual_seed(args.seed)
    model = network().to(args.device)
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=args.momentum, nesterov=args.momentum > 0, weight_decay=1e-4
    )

    with hooke.Worker(model, optimizer, hooke.EAMSGD(beta=0.9), communication_period=args.period) as worker:
        number = worker.run.worker if worker.run else 0
        torch.manual_seed(1000 * args.seed + worker.seed)  # dropout of its own for every worker
        generator = torch.Generator().manual_seed(1000 * args.seed + worker.seed)
        position = worker.restore() or {"step": 0, "generator": generator.get_state()}
        generator.set_state(position["generator"])

        for step in range(position["step"] + 1, args.steps + 1):
            batch = torch.randint(len(images), (args.batch,), generator=generator)
            x = random_crops(images[batch], generator).to(args.device)
            loss = cross_entropy(model(x), labels[batch].to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            worker.record(loss=loss.item(), examples=args.batch)

            if number == 0 and (step % args.evaluate_every == 0 or step == args.steps):
                with worker.center_weights():
                    result = evaluate(model, test_images, test_labels, args.device)
                worker.record(of="center", **result)
                print(f"step {step}: the center's test accuracy is {result['accuracy']:.2%}")
            if worker.checkpoint_due:
                worker.save(step=step, generator=generator.get_state())


if __name__ == "__main__":
    main()
