"""Images for the examples, from files on this machine: nothing is downloaded.

Every function returns training images, training labels, test images and test labels. Images are float32 in [0, 1] where
they are few, and uint8 where they are many: then `images[batch] / 255` belongs into the loop.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(train: int = 1000) -> Split:
    """The 1,797 digits of 8x8 pixels that come with scikit-learn: `train` of them to train on, the rest to test."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))  # the same split in every run, whatever its seed
    images = torch.tensor(pixels[order].reshape(-1, 1, 8, 8) / 16, dtype=torch.float32)
    labels = torch.tensor(classes[order])
    return images[:train], labels[:train], images[train:], labels[train:]


def fashion_mnist(root: str | None = None) -> Split:
    """Fashion-MNIST (60,000 + 10,000 of 1x28x28, uint8) from its four files `*-ubyte.gz`.

    Args:
        root: Their folder, or one that has it as `fashion-mnist/`. Default: the environment variable HOOKE_DATA.
    """
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    folder = _folder(
        root, "fashion-mnist", names, "the four files *-ubyte.gz from https://github.com/zalandoresearch/fashion-mnist"
    )
    train_images, train_labels, test_images, test_labels = (_idx(folder / name) for name in names)
    return train_images[:, None], train_labels.long(), test_images[:, None], test_labels.long()


def cifar10(root: str | None = None) -> Split:
    """CIFAR-10 (50,000 + 10,000 of 3x32x32, uint8) from the six files `*.bin` of its binary version.

    Args:
        root: Their folder, or one that has it as `cifar-10-batches-bin/`. Default: the environment variable HOOKE_DATA.
    """
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    folder = _folder(
        root,
        "cifar-10-batches-bin",
        names,
        "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it",
    )
    records = [torch.from_file(str(folder / n), size=(folder / n).stat().st_size, dtype=torch.uint8) for n in names]
    train, test = torch.cat(records[:-1]).view(-1, 3073), records[-1].view(-1, 3073)  # a label, then 3 planes of 32x32
    return train[:, 1:].view(-1, 3, 32, 32), train[:, 0].long(), test[:, 1:].view(-1, 3, 32, 32), test[:, 0].long()


def _folder(root: str | None, folder: str, names: list[str], source: str) -> Path:
    """Where the files lie, or the end of the program with a sentence that says how to get them."""
    root = root or os.environ.get("HOOKE_DATA") or "data"
    places = [Path(root), Path(root) / folder]
    for place in places:
        if all((place / name).is_file() for name in names):
            return place
    missing = next(name for name in names if not (places[-1] / name).is_file())
    raise SystemExit(
        f"{folder}: {missing} must be in {places[-1]}. Got no such file. Download {source}, put the files there, or "
        "name their folder with --root or HOOKE_DATA."
    )


def _idx(path: Path) -> Tensor:
    """An idx file: two zero bytes, the type (8: uint8), the number of dimensions, each as 4 bytes; then the values."""
    content = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(sizes).copy())
