"""The recorded comparisons of benchmarks/: a language model, and workers with their own data."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import hooke
from hooke.claim import Missing, Table
from hooke.spec import CenterSpec
from papers import data
from papers.trial import Trials

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import language
import own_data
import search

TINY = {"source": "toy", "workers": 4, "context": 8, "batch": 2, "warmup": 3}


def trials(path: Path) -> Trials:
    return Trials(path, smoke=True, console=Console(file=io.StringIO()))


# The search ------------------------------------------------------------------------------------------------------


def parabola(method: str, lr: float, setting: list[float], seed: int, far: float) -> dict[str, Any]:
    """A trial whose best rate is 2 and whose best setting is 5, with a rate that diverges."""
    if lr > 2:
        return {"validation": math.nan, "loss": 0.0}
    return {"validation": (lr - 2) ** 2 + sum((one - 5) ** 2 for one in setting) + far, "loss": lr + seed}


SPRING = search.Search(
    setups=[{"method": "a"}, {"method": "b"}],
    rates=[1.0, 2.0, 3.0],
    settings={"a": [[]], "b": [[4.0], [5.0], [7.0]]},
    cell={"far": 0.5},
    seeds=[0, 1, 2],
)


def test_a_search_tries_rates_then_settings_then_seeds(tmp_path: Path) -> None:
    record = trials(tmp_path / "record.jsonl")
    SPRING.run(record, parabola)
    assert [len(record.table.where(study=stage)) for stage in search.STAGES] == [6, 2, 2, 4]
    for setup, setting in (({"method": "a"}, []), ({"method": "b"}, [5.0])):
        shown = SPRING.shown(record.table, setup)
        assert [row["settings"]["seed"] for row in shown] == [0, 1, 2]
        assert all(row["settings"]["lr"] == 2.0 and row["settings"]["setting"] == setting for row in shown)


def coupled(method: str, lr: float, setting: list[float], seed: int, far: float) -> dict[str, Any]:
    """A trial whose best setting wants another rate than the first setting does."""
    best = 1.0 if setting == [5.0] else 2.0
    return {"validation": (lr - best) ** 2 / 10 + sum((one - 5) ** 2 for one in setting)}


def test_a_setting_that_was_best_gets_rates_of_its_own(tmp_path: Path) -> None:
    record = trials(tmp_path / "record.jsonl")
    SPRING.run(record, coupled)
    chosen = {one["method"]: SPRING.best(record.table, one)["settings"] for one in SPRING.setups}
    assert {name: (one["lr"], one["setting"]) for name, one in chosen.items()} == {"a": (2.0, []), "b": (1.0, [5.0])}


def test_a_trial_recorded_twice_is_shown_once(tmp_path: Path) -> None:
    record = trials(tmp_path / "record.jsonl")
    SPRING.run(record, parabola)
    twice = Table([*record.table, *({**row, "study": "settings"} for row in record.table)])
    assert [row["settings"]["seed"] for row in SPRING.shown(twice, {"method": "b"})] == [0, 1, 2]


def test_what_has_diverged_is_never_the_best(tmp_path: Path) -> None:
    record = trials(tmp_path / "record.jsonl")
    SPRING.run(record, parabola)
    first_is_nan = Table(sorted(record.table.where(study="rates"), key=lambda row: -row["settings"]["lr"]))
    assert SPRING.best(first_is_nan, {"method": "a"})["settings"]["lr"] == 2.0


def test_a_finished_search_runs_nothing_again(tmp_path: Path) -> None:
    SPRING.run(trials(tmp_path / "record.jsonl"), parabola)
    before = (tmp_path / "record.jsonl").read_text()
    SPRING.run(trials(tmp_path / "record.jsonl"), parabola)
    assert (tmp_path / "record.jsonl").read_text() == before


def test_nothing_is_chosen_from_half_a_search(tmp_path: Path) -> None:
    record = Trials(tmp_path / "record.jsonl", only=["settings", "seeds"], console=Console(file=io.StringIO()))
    SPRING.run(record, parabola)
    assert not record.path.exists()
    with pytest.raises(Missing, match="method='a'"):
        SPRING.best(record.table, {"method": "a"})


# Bytes -----------------------------------------------------------------------------------------------------------


def ring_all_reduce(vectors: list[np.ndarray]) -> list[int]:
    """Literally: pieces travel around a ring, first to be added, then to be copied; the values that each rank sent."""
    p = len(vectors)
    total, sent = sum(vectors), [0] * p
    pieces = [np.array_split(vector.copy(), p) for vector in vectors]
    for adds in (True, False):
        for step in range(p - 1):
            moving = []
            for rank in range(p):
                piece = (rank - step + (0 if adds else 1)) % p
                moving.append((rank, piece, pieces[rank][piece].copy()))
            for rank, piece, values in moving:
                to = pieces[(rank + 1) % p]
                to[piece] = to[piece] + values if adds else values
                sent[rank] += len(values)
    for mine in pieces:
        np.testing.assert_allclose(np.concatenate(mine), total)
    return sent


@pytest.mark.parametrize("workers", [1, 2, 4, 5])
def test_a_ring_sends_as_many_vectors_as_the_formula_says(workers: int) -> None:
    n = 20 * workers
    sent = ring_all_reduce([np.random.default_rng(rank).standard_normal(n) for rank in range(workers)])
    assert sent == [round(n * search.ring_vectors(workers))] * workers
    assert language.bytes_sent("Local SGD", workers, n, steps=70, exchanges=7) == pytest.approx(7 * 4 * sent[0])
    assert language.bytes_sent("DDP", workers, n, steps=70, exchanges=7) == pytest.approx(70 * 4 * sent[0])


def tiny_run(method: str, period: int = 2) -> Any:
    torch.manual_seed(0)
    model = language.Transformer(language.parts("toy")[1], 8, 8, 1, 1)
    setting = {"EASGD": [0.9], "DiLoCo": [0.7, 0.9]}.get(method, [])
    return language.simulation_of(model, method, period, 0.01, setting, seed=0, **TINY)


def test_a_star_moves_as_many_bytes_as_its_center_counts(center: hooke.LocalCenter) -> None:
    with tiny_run("EASGD") as simulation:
        search.run_to(simulation, 40)
        counted = [one.center.bytes_sent for one in simulation._members.values()]
        n, exchanges = len(simulation.center), simulation.exchanges / 4
    assert exchanges > 4
    assert language.bytes_sent("EASGD", 4, n, 10, exchanges) == sum(counted) / 4
    center.join(torch.zeros(n), CenterSpec((), n))
    for _ in range(3):
        center.exchange(torch.ones(n), hooke.EASGD())
    assert center.bytes_sent == language.bytes_sent("EASGD", 4, n, 30, exchanges=3)


# The language model ----------------------------------------------------------------------------------------------


def test_one_worker_with_the_batches_joined_is_averaging_the_gradients() -> None:
    """DDP by its definition: every rank has its own batch, and all step with the mean gradient."""
    steps = 6
    torch.manual_seed(0)
    model = language.Transformer(language.parts("toy")[1], 8, 8, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, betas=(0.9, 0.95))
    for step in range(steps):
        gradients = []
        for rank in range(4):
            batch = language.drawn("toy", 8, 2, 0, rank, step)
            gradients.append(torch.autograd.grad(language.loss(model, batch), list(model.parameters())))
        for parameter, parts in zip(model.parameters(), zip(*gradients, strict=True), strict=True):
            parameter.grad = torch.stack(parts).mean(0)
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 3)
        optimizer.step()
    with tiny_run("DDP", period=steps) as simulation:
        search.run_to(simulation, steps)
        # logits, not parameters: the bias of attention's keys changes nothing, and Adam steps along its rounding errors
        with simulation.center_weights() as center, torch.no_grad():
            text = language.drawn("toy", 8, 16, 9)[:, :-1]
            torch.testing.assert_close(center(text), model(text), rtol=1e-4, atol=1e-4)


def test_the_text_is_cut_without_overlap_and_drawn_from_its_training_part() -> None:
    (train, validation, test), characters = language.parts("toy")
    text = language._toy()
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    assert torch.cat([train, validation, test]).tolist() == [numbers[character] for character in text]
    assert characters == len(numbers)
    assert len(validation) == len(test) == round(0.05 * len(text))
    windows = language.drawn("toy", 8, 500, 3)
    known = {tuple(window) for window in train.unfold(0, 9, 1).tolist()}
    assert {tuple(window) for window in windows.tolist()} <= known
    assert torch.equal(windows, language.drawn("toy", 8, 500, 3))
    assert not torch.equal(windows, language.drawn("toy", 8, 500, 4))


def test_the_transformer_sees_no_later_character() -> None:
    model = language.Transformer(5, 6, 8, 2, 2)
    text = torch.randint(5, (1, 6))
    changed = text.clone()
    changed[0, 4] = (text[0, 4] + 1) % 5
    torch.testing.assert_close(model(text)[:, :4], model(changed)[:, :4])
    assert not torch.allclose(model(text)[:, 4:], model(changed)[:, 4:])


@pytest.mark.parametrize("method", ["DDP", "Local SGD", "EASGD", "DiLoCo"])
def test_every_method_takes_the_same_number_of_steps(method: str) -> None:
    cell = language.SMOKE.cell | {"steps": 12}
    result = language.trial(method, 3, 0.01, language.SETTINGS[method][0], seed=0, **cell)
    assert result["taken"][-1] == pytest.approx(12, abs=1)  # of a star, within half a period
    assert np.all(np.diff(result["bytes"]) > 0)
    assert all(map(math.isfinite, [*result["loss"], result["validation"]]))


def test_the_language_smoke_run_is_complete(tmp_path: Path) -> None:
    record = trials(tmp_path / "record.jsonl")
    language.run(record)
    assert record.failed == 0
    for setup in language.SMOKE.setups:
        assert len(language.SMOKE.shown(record.table, setup)) == 2


# Workers with their own data -------------------------------------------------------------------------------------


def test_classes_are_dealt_out_whole_and_to_one_worker_each() -> None:
    y = own_data.parts("toy")[0][1]
    shares = own_data.shares("toy", "by class", 5, 0)
    classes = [set(y[rows].tolist()) for rows in shares]
    assert [len(one) for one in classes] == [2] * 5
    assert set.union(*classes) == set(range(10))
    assert torch.cat(shares).sort().values.tolist() == list(range(len(y)))
    assert classes != [set(y[rows].tolist()) for rows in own_data.shares("toy", "by class", 5, 1)]


def test_mixed_shares_are_apart_and_hold_every_class() -> None:
    y = own_data.parts("toy")[0][1]
    shares = own_data.shares("toy", "mixed", 5, 0)
    assert torch.cat(shares).sort().values.tolist() == list(range(len(y)))
    assert all(len(set(y[rows].tolist())) == 10 for rows in shares)


def test_a_worker_draws_its_own_images_only() -> None:
    x, _ = own_data.parts("toy")[0]
    for worker, rows in enumerate(own_data.shares("toy", "by class", 5, 0)):
        own = {tuple(row) for row in x[rows].tolist()}
        drawn, labels = own_data.drawn("toy", "by class", 50, 5, 0, worker, 7)
        assert {tuple(row) for row in drawn.tolist()} <= own
        assert len(set(labels.tolist())) == 2


def test_images_for_choosing_are_not_for_training() -> None:
    train, validation, test = own_data.parts("toy")
    assert [len(part[0]) for part in (train, validation, test)] == [1100, 100, 597]
    assert torch.cat([validation[1], train[1]]).tolist() == data.digits()[1].tolist()
    torch.testing.assert_close(torch.cat([validation[0], train[0]]).mean(), torch.tensor(0.0), rtol=0, atol=1e-4)


def test_the_smoke_run_with_own_data_is_complete(tmp_path: Path) -> None:
    record = trials(tmp_path / "record.jsonl")
    own_data.run(record)
    assert record.failed == 0
    for setup in own_data.SMOKE.setups:
        assert len(own_data.SMOKE.shown(record.table, setup)) == 2
    for row in record.table.where(study=own_data.AVERAGES):
        rest = {name: value for name, value in row["settings"].items() if name != "averaged"}
        assert 0 <= row["result"]["average_accuracy"] <= 1
        alone = record.table.where(study=lambda name: name in search.STAGES, **rest)
        assert all(other == row["result"]["accuracy"] for other in alone.column("accuracy"))  # it changes no training
