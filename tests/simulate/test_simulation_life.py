"""A simulation's bytes, settings and life."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import ETA, Quadratic, network
from literal import BEGIN, MORTAL, SIZE, bowl, minimum_of, sgd
from torch import Tensor, nn

import hooke
from hooke.simulate import Cluster, Simulation

# Same seed, same bytes --------------------------------------------------------------------------------------------


def classify(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def examples(worker: int, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 * worker + step)
    x = torch.randn(8, 5, generator=generator)
    return {"x": x, "y": torch.randint(0, 3, (8,), generator=generator)}


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def leave(folder: Path, stops: Iterable[float], seed: int = 0, **options: Any) -> dict[str, bytes]:
    """The bytes of the center, and of everything that the simulation of a net with dropout has written."""
    model = nn.Sequential(network(), nn.Dropout(0.3), nn.Linear(3, 3))
    settings = {"cluster": MORTAL, "communication_period": 3, "seed": seed, "rows": folder} | options
    with Simulation(model, classify, examples, hooke.EASGD(), optimizer=adamw, **settings) as simulation:
        for until in stops:
            simulation.run(until)
            with simulation.center_weights() as center, torch.no_grad():
                center(torch.ones(1, 5))  # whoever looks on changes nothing
        found = {"center": simulation.center.numpy().tobytes()}
    return found | {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json*"))}


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"stacked": True}, {"overlap": True, "stacked": True}])
def test_the_same_seed_gives_the_same_bytes_in_one_run_or_in_many(options: dict[str, bool], tmp_path: Path) -> None:
    once = leave(tmp_path / "once", [40.0], **options)
    assert leave(tmp_path / "again", [40.0], **options) == once
    assert leave(tmp_path / "pieces", np.linspace(0, 40, 14), **options) == once
    assert set(once) == {"center", "run.json", *(f"workers/{number}.jsonl" for number in range(4))}
    other = leave(tmp_path / "other", [40.0], seed=1, **options)
    assert all(other[name] != once[name] for name in once)


def test_another_seed_draws_other_dropout_at_the_same_times(tmp_path: Path) -> None:
    even = {"cluster": Cluster(2)}
    one, other = (leave(tmp_path / str(seed), [9.0], seed=seed, **even) for seed in (0, 1))
    assert one["center"] != other["center"]


def test_the_global_chances_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(5, 3))
    before, numpys = torch.random.get_rng_state(), np.random.get_state()[1].tobytes()
    with Simulation(model, classify, examples, hooke.EASGD(), optimizer=adamw) as simulation:
        simulation.run(3.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tobytes() == numpys


# Settings --------------------------------------------------------------------------------------------------------


def make(**options: Any) -> Simulation:
    settings = {"rule": hooke.EASGD(), "loss": bowl, "batches": minimum_of, "optimizer": sgd()} | options
    return Simulation(settings.pop("model", Quadratic(SIZE, 0)), **settings)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"overlap": True, "synchronous": True},
            "Simulation: overlap needs workers that exchange on their own. Got synchronous=True too. Drop one of them.",
        ),
        (
            {"communication_period": {0: 1, 9: 3}},
            "Simulation: communication_period must be one whole number of steps. Got {0: 1, 9: 3}. Use e.g. 10.",
        ),
        (
            {"communication_period": 0},
            "Worker: communication_period must be a whole number of steps, at least 1. Got 0. Use e.g. 10.",
        ),
        (
            {"communication_period": 10, "fragments": 4},
            "Simulation: fragments must divide communication_period. Got 4 fragments and a period of 10. "
            "Use e.g. fragments=2.",
        ),
        ({"fragments": 0}, "Worker: fragments must be a whole number, at least 1. Got 0. Use e.g. 4."),
        (
            {"communication_period": 30, "fragments": 15, "synchronous": True, "cluster": Cluster(2, lost=0.1)},
            "timeline: synchronous=True needs overlap=False, shards=1 and lost=0. Got overlap=False, shards=1, "
            "lost=0.1. A ring of workers has no center; drop synchronous or those.",
        ),
        ({"rule": hooke.EAMSGD(), "optimizer": adamw}, "Worker: EAMSGD needs torch.optim.SGD with nesterov=True. Got"),
        (
            {"optimizer": lambda parameters: None},
            "Simulation: optimizer must make one from parameters. Got None from it. Use e.g. lambda parameters: "
            "torch.optim.SGD(parameters, lr=0.1).",
        ),
        ({"model": nn.Tanh()}, "FlatParameters: model must have a trainable parameter. Got none."),
        ({"cluster": 4}, "Simulation: cluster must be a Cluster. Got 4. Use e.g. hooke.Cluster(num_workers=4)."),
        ({"batches": []}, "Simulation: batches must be a function. Got []. Use e.g. lambda worker, step: torch.ones("),
        ({"optimizer": torch.optim.SGD([torch.ones(1)])}, "Simulation: optimizer must be a function. Got SGD ("),
        ({"loss": None}, "Simulation: loss must be a function. Got None. Use e.g. lambda model, batch: "),
        (
            {"loss": nn.MSELoss()},
            "Simulation: loss must be a function of model and batch. Got MSELoss(). Use lambda model, batch: "
            "criterion(model(batch[0]), batch[1]).",
        ),
        ({"scheduler": 0.1}, "Simulation: scheduler must be a function. Got 0.1. Use e.g. lambda optimizer: "),
        ({"model": network}, "Simulation: model must be a Module. Got <function network"),
        ({"seed": -1}, "Simulation: seed must be a whole number, at least 0. Got -1. Use e.g. 0."),
        ({"seed": 1.5}, "Simulation: seed must be a whole number, at least 0. Got 1.5. Use e.g. 0."),
        ({"rows": __file__}, "Simulation: rows must be a directory without a run. Got "),
        ({"buffers": "none"}, "Worker: buffers must be one of ('average', 'local'). Got 'none'. Use 'average'."),
    ],
)
def test_a_bad_setting_gets_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**options)
    assert str(caught.value).startswith(sentence)


def test_time_does_not_turn_back_and_the_closed_stay_closed() -> None:
    simulation = make()
    simulation.run(5.0)
    simulation.run(5.0)
    sentence = r"^Simulation: until must be a time from the 5 seconds reached on\. Got 4\.0\. Use a later one\.$"
    with pytest.raises(ValueError, match=sentence):
        simulation.run(4.0)
    for never in (math.inf, math.nan, "9", None):
        with pytest.raises(ValueError, match=r"^Simulation: until must be"):
            simulation.run(never)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^Simulation: center_weights\(average=True\) needs a rule that keeps one\."):
        simulation.center_weights(average=True).__enter__()
    with pytest.raises(ValueError, match=r"^Record: name must be one of"):
        simulation.record(color=1.0)
    simulation.record(accuracy=0.5)
    simulation.close()
    simulation.close()
    assert (simulation.steps, simulation.exchanges) == (0, 4)  # each counted up to its last exchange, at step 0
    closed = (
        r"^Simulation: run\(\) needs one that is open\. Got one that was closed, or whose run has failed\. Make "
        r"another, and call it inside `with`\.$"
    )
    with pytest.raises(RuntimeError, match=closed):
        simulation.run(9.0)
    with pytest.raises(RuntimeError, match=r"^Simulation: record\(\) needs one that is open\."):
        simulation.record(accuracy=0.5)


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"synchronous": True}])
def test_a_run_that_fails_says_why_and_is_over(options: dict[str, bool]) -> None:
    def batches(worker: int, step: int) -> Tensor:
        if (worker, step) == (2, 11):
            raise FileNotFoundError("no batch 11")
        return minimum_of(worker, step)

    simulation = make(batches=batches, **options)
    with pytest.raises(FileNotFoundError, match="no batch 11"):
        simulation.run(60.0)
    with pytest.raises(RuntimeError, match="whose run has failed"):
        simulation.run(60.0)


def test_a_worker_that_fails_at_a_synchronous_exchange_leaves_nobody_waiting() -> None:
    class Moody(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise ArithmeticError("not today")

    made = iter([torch.optim.SGD, Moody, torch.optim.SGD])
    simulation = make(optimizer=lambda p: next(made)(p, lr=0.1), cluster=Cluster(3), synchronous=True)
    with pytest.raises(ArithmeticError, match="not today"):
        simulation.run(5.0)


def test_what_is_under_way_at_the_end_hangs_nobody() -> None:
    """Without `with`, too: no thread waits for a clock that has stopped."""
    simulation = make(overlap=True, communication_period=1, cluster=Cluster(2, bandwidth=16 * 32 / 2.5))
    moments = (20.0 + 0.1 * i for i in range(50))
    simulation.run(next(moments))
    while not any(member.is_busy_after(member.calls) for member in simulation._members.values()):
        simulation.run(next(moments))


def test_a_scheduler_steps_with_the_optimizer() -> None:
    def slower(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)

    with make(scheduler=slower, cluster=Cluster(1), communication_period=5) as simulation:
        simulation.run(30.0)
        (member,) = simulation._members.values()
        assert member.calls == 31
        assert member.worker.optimizer.param_groups[0]["lr"] == pytest.approx(ETA * 1e-3)


def test_the_average_of_the_center_can_be_held() -> None:
    with make(rule=hooke.Averaged(hooke.EASGD(), 0.5)) as simulation:
        simulation.run(50.0)
        with simulation.center_weights() as model:
            center = model.x.clone()
        with simulation.center_weights(average=True) as model:
            average = model.x.clone()
        assert torch.equal(center, simulation.center[:SIZE])
        assert 0 < (average - center).norm() < (center - torch.tensor(BEGIN)).norm()


def normed(cluster: Cluster, **options: Any) -> Simulation:
    """Workers whose batches lie at 10 (worker + 1), and whose models measure that."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))

    def batches(worker: int, step: int) -> Tensor:
        return 10.0 * (worker + 1) + torch.randn(9, 1, generator=torch.Generator().manual_seed(step))

    return make(
        model=model, loss=lambda model, x: model(x).square().mean(), batches=batches, cluster=cluster, **options
    )


