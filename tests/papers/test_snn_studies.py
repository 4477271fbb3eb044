"""What the studies of `papers.klambauer2017snn` compute around the training: choices, areas, losses, pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from papers.snn import depth, dissent, signal, table, theory, uci
from papers.snn.feedforward import Curve


def test_equal_accuracies_choose_more_layers_then_a_lower_rate_then_more_dropout() -> None:
    def tuned(layers: int, lr: float, dropout: float, accuracy: float = 0.9) -> uci.Tuned:
        return uci.Tuned(uci.Setting(layers, lr, dropout), accuracy, 100)

    few = [tuned(2, 0.01, 0.5), tuned(8, 0.1, 0.5), tuned(8, 0.01, 0.0), tuned(8, 0.01, 0.05), tuned(16, 1, 0, 0.89)]
    assert uci.choose(few).setting == (8, 0.01, 0.05)


def test_the_best_of_a_curve_is_smoothed_and_knows_its_step() -> None:
    curve = Curve([10, 20, 30, 40, 50], [[0.0, 0.1], [0.9, 0.2], [0.0, 0.3], [0.6, 0.3], [0.6, 0.3]])
    (lucky, at), (steady, first) = uci.best_of(curve)
    assert (lucky, at) == (pytest.approx(0.5), 40)  # of equal averages the earlier; the peak of 0.9 alone counts little
    assert (steady, first) == (pytest.approx(0.3), 50)


def test_a_network_that_diverged_is_wrong_everywhere() -> None:
    logits = torch.tensor([[[2.0, 1.0], [float("nan"), 0.0]]])
    assert uci._correct(logits, torch.tensor([0, 0])).tolist() == [[1.0, 0.0]]
    assert table.area(np.array([0.1, np.nan]), np.array([0, 1])) == 0.5
    assert table.area(np.array([0.1, 0.2]), np.array([0, 1])) == 1.0


@pytest.mark.parametrize("method", ["SNN", "BatchNorm"])
def test_a_trial_learns_an_easy_task(method: str) -> None:
    result = uci.trial("toy:wine", method, 16, [2], [0.1], [0.0, 0.05], 60, 16, 20, 100, 0)
    assert result["equal_accuracy"] > 0.9
    assert len(result["equal_folds"]) == 4
    assert {setting[2] for setting in result["tuning"]} == {0.0, 0.05}
    paper = 0.05 if method == "SNN" else 0.0
    assert result["paper_dropout"] <= paper
    assert uci.trial("toy:wine", method, 16, [2], [0.1], [0.0, 0.05], 60, 16, 20, 100, 0) == result


def test_a_forest_learns_it_too() -> None:
    assert uci.classical("toy:wine", "RandomForest", 0, trees=20)["accuracy"] > 0.9
    assert uci.classical("toy:wine", "SVM", 0)["accuracy"] > 0.9


def test_the_loss_of_assays_leaves_out_what_was_not_measured() -> None:
    logits, targets = torch.randn(2, 5, 3), torch.randint(0, 2, (2, 5, 3)).float()
    targets[0, 1:, 1] = float("nan")
    for network, loss in enumerate(table.assay_loss(logits, targets)):
        known = targets[network].isfinite()
        expected = F.binary_cross_entropy_with_logits(logits[network][known], targets[network][known])
        torch.testing.assert_close(loss, expected)


def test_the_mean_area_is_over_assays_with_both_kinds() -> None:
    y = np.array([[0, 1, 0], [1, 1, np.nan], [1, 1, 1]], np.float32)
    scores = np.array([[0.1, 0, 0.9], [0.2, 0, 0], [0.3, 0, 0.1]], np.float32)
    assert table._mean_area(scores, y) == pytest.approx((1.0 + 0.0) / 2)


def test_fingerprints_of_molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    with gzip.open(tmp_path / "tox21.csv.gz", "wt") as file:
        file.write("A,mol_id,smiles\n1,x,CCO\n0,y,no molecule\n0,z,CCO\n1,w,c1ccccc1\n")
    monkeypatch.setenv("HOOKE_DATA", str(tmp_path))
    table.molecules.cache_clear()
    x, y = table.molecules("tox21", 64)
    table.molecules.cache_clear()
    assert x.shape == (3, 64)
    assert y[:, 0].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(x[0], x[1])
    assert (x[0] != x[2]).any()


def test_errors_of_training_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = depth.trial("mnist", "MSRAinit", 2, 32, [0.1, 1e-9], [0, 1], 60, 32, 30, 100, stand_in="digits")
    learned, idle = result["rates_result"]["0.1"], result["rates_result"]["1e-09"]
    assert result["steps_seen"] == [30, 60]
    assert max(curve[-1] for curve in learned["train_error"]) < 0.4
    assert min(curve[-1] for curve in idle["train_error"]) > 0.7
    assert np.shape(learned["train_error"]) == (2, 2)
    assert np.shape(learned["test_error"]) == (2,)


def test_signals_of_nets_at_initialization() -> None:
    result = signal.moments(256, 12, 256, 0)
    assert len(result["variances"]) == 12
    assert abs(result["means"][-1]) < 0.1
    assert 0.7 < result["variances"][-1] < 1.3
    assert 1.0716**11 * 0.6 < result["gradient_growth"] < 1.0716**11 * 1.7
    alpha, plain = (signal.dropout(kind, 0.5, 256, 4, 256, 0)["variances"][-1] for kind in ("alpha", "plain"))
    assert 0.8 < alpha < 1.2
    assert plain > 2


def test_scaling_an_activation_to_unit_variance() -> None:
    assert theory._gain(torch.tanh) == pytest.approx(1 / 0.394294367**0.5, rel=1e-6)  # E tanh^2 of a standard normal
    assert theory._gain(nn.SELU()) == pytest.approx(1.0, abs=1e-6)
    assert theory._gain(nn.ReLU()) == pytest.approx((0.5 - 0.5 / np.pi) ** -0.5, rel=1e-6)


def test_pairs_of_sentences_are_of_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A book in which sentence i says one word of its own, 20 times; passages of 10, three parts, four held out."""
    letters = "abcdefghij"
    words = ["".join(letters[int(digit)] for digit in f"{number:03d}") for number in range(400)]
    (tmp_path / "war-and-peace.txt").write_text(" ".join(f"{' '.join([word] * 20)}." for word in words))
    monkeypatch.setenv("HOOKE_DATA", str(tmp_path))
    monkeypatch.setattr(dissent, "PASSAGE", 10)
    monkeypatch.setattr(dissent, "PARTS", 3)
    dissent.pairs.cache_clear()
    vectors, sentences, y = dissent.pairs("war-and-peace", 401, 3, 2000)
    dissent.pairs.cache_clear()
    assert (vectors.shape, sentences.shape) == ((401, 3), (2000, 2, dissent.POSITIONS))
    assert not vectors[0].any()
    torch.testing.assert_close(vectors[1:].mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(vectors[1:].std(0), torch.ones(3), atol=1e-2, rtol=0)
    assert ((sentences > 0).sum(-1) == 20).all()
    first, second = sentences[:, 0, 0] - 1, sentences[:, 1, 0] - 1  # equally frequent words keep their order
    assert (second[y == 0] == first[y == 0] + 1).all()
    same = first // 10 == second // 10
    assert same[y < 2].all()
    assert ((first - second).abs()[y == 1] > 1).all()
    assert (first // 10 * 3 // 40 != second // 10 * 3 // 40)[y == 2].all()
    held_out = torch.stack([first, second]) // 10 % 10 == 9
    assert held_out[:, 1800:].all()
    assert not held_out[:, :1800].any()


def test_a_sum_by_root_leaves_padding_out() -> None:
    x, known = torch.ones(1, 4, 2), torch.tensor([[True, True, False, False]])
    assert dissent.WordSum(by_root=False)(x, known).tolist() == [[4.0, 4.0]]
    torch.testing.assert_close(dissent.WordSum(by_root=True)(x, known), torch.full((1, 2), 2**0.5))
