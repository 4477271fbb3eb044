"""The three lines go into other people's loops: equal to the plain loop, and nothing stays behind."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hooke

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

PERIOD = 4
State = dict[str, Tensor]
Train = Callable[[nn.Module, hooke.Rule | None, hooke.LocalCenter | None], None]


def options_for(rule: hooke.Rule) -> dict[str, Any]:
    """Averaged buffers are pulled elastically whatever the rule; local ones stay as they are without hooke."""
    return {"communication_period": PERIOD, "buffers": "local" if isinstance(rule, hooke.LocalSGD) else "average"}


def copy_of(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: State, other: State, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def assert_untouched(model: nn.Module, optimizer: torch.optim.Optimizer, before: list[nn.Parameter]) -> None:
    """Same Parameter objects, each with memory of its own; no hook left."""
    assert all(now is then for now, then in zip(model.parameters(), before, strict=True))
    assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def beside_another(build: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], train: Train) -> list[State]:
    """`train` one worker while a second one steps before and after it, on the same center: both, and the center."""
    model, other, rule = build(), build(), hooke.EASGD(beta=0.9)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    center = hooke.LocalCenter()
    handle, onlooker = (hooke.LocalCenter(center.path) for _ in range(2))
    with hooke.Worker(other, optimizer, rule, center=handle, communication_period=1) as worker:
        for stage in range(2):
            for _ in range(3):
                optimizer.zero_grad()
                loss(other).backward()
                optimizer.step()
            if stage == 0:
                train(model, rule, center)
        assert worker.steps == 6
    states = [copy_of(model), copy_of(other), {"center": onlooker.pull()}]
    states[2]["exchanges"] = torch.tensor(onlooker.exchanges)
    for used in (handle, onlooker, center):
        used.close()
    return states


# A plain loop --------------------------------------------------------------------------------------------------------

STEPS = 12
INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3


def network() -> nn.Module:
    """With a batch norm, whose buffers are averaged too."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))
    return nn.Sequential(OrderedDict(network=layers))  # named as in the Lightning module


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


def network_loss(model: nn.Module) -> Tensor:
    return cross_entropy(model(INPUTS), LABELS)


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, within_step: bool = False) -> None:
    """The user's own; it knows nothing of hooke. Forward and backward come before the step, or within it."""
    for x, y in [*zip(INPUTS.split(4), LABELS.split(4), strict=True)] * 2:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        if within_step:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def by_loop(
    model: nn.Module, rule: hooke.Rule | None, center: hooke.LocalCenter | None, within_step: bool = False
) -> None:
    optimizer = sgd(model)
    if rule is None:
        loop(model, optimizer, within_step)
        return
    before = list(model.parameters())
    with hooke.Worker(model, optimizer, rule, center=center, **options_for(rule)) as worker:
        loop(model, optimizer, within_step)
        assert worker.steps == STEPS
    assert_untouched(model, optimizer, before)


def assert_trains_as_without_hooke(build: Callable[[], nn.Module], train: Train, tolerance: float = 1e-6) -> None:
    """The center of local SGD with one worker is that worker: hooke is there, and changes nothing."""
    plain, tied = build(), build()
    train(plain, None, None)
    center = hooke.LocalCenter()
    onlooker = hooke.LocalCenter(center.path)
    train(tied, hooke.LocalSGD(), center)
    assert onlooker.exchanges == STEPS // PERIOD
    assert_equal(copy_of(tied), copy_of(plain), tolerance)
    trained = {entry.name: entry.view(onlooker.pull()) for entry in onlooker.spec.entries}
    assert_equal(trained, {name: copy_of(plain)[name] for name in trained}, tolerance)
    assert any((tensor != build().state_dict()[name]).any() for name, tensor in trained.items())
    onlooker.close()
    center.close()


def test_a_plain_loop_alone() -> None:
    assert_trains_as_without_hooke(network, by_loop)


def test_a_plain_loop_beside_another_worker() -> None:
    model, other, center = beside_another(network, network_loss, by_loop)
    assert center["exchanges"] == 6 + STEPS // PERIOD
    start = hooke.FlatParameters(network(), buffers=True).gather_()
    assert torch.linalg.vector_norm(center["center"] - start) > 0.1
    assert any((model[name] != other[name]).any() for name in model)


# Lightning -----------------------------------------------------------------------------------------------------------

lightning_warnings = pytest.mark.filterwarnings(
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
    "ignore:The 'train_dataloader' does not have many workers:UserWarning",
    "ignore:GPU available but not used:UserWarning",
)


