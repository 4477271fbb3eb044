"""HTRU2 and Tox21: area under the ROC curve of the seven methods. One trial is one method (HTRU2: on one depth)."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from papers import data
from papers.snn.feedforward import Data, Stack, predict, train

# HTRU2 ---------------------------------------------------------------------------------------------------------------


@functools.cache
def pulsars(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes 0, 1: HTRU2, or `toy`, the breast cancers of scikit-learn."""
    if source == "toy":
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        return x.astype(np.float32), y
    return data.htru2()


def htru2(
    source: str,
    method: str,
    width: int,
    depths: list[int],
    rates: list[float],
    dropouts: list[float],
    steps: int,
    batch: int,
    folds: int,
    seed: int,
) -> dict[str, Any]:
    """Nested cross-validation: in every fold a ninth of the training rows chooses the setting.

    Returns:
        dict: Test area under the curve and chosen setting, for every fold.
    """
    from sklearn.model_selection import StratifiedKFold, train_test_split

    x, y = pulsars(source)
    parts = []
    for number, (fit, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y)):
        fit, check = train_test_split(fit, test_size=1 / (folds - 1), stratify=y[fit], random_state=number)
        parts.append((data.standardized(x[fit], x)[1], fit, check, test))
    found = [
        (depth, lr, dropout, *_htru2_setting(parts, y, method, width, depth, lr, dropout, steps, batch, seed))
        for depth, lr, dropout in product(depths, rates, dropouts)
    ]
    chosen = [max(found, key=lambda one, fold=fold: one[3][fold]) for fold in range(folds)]
    return {
        "auc": [one[4][fold] for fold, one in enumerate(chosen)],
        "chosen": [list(one[:3]) for one in chosen],
    }


def _htru2_setting(
    parts: list[Any],
    y: np.ndarray,
    method: str,
    width: int,
    depth: int,
    lr: float,
    dropout: float,
    steps: int,
    batch: int,
    seed: int,
) -> tuple[list[float], list[float]]:
    """Areas on the validation and on the test rows of every fold, all folds trained side by side."""
    count = len(parts)
    features = torch.from_numpy(np.concatenate([part[0] for part in parts]))  # every fold has its own scale
    targets = torch.from_numpy(np.tile(y, count))
    stack = Stack(method, features.shape[1], 2, width, depth, [seed + fold for fold in range(count)], [dropout] * count)

    def rows(of: int) -> list[Tensor]:
        return [torch.from_numpy(part[of] + fold * len(y)) for fold, part in enumerate(parts)]

    train(stack, Data(features, targets, rows(1)), [lr] * count, steps=steps, batch=batch, seed=seed)
    return _areas(stack, features, targets, rows(2)), _areas(stack, features, targets, rows(3))


def _areas(stack: Stack, features: Tensor, targets: Tensor, rows: list[Tensor]) -> list[float]:
    logits = predict(stack, features, rows)
    return [area((out[:, 1] - out[:, 0]).numpy(), targets[own].numpy()) for out, own in zip(logits, rows, strict=True)]


def area(scores: np.ndarray, y: np.ndarray) -> float:
    """Area under the ROC curve; one half where a network has diverged."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, scores)) if np.isfinite(scores).all() else 0.5


# Tox21 ---------------------------------------------------------------------------------------------------------------


@functools.cache
def molecules(source: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Morgan fingerprints (radius 2, counts folded to `bits`) as log(1 + count), and labels (n, 12) with nan.

    Molecules that rdkit cannot read are left out. `toy` stands for random ones.
    """
    if source == "toy":
        random = np.random.default_rng(0)
        x = random.poisson(0.2, (300, bits)).astype(np.float32)
        return x, (x[:, :12] > 0).astype(np.float32)
    from rdkit import Chem, RDLogger
    from rdkit.Chem import rdFingerprintGenerator

    RDLogger.DisableLog("rdApp.*")  # pyright: ignore[reportAttributeAccessIssue]
    smiles, labels = data.tox21()
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=bits)
    known = [(Chem.MolFromSmiles(one), label) for one, label in zip(smiles, labels, strict=True)]
    known = [(molecule, label) for molecule, label in known if molecule is not None]
    counts = np.stack([generator.GetCountFingerprintAsNumPy(molecule) for molecule, _ in known])
    return np.log1p(counts.astype(np.float32)), np.stack([label for _, label in known])


def tox21(
    source: str,
    method: str,
    depth: int,
    bits: int,
    width: int,
    rates: list[float],
    dropouts: list[float],
    steps: int,
    batch: int,
    seeds: list[int],
) -> dict[str, Any]:
    """Twelve assays at once; every seed has its own random split: 70 % to train, 15 % to choose, 15 % to test.

    Returns:
        dict: Mean test area over the assays, and the rate and dropout chosen, for every seed.
    """
    x, y = molecules(source, bits)
    ends = [int(0.7 * len(x)), int(0.85 * len(x))]
    splits = [np.split(np.random.default_rng(seed).permutation(len(x)), ends) for seed in seeds]
    runs = list(product(rates, dropouts, range(len(seeds))))
    features, targets = torch.from_numpy(data.standardized(x)[0]), torch.from_numpy(y)

    def rows(part: int) -> list[Tensor]:
        return [torch.from_numpy(splits[i][part]) for *_, i in runs]

    stack = Stack(method, bits, y.shape[1], width, depth, [seeds[i] for *_, i in runs], [drop for _, drop, _ in runs])
    lr = [rate for rate, *_ in runs]
    train(stack, Data(features, targets, rows(0)), lr, steps=steps, batch=batch, seed=0, loss=assay_loss)
    checks, tests = (
        [
            _mean_area(out.numpy(), y[own])
            for out, own in zip(predict(stack, features, rows(part)), rows(part), strict=True)
        ]
        for part in (1, 2)
    )
    best = [max((k for k, run in enumerate(runs) if run[2] == i), key=checks.__getitem__) for i in range(len(seeds))]
    return {"auc": [tests[k] for k in best], "chosen": [list(runs[k][:2]) for k in best]}


def assay_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy over the labels that were measured, one number a network."""
    known = targets.isfinite()
    losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return (losses * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


def _mean_area(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean over the assays that have both kinds of molecules."""
    areas = []
    for assay in range(y.shape[1]):
        known = np.isfinite(y[:, assay])
        labels = y[known, assay]
        if 0 < labels.sum() < len(labels):
            areas.append(area(scores[known, assay], labels))
    return float(np.mean(areas))
