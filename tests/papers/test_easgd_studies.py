"""What the studies of `papers.zhang2015easgd` compute: images, the network, runs on both clocks, quadratics."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hooke
from hooke.stability import elastic_stability, moving_rate_border, way_stability
from papers.easgd import analysis, real, training
from papers.easgd import images as source
from papers.easgd.images import Images, images

CELL: dict[str, Any] = {
    "workers": 2, "period": 4, "lr": 0.05, "seed": 3, "width": 2, "batch": 4, "steps": 12, "points": 3, "source": "toy",
    "step_seconds": 0.01, "bandwidth": 4e9, "latency": 1e-4, "jitter": 0.1,
}  # fmt: skip


# Images


@pytest.fixture
def numbered() -> Images:
    """60 images whose every value says where it is: image, row, column, channel."""
    train = torch.arange(60 * 32 * 32 * 3, dtype=torch.float32).view(60, 32, 32, 3)
    return Images(train, torch.arange(60) % 10, torch.zeros(1, 3, 28, 28), torch.zeros(1, dtype=torch.int64))


def test_crops_are_windows_and_flips_are_flips(numbered: Images) -> None:
    x, y = numbered.batch(2000, 7, 1, 5)
    assert x.shape == (2000, 3, 28, 28)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    seen, flips = set(), 0
    for crop, label in zip(x.permute(0, 2, 3, 1), y, strict=True):
        flipped = bool(crop[0, 0, 0] > crop[0, -1, 0])
        crop = crop.flip(1) if flipped else crop
        image, place = divmod(int(crop[0, 0, 0]), 32 * 32 * 3)
        row, column = divmod(place // 3, 32)
        assert torch.equal(crop, numbered.train[image, row : row + 28, column : column + 28])
        assert label == image % 10
        seen.add((image, row, column))
        flips += flipped
    assert {row for _, row, _ in seen} == {column for *_, column in seen} == {0, 1, 2, 3, 4}
    assert {(row, column) for _, row, column in seen} == {(row, column) for row in range(5) for column in range(5)}
    assert {image for image, *_ in seen} == set(range(60))
    assert 900 < flips < 1100


def test_a_batch_depends_on_its_seeds_alone(numbered: Images) -> None:
    """Not on the batches of other workers before it."""
    seeds = [(seed, worker, step) for seed in range(2) for worker in range(3) for step in range(4)]
    forth = {one: numbered.batch(8, *one)[0] for one in seeds}
    back = {one: numbered.batch(8, *one)[0] for one in seeds[::-1]}
    assert all(torch.equal(forth[one], back[one]) for one in seeds)
    assert len({tuple(batch.ravel().tolist()) for batch in forth.values()}) == len(seeds)


def test_channels_have_mean_0_and_variance_1(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    low, high = np.array([0, 50, 100]), np.array([100, 256, 120])
    made = [random.integers(low, high, (count, 32, 32, 3)).astype(np.uint8) for count in (40, 20)]
    arrays = (made[0].reshape(40, -1), np.arange(40), made[1].reshape(20, -1), np.arange(20))
    monkeypatch.setitem(source._SOURCES, "made", lambda: arrays)
    shown = images("made")
    torch.testing.assert_close(shown.train.mean((0, 1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(shown.train.var((0, 1, 2), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    mean, scale = made[0].mean((0, 1, 2)), made[0].std((0, 1, 2))
    expected = ((made[1] - mean) / scale)[:, 2:30, 2:30].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(shown.test.numpy(), expected, atol=1e-5)
    assert shown.test_classes.tolist() == list(range(20))
    with pytest.raises(
        ValueError, match=r"^images: source must be one of cifar10, toy, made. Got 'cifar'. Use cifar10.$"
    ):
        images("cifar")


# The network


def test_the_layers_have_the_papers_sizes() -> None:
    """(3,28) C(64,24) P(64,12) C(128,8) P(128,4) C(64,2) D(256,1) S(10,1)."""
    x, shapes = torch.zeros(1, 3, 28, 28), []
    for layer in training.network(64):
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.Linear):
            shapes.append(tuple(x.shape[1:3]))
    assert shapes == [(64, 24), (64, 12), (128, 8), (128, 4), (64, 2), (256,), (10,)]
    kinds = [type(layer).__name__ for layer in training.network(64)]
    assert kinds.count("ReLU") == 4
    assert kinds[-2:] == ["Dropout", "Linear"]


def test_momentum_and_weight_decay() -> None:
    for method in ("SGD", "MVASGD", "MSGD", "DOWNPOUR", "MVADOWNPOUR", "MDOWNPOUR", "EASGD", "EAMSGD"):
        (group,) = training.optimizer_of(method, [nn.Parameter(torch.zeros(1))], 0.1).param_groups
        own = method in ("MSGD", "EAMSGD")
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99 if own else 0, own, 1e-4)
    assert training.rule_of("MDOWNPOUR") == hooke.MDownpour(0.99)
    assert training.rule_of("MVADOWNPOUR") == hooke.Averaged(hooke.Downpour(), rate=0.001)
    assert training.rule_of("DOWNPOUR") == hooke.Averaged(hooke.Downpour())
    assert training.rule_of("EAMSGD") == hooke.EAMSGD(beta=0.9)


# Runs


@pytest.mark.parametrize("method", ["EAMSGD", "DOWNPOUR"])
def test_the_same_cell_gives_the_same_to_the_bit(method: str) -> None:
    first, again, other = (training.trial(method, **{**CELL, "seed": seed}) for seed in (3, 3, 4))
    assert first == again
    assert first["loss"] != other["loss"]
    assert len(first["error"]) == len(first["seconds"]) == 3
    assert first["seconds"][-1] == 0.12
    assert first["refused"] == 0


def test_one_worker_alone_is_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """MSGD: LocalSGD of one worker, against torch's own optimizer and nothing of hooke's."""

    def calm(width: int) -> nn.Sequential:
        model = network(width)
        model[-2] = nn.Identity()
        return model

    network = training.network
    monkeypatch.setattr(training, "network", calm)
    cell = CELL | {"workers": 1, "period": 1, "lr": 0.01, "jitter": 0.0}
    result = training.trial("MSGD", **cell)
    torch.manual_seed(3)
    model, shown, losses, errors = calm(2), images("toy"), [], []
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=1e-4)
    for step in range(12):
        optimizer.zero_grad()
        x, y = shown.batch(4, 3, 0, step)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            out = model(shown.test)
        losses.append(float(nn.functional.cross_entropy(out, shown.test_classes)))
        errors.append(float((out.argmax(1) != shown.test_classes).float().mean()))
    assert result["loss"] == pytest.approx([losses[3], losses[7], losses[11]], rel=1e-5)
    assert result["error"] == pytest.approx([errors[3], errors[7], errors[11]])
    assert result["taken"] == 12


def test_an_average_changes_no_center() -> None:
    """DOWNPOUR with ADOWNPOUR's average, and with MVADOWNPOUR's."""
    one, other = (training.trial(method, **CELL) for method in ("DOWNPOUR", "MVADOWNPOUR"))
    assert one["loss"] == other["loss"]
    assert one["error"] == other["error"]
    assert len(one["average_error"]) == len(other["average_error"]) == 3
    assert training.trial("EASGD", **CELL)["average_error"] == []


@pytest.mark.filterwarnings("ignore:Worker. an exchange was refused")
def test_a_run_that_diverges_ends() -> None:
    result = training.trial("EASGD", **CELL | {"lr": 1e30, "steps": 400, "period": 1, "points": 8})
    assert 40 < result["refused"] < 200  # not all of 800
    assert len(result["error"]) == 8
    assert np.isfinite(result["error"]).all()


def test_the_clock_measures_one_thread() -> None:
    threads = torch.get_num_threads()
    result = training.clock(2, 4, "toy", rounds=3)
    assert result["seconds"] > 0
    assert result["parameters"] == sum(p.numel() for p in training.network(2).parameters())
    assert torch.get_num_threads() == threads
    assert training.clock(16, 2, "toy", rounds=1)["parameters"] == 23482


def test_processes_train_around_a_center() -> None:
    cell = {"workers": 2, "period": 2, "lr": 0.05, "seed": 0, "width": 2, "batch": 4, "seconds": 0.4, "points": 2}
    result = real.trial("EAMSGD", **cell, source="toy")
    assert result["moments"] == [0.2, 0.4]
    assert len(result["error"]) == 2
    assert all(0 <= error <= 1 for error in result["error"])
    assert result["exchanges"] > 0


@pytest.mark.parametrize("fault", [{"source": "nowhere"}, {"batch": -1}], ids=["before the start", "after it"])
def test_a_worker_that_fails_fails_the_trial(fault: dict[str, Any]) -> None:
    cell = {"workers": 1, "period": 2, "lr": 0.05, "seed": 0, "width": 2, "batch": 4, "seconds": 0.1, "points": 1}
    with pytest.raises(
        RuntimeError, match=r"^real: every worker must end well\. Got exit codes \[1\]\. Read what they"
    ):
        real.trial("EASGD", **{"source": "toy", **cell, **fault})


class Ended:
    """Stands for a process."""

    pid = 1

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode

    def join(self, timeout: float | None = None) -> None:
        pass

    kill = join


def test_nobody_waits_for_a_worker_that_died_before_the_start() -> None:
    """One of two is at the barrier, the other was killed on its way."""
    ready, freed = threading.Barrier(3), []

    def waiting() -> None:
        try:
            ready.wait(60)
        except threading.BrokenBarrierError:
            freed.append(True)

    thread = threading.Thread(target=waiting)
    thread.start()
    processes: Any = [Ended(1), Ended(-9)]
    with pytest.raises(RuntimeError, match=r"Got exit codes \[1, -9\]"):
        real._meet(ready, processes)  # pyright: ignore[reportArgumentType]
    thread.join()
    assert freed


def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "ENDING_SECONDS", 0.05)
    process = real._context().Process(target=time.sleep, args=(600,))
    process.start()
    real._end([process])
    assert process.exitcode == -9


# Quadratics


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_a_round_is_its_turns(workers: int) -> None:
    """Literally: each worker in turn exchanges with the center and steps; both see the values before."""
    eta, alpha = 0.3, 0.2
    x, center = np.linspace(1, 2, workers), 5.0
    state = np.append(x, center)
    for worker in range(workers):
        difference = alpha * (x[worker] - center)
        x[worker] += -eta * x[worker] - difference
        center += difference
    np.testing.assert_allclose(analysis.easgd_round(eta, alpha, workers) @ state, np.append(x, center), rtol=1e-13)


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.7])
def test_the_rounds_border_is_the_closed_form(eta: float) -> None:
    """Exactly for odd numbers of workers; even ones are stable a little beyond it, as the verdict's note says."""
    border = moving_rate_border(eta)
    for workers in (1, 2, 3, 4, 8):
        inside, beyond = (
            np.abs(np.linalg.eigvals(analysis.easgd_round(eta, border * share, workers))).max()
            for share in (0.9999, 1.0001)
        )
        assert inside < 1
        assert (beyond > 1) == (workers % 2 == 1)