def test_center_weights_hold_a_workers_own_buffers_where_the_center_has_none() -> None:
    cluster = Cluster(2, failures=(hooke.Failure(0, at=200.0),))
    with normed(cluster, buffers="local") as simulation:

        def mean(worker: int | None = None) -> float:
            with simulation.center_weights(worker=worker) as model:
                return model[0].running_mean.item()  # type: ignore[index,union-attr]

        assert mean() == 0
        simulation.run(150.0)
        assert (mean(), mean(0), mean(1)) == pytest.approx((10, 10, 20), abs=0.5)
        assert mean() != simulation._members[1].worker.model[0].running_mean.item()  # type: ignore[index]
        simulation.run(250.0)
        assert mean() == mean(1) == pytest.approx(20, abs=0.5)
        sentence = (
            r"^Simulation: center_weights\(worker=\.\.\.\) needs one that is there\. Got 0, there are \[1\]\. Use one "
            r"of them, or leave it out\.$"
        )
        with pytest.raises(ValueError, match=sentence):
            mean(0)
    assert mean() == pytest.approx(20, abs=0.5)


def test_center_weights_inside_center_weights_leave_the_outer_as_they_were() -> None:
    for buffers in ("average", "local"):
        with normed(Cluster(2), rule=hooke.Averaged(hooke.EASGD(), 0.1), buffers=buffers) as simulation:
            simulation.run(60.0)
            with simulation.center_weights() as outer:
                before = {name: value.clone() for name, value in outer.state_dict().items()}
                assert before["0.num_batches_tracked"] > 50  # the worker's own count, which no center averages
                with simulation.center_weights(average=True, worker=1) as inner:
                    assert not torch.equal(inner[1].weight, before["1.weight"])  # type: ignore[index]
                    assert not torch.equal(inner[0].running_mean, before["0.running_mean"])  # type: ignore[index]
                assert all(torch.equal(value, before[name]) for name, value in outer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_models_with_buffers_are_simulated_too(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).to(dtype)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"].to(dtype)), batch["y"])

    with Simulation(model, loss, examples, hooke.LocalSGD(), optimizer=adamw, communication_period=3) as simulation:
        simulation.run(30.0)
        with simulation.center_weights() as center:
            assert all(p.dtype == dtype for p in center.parameters())
            assert 0 < center[1].running_mean.abs().max() < 1
            losses = [loss(net.eval(), examples(9, 9)).item() for net in (model, center)]
    assert losses[1] != losses[0]
    assert model[1].running_mean.abs().max() == 0  # the user's model stays as it is


def test_inside_hooke_run_it_leaves_no_rows_of_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hooke.Run(str(tmp_path), str(tmp_path / "center"), 0, 1, 0.0)
    for name, value in run.environment().items():
        monkeypatch.setenv(name, value)
    with make() as simulation:
        simulation.run(5.0)
    assert list(tmp_path.iterdir()) == []