def by_lightning(model: nn.Module, rule: hooke.Rule | None, center: hooke.LocalCenter | None, **options: Any) -> None:
    import pytorch_lightning as pl
    from lightning_callback import HookeCallback
    from torch.utils.data import DataLoader, TensorDataset

    class Module(pl.LightningModule):
        """The user's own; it knows nothing of hooke."""

        def __init__(self) -> None:
            super().__init__()
            self.network = model.network

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.network)

    tie = [] if rule is None else [HookeCallback(rule, center=center, **options_for(rule))]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = quiet | {"callbacks": tie, "max_epochs": 2, "accelerator": "cpu"} | options
    before = list(model.parameters())
    trainer = pl.Trainer(**options)
    trainer.fit(Module(), DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4))
    if rule is not None:
        assert tie[0].worker.steps == trainer.global_step
    assert_untouched(model, trainer.optimizers[0], before)


@lightning_warnings
def test_a_lightning_module_alone() -> None:
    assert_trains_as_without_hooke(network, by_lightning)


@lightning_warnings
def test_a_lightning_module_equals_the_plain_loop_beside_another_worker() -> None:
    like_lightning = partial(by_loop, within_step=True)
    ours = beside_another(network, network_loss, by_lightning)
    for one, other in zip(ours, beside_another(network, network_loss, like_lightning), strict=True):
        assert_equal(one, other)


@lightning_warnings
def test_a_lightning_checkpoint_within_the_run_holds_the_worker(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "within.ckpt")
                self.then = copy_of(pl_module)

    save, center, model = Save(), hooke.LocalCenter(), network()
    from lightning_callback import HookeCallback

    tie = HookeCallback(hooke.EAMSGD(), center=center, communication_period=PERIOD)
    by_lightning(model, None, None, callbacks=[tie, save], max_steps=8)
    assert_equal(torch.load(tmp_path / "within.ckpt", weights_only=False)["state_dict"], save.then)
    assert tie.worker.steps == 8
    center.close()


# Transformers --------------------------------------------------------------------------------------------------------

BLOCKS = torch.randint(64, (24, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return


def gpt2() -> Any:
    """Its output layer is tied to its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    no_words = dict.fromkeys(("bos_token_id", "eos_token_id"))
    sizes = {"vocab_size": 64, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, **no_words))


def gpt2_loss(model: nn.Module) -> Tensor:
    return model(input_ids=BLOCKS[:4], labels=BLOCKS[:4]).loss


class ByTrainer:
    """Trains with the Trainer, and remembers the batches for a plain loop over the same."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.settings = folder, settings
        self.batches: list[dict[str, Tensor]] = []

    def collate(self, blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        inputs = torch.stack([block["input_ids"] for block in blocks])
        labels = inputs.clone()
        labels[:, 0] = -100  # never predicted; the Trainer divides the loss by the number of labels
        self.batches.append({"input_ids": inputs, "labels": labels})
        return self.batches[-1]

    def __call__(
        self, model: nn.Module, rule: hooke.Rule | None, center: hooke.LocalCenter | None, *others: Any
    ) -> None:
        from transformers import Trainer, TrainingArguments
        from transformers_callback import HookeCallback

        quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
        small = {"use_cpu": True, "per_device_train_batch_size": 4, "max_steps": STEPS}
        arguments = TrainingArguments(str(self.folder), **(quiet | small | self.settings))
        tie = [] if rule is None else [HookeCallback(rule, center=center, **options_for(rule))]
        before = list(model.parameters())
        self.batches = []
        blocks = [{"input_ids": block} for block in BLOCKS]
        trainer = Trainer(model, arguments, train_dataset=blocks, data_collator=self.collate, callbacks=[*tie, *others])
        trainer.train()
        if rule is not None:
            assert tie[0].worker.steps == STEPS
        assert_untouched(model, trainer.optimizer.optimizer, before)
        assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}])
def test_a_trainer_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_trains_as_without_hooke(gpt2, ByTrainer(tmp_path, **settings))


def test_a_trainer_equals_the_plain_loop_beside_another_worker(tmp_path: Path) -> None:
    rates = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    by_trainer = ByTrainer(tmp_path, **rates)

    def by_loop_over_the_same(model: nn.Module, rule: hooke.Rule | None, center: hooke.LocalCenter | None) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with hooke.Worker(model, optimizer, rule, center=center, **options_for(rule)):
            for batch in by_trainer.batches[:STEPS]:
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()

    ours = beside_another(gpt2, gpt2_loss, by_trainer)
    assert len(by_trainer.batches) >= STEPS
    for one, other in zip(ours, beside_another(gpt2, gpt2_loss, by_loop_over_the_same), strict=True):
        assert_equal(one, other, 1e-5)
    assert ours[2]["exchanges"] == 6 + STEPS // PERIOD


def test_a_trainers_checkpoint_within_the_run_holds_the_worker(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel, TrainerCallback

    class Note(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            then[state.global_step] = copy_of(model)

    then: dict[int, State] = {}
    center = hooke.LocalCenter()
    ByTrainer(tmp_path, save_strategy="steps", save_steps=5)(gpt2(), hooke.EASGD(), center, Note())
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-5")
    assert_equal(copy_of(loaded), then[5])
    center.close()
