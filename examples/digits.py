"""A small convolutional network learns scikit-learn's bundled digits, by any method of hooke.

hooke run --workers 4 examples/digits.py --method eamsgd
hooke run --resume examples/digits.py --method eamsgd         # goes on after Ctrl-C or a crash
python examples/digits.py --method msgd --alone               # without `hooke run`: a center of its own
"""

import argparse

import torch
from data import digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hooke

METHODS = {  # the rule, and Nesterov's momentum
    "easgd": (hooke.EASGD(beta=0.9), 0.0),
    "eamsgd": (hooke.EAMSGD(beta=0.9), 0.9),
    "downpour": (hooke.Downpour(), 0.0),
    "local": (hooke.LocalSGD(), 0.9),
    "msgd": (hooke.LocalSGD(num_workers=1), 0.9),  # the mean of one worker is that worker: plain sequential SGD
}


def network() -> nn.Module:
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*convolutions, *head)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    model.eval()
    outputs = model(images)
    model.train()
    accuracy = (outputs.argmax(1) == labels).float().mean()
    return {"accuracy": accuracy.item(), "test_loss": cross_entropy(outputs, labels).item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="eamsgd")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--period", type=int, default=10, help="steps between two exchanges with the center")
    parser.add_argument("--steps", type=int, default=600, help="of each worker")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--evaluate-every", type=int, default=50, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="train without `hooke run`")
    args = parser.parse_args()

    train_images, train_labels, test_images, test_labels = digits()
    torch.manual_seed(args.seed)
    model = network()
    rule, momentum = METHODS[args.method]
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=momentum, nesterov=momentum > 0)
    center = hooke.LocalCenter() if args.alone else None  # None: the one that `hooke run` prepared

    with hooke.Worker(model, optimizer, rule, center=center, communication_period=args.period) as worker:
        number, num_workers = (worker.run.worker, worker.run.num_workers) if worker.run else (0, 1)
        if args.method == "msgd" and num_workers > 1:
            parser.error(f"--method msgd is sequential. Got {num_workers} workers. Use hooke run --workers 1.")
        generator = torch.Generator().manual_seed(1000 * args.seed + worker.seed)  # every worker draws from all images
        position = worker.restore() or {"step": 0, "generator": generator.get_state()}
        generator.set_state(position["generator"])

        for step in range(position["step"] + 1, args.steps + 1):
            batch = torch.randint(len(train_images), (args.batch,), generator=generator)
            loss = cross_entropy(model(train_images[batch]), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            worker.record(loss=loss.item(), examples=args.batch)

            if number == 0 and (step % args.evaluate_every == 0 or step == args.steps):
                with worker.center_weights():
                    result = evaluate(model, test_images, test_labels)
                worker.record(of="center", **result)
                print(f"step {step}: the center knows {result['accuracy']:.1%} of the test images")
            if worker.checkpoint_due:
                worker.save(step=step, generator=generator.get_state())


if __name__ == "__main__":
    main()
