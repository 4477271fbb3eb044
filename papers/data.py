"""Data that papers share, from files on this machine: nothing is downloaded, and no torch is loaded.

Every loader takes `root=`, the folder that holds the files; without it, the environment variable HOOKE_DATA names it.
A missing file raises `FileNotFoundError` with a sentence that says what to fetch, from where, and where to put it.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Training features and labels, test features and labels."""


def locate(name: str, fetch: str, root: str | Path | None = None) -> Path:
    """The file or folder `name` under `root`, or under HOOKE_DATA.

    Args:
        name: File standing in the root, e.g. `HTRU_2.csv`.
        fetch: What to fetch and from where, as words that follow "Fetch".
        root: The folder; default HOOKE_DATA.

    Raises:
        FileNotFoundError: No root is given, or the file is not in it.
    """
    folder = root or os.environ.get("HOOKE_DATA")
    if folder is None:
        raise FileNotFoundError(
            f"data: root must name the folder that holds {name}. Got nothing. Fetch {fetch}, put it into a folder, and "
            "name that by root= or by the environment variable HOOKE_DATA."
        )
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"data: {path} must exist. Got no such file. Fetch {fetch}, and put it there.")
    return path


# The UCI collection --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One classification task with the folds of Fernandez-Delgado et al. (2014).

    Attributes:
        name: As the study calls it.
        x: Features (n, d), float32, standardized over all rows.
        y: Classes (n,), 0, 1, ...
        folds: Pairs of row numbers, to train and to test: four, or one where the task has an official test set.
        tuning: The study's split for choosing hyperparameters: rows to train, rows to test.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]
    tuning: tuple[np.ndarray, np.ndarray]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.y.max()) + 1


UCI = (
    "the UCI tasks with folds of Fernandez-Delgado et al. 2014 (https://github.com/bioinf-jku/SNNs links to them) as "
    "uci.npz with the keys TASK/X, TASK/y, TASK/train0, TASK/test0, ..., TASK/tune_train, TASK/tune_test"
)


@functools.cache
def _uci(path: Path) -> np.lib.npyio.NpzFile:
    return np.load(path, allow_pickle=False)


def uci_tasks(root: str | Path | None = None) -> list[str]:
    """Names of the tasks in `uci.npz`, in alphabetical order."""
    return sorted({key.split("/")[0] for key in _uci(locate("uci.npz", UCI, root)).files})


def uci_rows(root: str | Path | None = None) -> dict[str, int]:
    """How many rows each task has."""
    archive = _uci(locate("uci.npz", UCI, root))
    return {name: len(archive[f"{name}/y"]) for name in uci_tasks(root)}


def uci_task(name: str, root: str | Path | None = None) -> Task:
    """One task.

    Where a task has an official test set, the study standardized the other rows alone and left these as they were
    (in hill-valley they reach 156,612); here they are standardized by their own means and variances.

    Raises:
        ValueError: No task is called so.
    """
    archive = _uci(locate("uci.npz", UCI, root))
    if f"{name}/X" not in archive.files:
        raise ValueError(f"uci_task: name must be one of {', '.join(uci_tasks(root))}. Got {name!r}.")
    count = sum(key.startswith(f"{name}/train") for key in archive.files)
    folds = [(archive[f"{name}/train{i}"].astype(int), archive[f"{name}/test{i}"].astype(int)) for i in range(count)]
    tuning = (archive[f"{name}/tune_train"].astype(int), archive[f"{name}/tune_test"].astype(int))
    x = archive[f"{name}/X"]
    if count == 1:
        test = folds[0][1]
        x[test] = standardized(x[test])[0]
    return Task(name, x, archive[f"{name}/y"].astype(int), tuple(folds), tuning)


def toy_task(name: str) -> Task:
    """A table as a `Task`, for runs without files: scikit-learn's `iris`, `wine`, `digits`, or Breiman's `twonorm`."""
    from sklearn import datasets
    from sklearn.model_selection import StratifiedKFold

    if name == "twonorm":
        random = np.random.default_rng(0)
        y = random.integers(0, 2, 1200)
        x = random.standard_normal((1200, 20)) + (2 * y[:, None] - 1) * 2 / 20**0.5
    else:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    folds = tuple(StratifiedKFold(4, shuffle=True, random_state=0).split(x, y))
    tuning = next(iter(StratifiedKFold(2, shuffle=True, random_state=1).split(x, y)))
    return Task(name, standardized(x)[0], y, folds, tuning)


# Tables and molecules ------------------------------------------------------------------------------------------------


