"""hooke in Hugging Face transformers: one callback ties the Trainer's model to the center. Copy the class.

hooke run --workers 2 examples/transformers_callback.py
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import hooke
from hooke.run import Run


class HookeCallback(TrainerCallback):
    """A `hooke.Worker` around the Trainer's model and optimizer, from the first step to the last."""

    def __init__(self, rule: hooke.Rule, **options: Any) -> None:
        self.rule, self.options = rule, options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the one that steps
        self.worker = hooke.Worker(kwargs["model"], inner, self.rule, **self.options).start()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.worker.record(loss=kwargs["logs"]["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.worker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()

    run = Run.current()
    settings = TrainingArguments(
        output_dir=str(run.files.path if run else "runs"),
        max_steps=args.steps,
        learning_rate=args.lr,
        per_device_train_batch_size=8,
        seed=run.worker if run else 0,  # an order of its own for every worker
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    # A toy to learn: this file, byte by byte.
    content = torch.tensor(list(Path(__file__).read_bytes()))
    blocks = [{"input_ids": block, "labels": block} for block in content.unfold(0, 32, 8)]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    callback = HookeCallback(hooke.EASGD(beta=0.9), communication_period=10)
    Trainer(model, settings, train_dataset=blocks, callbacks=[callback]).train()


if __name__ == "__main__":
    main()