def test_the_map_of_easgd_counts_where_the_paper_is_right() -> None:
    assert analysis.easgd_map(3, 9)["agree"] == 81
    wrong = analysis.easgd_map(2, 25)
    assert wrong["agree"] < wrong["points"] == 625  # two workers: "only if" is wrong beyond the border


def admm_round(eta: float, rho: float, workers: int) -> np.ndarray:
    """The map of one round, from literal turns of each unit vector."""
    columns = []
    for unit in np.eye(2 * workers + 1):
        x, dual, center = unit[:workers], unit[workers:-1], unit[-1]
        for i in range(workers):
            dual[i] -= x[i] - center
            x[i] = (x[i] - eta * x[i] + eta * rho * (dual[i] + center)) / (1 + eta * rho)
            center = np.mean(x - dual)
        columns.append([*x, *dual, center])
    return np.transpose(columns)


def test_the_map_of_admm_is_that_of_its_equations() -> None:
    result = analysis.admm_map(3, 6)
    expected = [
        [np.abs(np.linalg.eigvals(admm_round(eta, rho, 3))).max() for eta in result["etas"]] for rho in result["rhos"]
    ]
    np.testing.assert_allclose(result["radius"], expected, atol=1e-6)
    assert 0 < result["unstable_share"] == np.mean(np.array(expected) > 1 + 1e-9) < 0.5
    assert result["easgd_largest"] < 1
    assert (result["etas"][-1], result["rhos"][-1]) == (0.01, 10.0)


