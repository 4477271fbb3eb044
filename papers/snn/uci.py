"""The benchmark on UCI tasks: one trial is one method on one task, tuned over a grid, then tested on its folds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from papers import data
from papers.snn.feedforward import Curve, Data, Stack, predict, train

PAPER_DROPOUT: dict[str, tuple[float, ...]] = {
    "SNN": (0.0, 0.05),
    "MSRAinit": (0.0, 0.5),
    "Highway": (0.0, 0.5),
}
"""Dropout rates in the paper's grids (appendix A4); the other methods have none. The equal grid has every rate."""

SMOOTHING = 3
"""Evaluations that a moving average of the validation accuracy spans (the paper: 10, evaluated more often)."""


class Setting(NamedTuple):
    """One point of the grid."""

    depth: int
    lr: float
    dropout: float


class Tuned(NamedTuple):
    """What the tuning split says of one setting: its best smoothed accuracy, and after how many steps."""

    setting: Setting
    accuracy: float
    steps: int


def load(name: str) -> data.Task:
    """A task of the collection, or `toy:NAME` for one that comes with scikit-learn."""
    return data.toy_task(name.removeprefix("toy:")) if name.startswith("toy:") else data.uci_task(name)


def trial(
    task: str,
    method: str,
    width: int,
    depths: list[int],
    rates: list[float],
    dropouts: list[float],
    steps: int,
    batch: int,
    every: int,
    validate: int,
    seed: int,
) -> dict[str, Any]:
    """Tune `method` over depths, rates and dropouts, then train what both grids choose on each fold.

    Returns:
        dict: For both grids the mean test accuracy over the folds, and the setting; and all of the tuning.
    """
    rows = load(task)
    bench = _Bench(rows, method, width, batch, seed)
    tuned = [one for depth in depths for one in bench.tune(depth, rates, dropouts, steps, every, validate)]
    result: dict[str, Any] = {"tuning": [[*one.setting, round(one.accuracy, 4), one.steps] for one in tuned]}
    known: dict[Tuned, list[float]] = {}
    for grid, allowed in {"paper": PAPER_DROPOUT.get(method, (0.0,)), "equal": tuple(dropouts)}.items():
        best = choose([one for one in tuned if one.setting.dropout in allowed])
        accuracies = known.setdefault(best, []) or bench.test(best)
        known[best] = accuracies
        result |= {f"{grid}_accuracy": float(np.mean(accuracies)), f"{grid}_folds": accuracies}
        result |= {f"{grid}_{name}": value for name, value in best.setting._asdict().items()}
        result[f"{grid}_steps"] = best.steps
    return {**result, "rows": len(rows.y), "classes": rows.classes}


def choose(tuned: Sequence[Tuned]) -> Tuned:
    """The setting of the best validation accuracy; of equals the one with more layers, a lower rate, more dropout."""
    return max(tuned, key=lambda one: (one.accuracy, one.setting.depth, -one.setting.lr, one.setting.dropout))


def best_of(curve: Curve) -> list[tuple[float, int]]:
    """For every network the best smoothed value of its curve, and the step at the end of that average."""
    values = np.array(curve.values)
    out = []
    for network in values.T:
        span = min(SMOOTHING, len(network))
        smooth = np.convolve(network, np.ones(span) / span, "valid")
        at = int(smooth.argmax())
        out.append((float(smooth[at]), curve.steps[at + span - 1]))
    return out


class _Bench:
    """One method on one task."""

    def __init__(self, task: data.Task, method: str, width: int, batch: int, seed: int) -> None:
        self._task, self._method, self._width, self._batch, self._seed = task, method, width, batch, seed
        self._x, self._y = torch.from_numpy(task.x), torch.from_numpy(task.y)

    def _stack(self, depth: int, seeds: Sequence[int], dropout: Sequence[float]) -> Stack:
        return Stack(self._method, self._x.shape[1], self._task.classes, self._width, depth, seeds, dropout)

    def _data(self, rows: Sequence[np.ndarray]) -> Data:
        return Data(self._x, self._y, [torch.from_numpy(one) for one in rows])

    def _batch_of(self, rows: np.ndarray) -> int:
        return max(2, min(self._batch, len(rows)))

    def tune(
        self, depth: int, rates: list[float], dropouts: list[float], steps: int, every: int, validate: int
    ) -> list[Tuned]:
        """All rates and dropouts of one depth, trained side by side on the tuning split from the same weights."""
        settings = [Setting(depth, lr, dropout) for lr, dropout in product(rates, dropouts)]
        fit, check = self._task.tuning
        check = np.random.default_rng(self._seed).permutation(check)[:validate]
        x, y = self._x[check].expand(len(settings), -1, -1), self._y[check]

        def accuracy(stack: Stack) -> Tensor:
            return _correct(stack(x), y).mean(1)

        stack = self._stack(depth, [self._seed] * len(settings), [one.dropout for one in settings])
        curve = train(
            stack,
            self._data([fit] * len(settings)),
            [one.lr for one in settings],
            steps=steps,
            batch=self._batch_of(fit),
            seed=self._seed,
            every=every,
            evaluate=accuracy,
        )
        found = zip(settings, best_of(curve), strict=True)
        return [Tuned(setting, accuracy, step) for setting, (accuracy, step) in found]

    def test(self, tuned: Tuned) -> list[float]:
        """Accuracy on the test rows of every fold, trained on its other rows for as many steps as tuning found best."""
        folds = self._task.folds
        seeds = [self._seed + 1 + fold for fold in range(len(folds))]
        stack = self._stack(tuned.setting.depth, seeds, [tuned.setting.dropout] * len(folds))
        fit = [rows for rows, _ in folds]
        train(
            stack,
            self._data(fit),
            [tuned.setting.lr] * len(folds),
            steps=tuned.steps,
            batch=self._batch_of(min(fit, key=len)),
            seed=self._seed + 1,
        )
        tests = [torch.from_numpy(rows) for _, rows in folds]
        logits = predict(stack, self._x, tests)
        return [float(_correct(out, self._y[rows]).mean()) for out, rows in zip(logits, tests, strict=True)]


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 where the largest logit is the class; a network that has diverged is wrong everywhere."""
    right = (logits.argmax(-1) == y).float()
    return torch.where(logits.isfinite().all(-1), right, 0.0)


def classical(task: str, method: str, seed: int, trees: int = 500) -> dict[str, Any]:
    """Random forest or support vector machine on one task, tuned on its tuning split, tested on its folds."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    rows = load(task)
    columns = rows.x.shape[1]
    if method == "RandomForest":
        features = sorted({max(1, round(scale * columns**0.5)) for scale in (0.5, 1.0, 2.0)})
        models = [RandomForestClassifier(trees, max_features=min(m, columns), random_state=seed) for m in features]
    else:
        models = [SVC(C=c, gamma=g / columns) for c, g in product((0.1, 1.0, 10.0, 100.0), (0.1, 0.5, 1.0, 4.0))]

    def accuracy(model: Any, fit: np.ndarray, check: np.ndarray) -> float:
        return float(model.fit(rows.x[fit], rows.y[fit]).score(rows.x[check], rows.y[check]))

    best = max(models, key=lambda model: accuracy(model, *rows.tuning))
    accuracies = [accuracy(best, *fold) for fold in rows.folds]
    return {"accuracy": float(np.mean(accuracies)), "folds": accuracies, "rows": len(rows.y)}
