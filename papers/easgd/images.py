"""CIFAR-10 as the paper feeds it: random 28x28 crops and flips to train, the middle of the image to test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from papers import data

SIDE, CROP = 32, 28


@dataclass(frozen=True)
class Images:
    """Images with their classes.

    Attributes:
        train: `Float32[n, 32, 32, 3]`, every channel with mean 0 and variance 1.
        train_classes: `Int64[n]`.
        test: `Float32[m, 3, 28, 28]`, the middle of each image, in channels_last.
        test_classes: `Int64[m]`.
    """

    train: Tensor
    train_classes: Tensor
    test: Tensor
    test_classes: Tensor

    def batch(self, size: int, *seeds: int) -> tuple[Tensor, Tensor]:
        """`size` images drawn at random, each cropped and perhaps flipped; the same for the same seeds."""
        random = np.random.default_rng(seeds)
        chosen = random.integers(0, len(self.train), size)
        rows, columns = random.integers(0, SIDE - CROP + 1, (2, size, 1)) + np.arange(CROP)
        flipped = random.integers(0, 2, size).astype(bool)
        columns[flipped] = columns[flipped, ::-1]
        pixels = (chosen[:, None, None] * SIDE + rows[:, :, None]) * SIDE + columns[:, None, :]
        crops = self.train.view(-1, 3).index_select(0, torch.from_numpy(pixels.ravel()))
        return crops.view(size, CROP, CROP, 3).permute(0, 3, 1, 2), self.train_classes[torch.from_numpy(chosen)]


@cache
def images(source: str) -> Images:
    """`"cifar10"`, or `"toy"`: scikit-learn's digits, enlarged, which need no file."""
    if source not in _SOURCES:
        raise ValueError(f"images: source must be one of {', '.join(_SOURCES)}. Got {source!r}. Use cifar10.")
    x, y, test_x, test_y = _SOURCES[source]()
    shape = (-1, SIDE, SIDE, 3)
    x, test_x = (one.reshape(shape).astype(np.float32) / 255 for one in (x, test_x))
    channels = [(one.mean(dtype=np.float64), one.std(dtype=np.float64)) for one in np.moveaxis(x, -1, 0)]
    mean, scale = (np.array(one, np.float32) for one in zip(*channels, strict=True))
    x, test_x = ((one - mean) / scale for one in (x, test_x))
    edge = (SIDE - CROP) // 2
    middle = test_x[:, edge : edge + CROP, edge : edge + CROP]
    test = torch.from_numpy(np.ascontiguousarray(middle)).permute(0, 3, 1, 2)
    return Images(torch.from_numpy(x), torch.from_numpy(y), test, torch.from_numpy(test_y))


def _toy() -> data.Arrays:
    x, y, test_x, test_y = data.digits()
    enlarge = np.ones((1, SIDE // 8, SIDE // 8))
    x, test_x = (
        np.repeat(np.kron(one.reshape(-1, 8, 8), enlarge)[..., None] * 15.9, 3, -1) for one in (x, test_x[:200])
    )
    return x, y, test_x, test_y[:200]


_SOURCES: dict[str, Callable[[], data.Arrays]] = {"cifar10": data.cifar10, "toy": _toy}