def test_the_example_of_admm() -> None:
    result = analysis.admm_example(3, rounds=100, every=10)
    assert result["radius"] == pytest.approx(1.00097, abs=1e-5)
    assert result["easgd_radius"] == pytest.approx(0.99927, abs=1e-5)
    assert len(result["admm"]) == len(result["easgd"]) == 10
    assert result["admm"][0] == result["easgd"][0] == 1000
    x, dual, center, path = np.full(3, 1000.0), np.zeros(3), 1000.0, []
    state = np.full(4, 1000.0)
    for _ in range(100):
        path.append((abs(center), abs(state[-1])))
        for i in range(3):
            dual[i] -= x[i] - center
            x[i] = (x[i] - 0.001 * x[i] + 0.0025 * (dual[i] + center)) / 1.0025
            center = float(np.mean(x - dual))
            state[i], state[-1] = (
                state[i] - 0.001 * state[i] - 0.0025 * (state[i] - state[-1]),
                state[-1] + 0.0025 * (state[i] - state[-1]),
            )
    np.testing.assert_allclose(np.transpose([result["admm"], result["easgd"]]), path[::10], atol=1e-4)
    assert result["last_over_first"] == pytest.approx(max(admm for admm, _ in path[-10:]) / 1000)


@pytest.mark.parametrize(
    ("period", "known", "elastic"), [(1, 0.8, 0.96), (4, 0.26, 0.85), (16, 1.24, 0.55), (64, 2.85, 0.16)]
)
def test_downpour_and_easgd_with_a_period(period: int, known: float, elastic: float) -> None:
    result = analysis.downpour_map(4, period, 0.05)
    assert abs(result["factor"]) == pytest.approx(known, abs=5e-3)
    assert result["closed"] == pytest.approx(result["factor"], rel=1e-9)
    setting = {"lr": 0.05, "curvature": 1.0, "num_workers": 4, "period": period, "synchronous": True}
    assert abs(result["factor"]) == pytest.approx(way_stability(**setting).radius)
    assert result["easgd_radius"] == pytest.approx(elastic, abs=5e-3)
    assert result["easgd_radius"] == pytest.approx(elastic_stability(**setting).radius, rel=1e-6)
    assert result["easgd_last"] < 1e-10
