"""Loaders of `papers.data`, on small files of the standard layouts made here."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from papers import data


def write_uci(root: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    parts = {"a/X": x, "a/y": np.array([0, 1, 2, 0, 1, 2], np.int16), "a/tune_train": np.array([0, 2, 4]),
             "a/tune_test": np.array([1, 3, 5])}  # fmt: skip
    parts |= {f"a/{part}{i}": np.arange(i, i + 3) for i in range(4) for part in ("train", "test")}
    official = {
        "b/X": x,
        "b/y": np.array([0, 1, 0, 1, 0, 1], np.int16),
        "b/train0": np.arange(3),
        "b/test0": np.arange(3, 6),
    }
    official |= {"b/tune_train": np.array([0, 1]), "b/tune_test": np.array([2])}
    np.savez(root / "uci.npz", **parts, **official)  # pyright: ignore[reportArgumentType]


def test_a_uci_task_with_its_folds(tmp_path: Path) -> None:
    write_uci(tmp_path)
    assert data.uci_tasks(tmp_path) == ["a", "b"]
    assert data.uci_rows(tmp_path) == {"a": 6, "b": 6}
    task = data.uci_task("a", tmp_path)
    assert task.classes == 3
    assert len(task.folds) == 4
    assert task.folds[3][0].tolist() == [3, 4, 5]
    assert [part.tolist() for part in task.tuning] == [[0, 2, 4], [1, 3, 5]]
    assert task.x[5].tolist() == [10.0, 11.0]


def test_official_test_rows_are_standardized_by_themselves(tmp_path: Path) -> None:
    write_uci(tmp_path)
    task = data.uci_task("b", tmp_path)
    assert task.x[:3].tolist() == [[0, 1], [2, 3], [4, 5]]
    np.testing.assert_allclose(task.x[3:].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(task.x[3:].std(0), 1, rtol=1e-6)


def test_a_task_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_uci(tmp_path)
    with pytest.raises(ValueError, match=r"^uci_task: name must be one of a, b\. Got 'iris'\.$"):
        data.uci_task("iris", tmp_path)


def test_a_missing_file_says_what_to_fetch_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOKE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"HTRU_2\.csv.*Got nothing\. Fetch HTRU2 from https://.*HOOKE_DATA"):
        data.htru2()
    monkeypatch.setenv("HOOKE_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=rf"{tmp_path}/HTRU_2\.csv must exist\. Got no such file\. Fetch .*there\.$"
    ):
        data.htru2()
    for load in (data.tox21, data.mnist, data.fashion_mnist, data.war_and_peace, data.cifar10, data.uci_tasks):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            load()


@pytest.mark.parametrize("head", ["a,b,class\n", ""])
def test_htru2_with_and_without_a_head(tmp_path: Path, head: str) -> None:
    (tmp_path / "HTRU_2.csv").write_text(f"{head}1.5,-2,0\n-3,4,1\n")
    x, y = data.htru2(tmp_path)
    assert x.tolist() == [[1.5, -2.0], [-3.0, 4.0]]
    assert y.tolist() == [0, 1]


def test_tox21_keeps_what_was_not_measured_apart(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "tox21.csv.gz", "wt") as file:
        file.write("NR-AR,SR-p53,mol_id,smiles\n0,,A,CCO\n,1,B,C\n")
    smiles, labels = data.tox21(tmp_path)
    assert smiles == ["CCO", "C"]
    np.testing.assert_array_equal(labels, np.array([[0, np.nan], [np.nan, 1]], np.float32))


@pytest.mark.parametrize(("folder", "load"), [("mnist", data.mnist), ("fashion-mnist", data.fashion_mnist)])
def test_images_from_the_four_files(tmp_path: Path, folder: str, load: Callable[[Path], data.Arrays]) -> None:
    (tmp_path / folder).mkdir()
    for part, count in (("train", 3), ("t10k", 2)):
        images, labels = np.arange(count * 4, dtype=np.uint8), np.arange(count, dtype=np.uint8)
        head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 2, 2))
        (tmp_path / f"{folder}/{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        (tmp_path / f"{folder}/{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    x, y, test_x, test_y = load(tmp_path)
    assert x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert y.tolist() == [0, 1, 2]
    assert test_x.shape == (2, 4)
    assert test_y.tolist() == [0, 1]


BOOK = '"Well, Prince,\nso Genoa and Lucca are\n...\nand to recognize a dependence of which we are not\nconscious.'


@pytest.mark.parametrize("before", ["", "\ufeff", "Produced by somebody\n\nChapter 1\n\n"])
@pytest.mark.parametrize("after", ["", "\n\nEnd of the book. License.", "\n\nMy alarm rang too early again (^_^)"])
def test_war_and_peace_is_cut_to_the_book(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "war-and-peace.txt").write_text(before + BOOK + after, encoding="utf-8")
    assert data.war_and_peace(tmp_path) == BOOK


@pytest.mark.parametrize("text", [BOOK[3:], BOOK[:-3], ""])
def test_a_war_and_peace_without_its_ends_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "war-and-peace.txt").write_text(text)
    message = (
        r"^war_and_peace: the text must begin with 'Well, .* and end .*\. Got another .*war-and-peace\.txt\. Fetch a"
    )
    with pytest.raises(ValueError, match=message):
        data.war_and_peace(tmp_path)


def test_cifar10_from_a_zip_of_pictures(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cifar10-jpeg.zip", "w") as archive:
        for part, label, gray in (("train", 0, 10), ("train", 7, 200), ("test", 3, 90)):
            content = io.BytesIO()
            Image.new("RGB", (4, 4), (gray,) * 3).save(content, "JPEG", quality=100)
            archive.writestr(f"{part}/{label}/0000.jpg", content.getvalue())
    x, y, test_x, test_y = data.cifar10(tmp_path)
    assert x.shape == (2, 48)
    np.testing.assert_allclose(x.mean(1), [10, 200], atol=2)
    assert y.tolist() == [0, 7]
    assert test_x.shape == (1, 48)
    assert test_y.tolist() == [3]


def test_standardizing_takes_the_scale_of_the_first() -> None:
    first, second = data.standardized(np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[4.0, 6.0]]))
    assert first.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert second.tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize("name", ["iris", "twonorm"])
def test_toy_tasks_need_no_file(name: str) -> None:
    task = data.toy_task(name)
    rows = np.sort(np.concatenate([test for _, test in task.folds]))
    assert rows.tolist() == list(range(len(task.y)))
    np.testing.assert_allclose(task.x.mean(0), 0, atol=1e-5)
