"""Figure 1: training error of very deep nets on images. One trial is one method at one depth, all rates and seeds."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import numpy as np
import torch

from papers import data
from papers.snn.feedforward import Curve, Data, Stack, train

SOURCES = {"mnist": data.mnist, "cifar10": data.cifar10, "digits": data.digits}


@functools.cache
def images(source: str) -> tuple[torch.Tensor, ...]:
    """Standardized training features and labels, test features and labels; kept, as several trials use them."""
    x, y, test_x, test_y = SOURCES[source]()
    x, test_x = data.standardized(x, test_x)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test_x), torch.from_numpy(test_y)


def trial(
    source: str,
    method: str,
    depth: int,
    width: int,
    rates: list[float],
    seeds: list[int],
    steps: int,
    batch: int,
    every: int,
    check: int,
    stand_in: str = "",
) -> dict[str, Any]:
    """Train without dropout; watch the error on `check` training images, and on as many test images at the end.

    With `stand_in`, images of that name are used in place of those of `source`.

    Returns:
        dict: `steps_seen`, and in `rates_result`, by the rate as a string, `train_error` (a curve for every seed) and
        `test_error` (one number for every seed).
    """
    x, y, test_x, test_y = images(stand_in or source)
    pairs = list(product(rates, seeds))
    stack = Stack(method, x.shape[1], int(y.max()) + 1, width, depth, [seed for _, seed in pairs], [0.0] * len(pairs))
    pick = torch.from_numpy(np.random.default_rng(0).permutation(len(x))[:check])

    def errors(stack: Stack, features: torch.Tensor = x[pick], labels: torch.Tensor = y[pick]) -> torch.Tensor:
        wrong = []
        for part in range(0, len(labels), 500):
            logits = stack(features[part : part + 500].expand(stack.size, -1, -1))
            right = (logits.argmax(-1) == labels[part : part + 500]) & logits.isfinite().all(-1)
            wrong.append((~right).float().sum(1))
        return torch.stack(wrong).sum(0) / len(labels)

    rows = torch.arange(len(x))
    lr = [rate for rate, _ in pairs]
    curve = train(
        stack, Data(x, y, [rows] * len(pairs)), lr, steps=steps, batch=batch, seed=0, every=every, evaluate=errors
    )
    held_out = torch.from_numpy(np.random.default_rng(1).permutation(len(test_x))[:check])
    with torch.no_grad():
        tests = errors(stack, test_x[held_out], test_y[held_out]).tolist()
    return {"steps_seen": curve.steps, "rates_result": _by_rate(curve, tests, rates, len(seeds))}


def _by_rate(curve: Curve, tests: list[float], rates: list[float], seeds: int) -> dict[str, dict[str, Any]]:
    curves = np.round(np.array(curve.values).T, 4).tolist()
    return {
        str(rate): {
            "train_error": curves[i * seeds : i * seeds + seeds],
            "test_error": tests[i * seeds : i * seeds + seeds],
        }
        for i, rate in enumerate(rates)
    }
