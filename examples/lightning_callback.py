"""hooke in PyTorch Lightning: one callback ties the module that is trained to the center. Copy the class.

hooke run --workers 2 examples/lightning_callback.py
"""

import argparse
from typing import Any

import pytorch_lightning as pl
import torch
from data import digits
from digits import network
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hooke
from hooke.run import Run


class HookeCallback(pl.Callback):
    """A `hooke.Worker` around the trainer's first optimizer, from the first batch to the last."""

    def __init__(self, rule: hooke.Rule, **options: Any) -> None:
        self.rule, self.options = rule, options

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.worker = hooke.Worker(pl_module, trainer.optimizers[0], self.rule, **self.options).start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.worker.record(loss=outputs["loss"].item(), examples=len(batch[0]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.worker.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.worker.stop(finished=False)


class Digits(pl.LightningModule):
    """An ordinary module; it knows nothing of hooke."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.network, self.lr = network(), lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, nesterov=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()

    run = Run.current()
    pl.seed_everything(run.worker if run else 0)  # an order of its own for every worker
    images, labels, *_ = digits()
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[HookeCallback(hooke.EAMSGD(beta=0.9), communication_period=10)],
    )
    trainer.fit(Digits(args.lr), DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True))


if __name__ == "__main__":
    main()