def htru2(root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """HTRU2: 8 features of 17,898 pulsar candidates, and which 1,639 of them are pulsars."""
    path = locate("HTRU_2.csv", "HTRU2 from https://archive.ics.uci.edu/dataset/372/htru2 as HTRU_2.csv", root)
    lines = path.read_text().splitlines()
    first = lines[0].split(",")[0].strip().lstrip("-").replace(".", "", 1)
    table = np.loadtxt(lines if first.isdigit() else lines[1:], delimiter=",")
    return table[:, :-1].astype(np.float32), table[:, -1].astype(int)


def tox21(root: str | Path | None = None) -> tuple[list[str], np.ndarray]:
    """Tox21: SMILES of the molecules, and what twelve assays said of each: 1 active, 0 inactive, nan not measured."""
    fetch = "tox21.csv.gz from https://moleculenet.org/datasets-1"
    with gzip.open(locate("tox21.csv.gz", fetch, root), "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assays = [name for name in rows[0] if name not in ("mol_id", "smiles")]
    labels = [[float(row[assay]) if row[assay] else np.nan for assay in assays] for row in rows]
    return [row["smiles"] for row in rows], np.array(labels, np.float32)


# Text ----------------------------------------------------------------------------------------------------------------

TOLSTOY = "a plain text of War and Peace as war-and-peace.txt, e.g. from https://www.gutenberg.org/ebooks/2600"
_FIRST_WORDS = r"[\"\u201c]Well,\s+Prince,\s+so\s+Genoa"
_LAST_WORDS = r"dependence\s+of\s+which\s+we\s+are\s+not\s+conscious\."


def war_and_peace(root: str | Path | None = None) -> str:
    """War and Peace from its first words to its last: what a copy has before and after them is left out.

    Copies differ there: a license, a table of contents, or pages of something else.

    Raises:
        ValueError: The file does not hold the first or the last words of the Maude translation.
    """
    path = locate("war-and-peace.txt", TOLSTOY, root)
    text = path.read_text(encoding="utf-8")
    first, last = re.search(_FIRST_WORDS, text), re.search(_LAST_WORDS, text)
    if first is None or last is None:
        raise ValueError(
            "war_and_peace: the text must begin with 'Well, Prince, so Genoa' and end with 'dependence of which we are "
            f"not conscious'. Got another {'end' if first else 'beginning'} in {path}. Fetch {TOLSTOY}."
        )
    return text[first.start() : last.end()]


# Images --------------------------------------------------------------------------------------------------------------


def _idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def mnist(root: str | Path | None = None) -> Arrays:
    """MNIST, 60,000 and 10,000 images as rows of 784 bytes, from its four files `*-ubyte.gz`."""
    return _four_files("mnist", "MNIST from https://yann.lecun.com/exdb/mnist", root)


def fashion_mnist(root: str | Path | None = None) -> Arrays:
    """Fashion-MNIST, 60,000 and 10,000 images as rows of 784 bytes, from its four files `*-ubyte.gz`."""
    return _four_files("fashion-mnist", "Fashion-MNIST from https://github.com/zalandoresearch/fashion-mnist", root)


def _four_files(folder: str, what: str, root: str | Path | None) -> Arrays:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    x, y, test_x, test_y = (
        _idx(locate(f"{folder}/{name}", f"the four files *-ubyte.gz of {what}", root)) for name in names
    )
    return x.reshape(len(x), -1), y.astype(int), test_x.reshape(len(test_x), -1), test_y.astype(int)


def cifar10(root: str | Path | None = None) -> Arrays:
    """CIFAR-10, 50,000 and 10,000 images as rows of 3,072 bytes, from a zip of `train/LABEL/NAME.jpg`."""
    fetch = "CIFAR-10 as a zip of train/LABEL/NAME.jpg and test/LABEL/NAME.jpg, LABEL from 0 to 9"
    with zipfile.ZipFile(locate("cifar10-jpeg.zip", fetch, root)) as archive:
        train, test = (_jpegs(archive, part) for part in ("train", "test"))
    return *train, *test


def _jpegs(archive: zipfile.ZipFile, part: str) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    names = sorted(name for name in archive.namelist() if name.startswith(f"{part}/") and name.endswith(".jpg"))
    images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))).ravel() for name in names])
    return images, np.array([int(name.split("/")[1]) for name in names])


def digits(train: int = 1200) -> Arrays:
    """The 1,797 digits of 8x8 pixels that come with scikit-learn, for runs without files."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order]
    return x[:train], y[:train], x[train:], y[train:]


def standardized(x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """`x` and `others` as float32, shifted and scaled so that every feature of `x` has mean 0 and variance 1."""
    x = x.astype(np.float32)
    mean, deviation = x.mean(0), x.std(0)
    deviation[deviation < 1e-6] = 1.0
    return [((one.astype(np.float32) - mean) / deviation) for one in (x, *others)]
