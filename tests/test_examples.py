"""The examples as a user starts them: real processes, judged by the rows and numbers that they leave."""

from __future__ import annotations

import gzip
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import hooke
from hooke.record import Row, read
from hooke.run import Run

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
HOOKE = [sys.executable, "-m", "hooke.cli"]


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("HOOKE_RUN", "HOOKE_DATA")}
    return clean | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def started(*command: object, **options: Any) -> subprocess.Popen[str]:
    words = [str(word) for word in command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, **({"env": environment()} | pipes | options))


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it printed, once it has ended with `code`."""
    out, error = process.communicate(timeout=110)
    assert process.returncode == code, out + error
    return out if code == 0 else error


def hooke_run(out: Path, workers: int, script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    settings = ["--workers", workers, "--out", out]
    return started(*HOOKE, "run", *settings, *options.pop("settings", ()), EXAMPLES / script, *arguments, **options)


def rows(run: Path, worker: int, name: str) -> list[Row]:
    return [row for row in read(run / "workers" / f"{worker}.jsonl") if row["name"] == name]


def accuracies(run: Path) -> dict[int, float]:
    """The center's, by worker 0's step."""
    found = rows(run, 0, "accuracy")
    assert all(row["worker"] == "center" for row in found)
    return {row["step"]: row["value"] for row in found}


# Digits --------------------------------------------------------------------------------------------------------------


def test_digits_with_two_workers(tmp_path: Path) -> None:
    finished(hooke_run(tmp_path, 2, "digits.py", "--steps", 120, "--evaluate-every", 50))
    for worker in (0, 1):
        assert [row["step"] for row in rows(tmp_path, worker, "loss")] == list(range(1, 121))
        assert [row["value"] for row in rows(tmp_path, worker, "examples")] == [8 * step for step in range(1, 121)]
        assert [row["step"] for row in rows(tmp_path, worker, "exchange_seconds")] == list(range(0, 120, 10))
    measured = accuracies(tmp_path)
    assert list(measured) == [50, 100, 120]
    assert measured[120] > 0.8
    assert not rows(tmp_path, 1, "accuracy")
    with safe_open(tmp_path / "center.safetensors", "pt") as file:
        assert file.metadata()["exchanges"] == "24"


def main_of(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run an example in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        importlib.import_module(name).main()


def digits_alone(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> torch.nn.Module:
    """Train in this process; the model."""
    import digits

    made: list[torch.nn.Module] = []
    network = digits.network
    with monkeypatch.context() as patch:
        patch.delenv("HOOKE_RUN", raising=False)
        patch.setattr(digits, "network", lambda: made.append(network()) or made[0])
        main_of("digits", patch, "--alone", *arguments)
    return made[0]


@pytest.mark.parametrize("method", ["easgd", "eamsgd", "downpour", "local", "msgd"])
def test_digits_alone_by_every_method(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = {"easgd": 0.2, "downpour": 0.2}.get(method, 0.02)
    digits_alone(monkeypatch, "--method", method, "--lr", rate, "--steps", 150)
    said = re.findall(r"step (\d+): the center knows ([\d.]+)%", capsys.readouterr().out)
    assert [int(step) for step, _ in said] == [50, 100, 150]
    assert float(said[-1][1]) > 60


def test_msgd_is_sequential_nesterov_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    from digits import digits, network

    trained = digits_alone(monkeypatch, "--method", "msgd", "--lr", 0.02, "--steps", 60, "--seed", 3)
    images, labels, *_ = digits()
    torch.manual_seed(3)
    model, generator = network(), torch.Generator().manual_seed(3000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    for _ in range(60):
        batch = torch.randint(len(images), (8,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    torch.testing.assert_close(trained.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-6)


def test_digits_without_hooke_run_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOKE_RUN", raising=False)
    with pytest.raises(ValueError, match="Start it with `hooke run --workers 4 SCRIPT`"):
        main_of("digits", monkeypatch)


def test_msgd_refuses_a_second_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(str(tmp_path), str(tmp_path / "center"), worker=0, num_workers=2, started=0.0)
    for name, value in run.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main_of("digits", monkeypatch, "--method", "msgd")
    assert "--method msgd is sequential. Got 2 workers. Use hooke run --workers 1." in capsys.readouterr().err


def test_simulate_eight_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the same clock EASGD learns, DOWNPOUR does not at this period, and Local SGD waits for the slowest."""
    main_of("simulate", monkeypatch, "--seconds", 4, "--rows", tmp_path)
    said = capsys.readouterr().out
    pattern = r"(.+?) +(\d+) steps, +(\d+) exchanges; knows (\d+)%, (\d+)%, (\d+)%, (\d+)%\n"
    found = {method: [int(number) for number in numbers] for method, *numbers in re.findall(pattern, said)}
    assert list(found) == ["EASGD", "DOWNPOUR", "Local SGD"]
    assert found["EASGD"][-1] > found["Local SGD"][-1] and found["EASGD"][-1] > found["DOWNPOUR"][-1] + 20
    assert found["EASGD"][0] > 1.4 * found["Local SGD"][0]
    for method, (_, exchanges, *_, knows) in found.items():
        assert round(100 * rows(tmp_path / method, 0, "accuracy")[-1]["value"]) == knows
        written = sum(len(rows(tmp_path / method, worker, "exchange_seconds")) for worker in range(8))
        assert exchanges - 8 <= written <= exchanges


# Resume --------------------------------------------------------------------------------------------------------------

LONG = ("--steps", 800, "--evaluate-every", 400, "--lr", 0.02)
OFTEN = ("--checkpoint-every", 0.1)


def interrupt(out: Path, workers: int, number: signal.Signals) -> None:
    """Start a run, and stop it by a signal as soon as everything has a checkpoint."""
    process = hooke_run(out, workers, "digits.py", *LONG, settings=OFTEN, preexec_fn=heed_ctrl_c)
    files = [out / "center.safetensors", *(out / "workers" / f"{worker}.safetensors" for worker in range(workers))]
    while not all(file.exists() for file in files):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert 800 not in accuracies(out)


def heed_ctrl_c() -> None:
    """Tests may run in the background of a shell that ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_one_worker_resumes_to_the_bit(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finished(hooke_run(whole, 1, "digits.py", *LONG, settings=OFTEN))
    interrupt(broken, 1, signal.SIGKILL)
    before = len(rows(broken, 0, "loss"))
    finished(hooke_run(broken, 1, "digits.py", *LONG, settings=("--resume", *OFTEN)))
    went_on = rows(broken, 0, "loss")
    assert [row["step"] for row in went_on[before:]] == list(range(went_on[before]["step"], 801))
    assert went_on[before]["step"] > 1
    losses = {row["step"]: row["value"] for row in rows(whole, 0, "loss")}
    assert all(row["value"] == losses[row["step"]] for row in went_on)
    centers = [load_file(run / "center.safetensors") for run in (whole, broken)]
    assert centers[0].keys() == centers[1].keys()
    assert all(torch.equal(tensor, centers[1][name]) for name, tensor in centers[0].items())
    assert accuracies(whole) == accuracies(broken)


def test_several_workers_resume_from_the_center(tmp_path: Path) -> None:
    interrupt(tmp_path, 2, signal.SIGINT)
    left = load_file(tmp_path / "center.safetensors")
    before = [len(rows(tmp_path, worker, "loss")) for worker in (0, 1)]
    # Every worker's own position is past the first step: nothing is left to do, and the center stays as it was left.
    finished(hooke_run(tmp_path, 2, "digits.py", "--steps", 1, "--lr", 0.02, settings=("--resume", *OFTEN)))
    assert [len(rows(tmp_path, worker, "loss")) for worker in (0, 1)] == before
    center = load_file(tmp_path / "center.safetensors")
    assert center.keys() == left.keys()
    assert all(torch.equal(tensor, center[name]) for name, tensor in left.items())
    assert any(tensor.abs().max() > 0 for tensor in left.values())


# The larger images ---------------------------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()))


def write_fashion_mnist(folder: Path) -> dict[str, np.ndarray]:
    """The standard four files, with 320 + 100 images whose class is the place of a bright bar."""
    folder.mkdir()
    random, written = np.random.default_rng(0), {}
    for part, count in (("train", 320), ("t10k", 100)):
        labels = random.integers(10, size=count).astype(np.uint8)
        images = random.integers(80, size=(count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] += 150
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
        written |= {f"{part} images": images, f"{part} labels": labels}
    return written


def test_fashion_mnist_with_two_workers(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "fashion-mnist")
    run = tmp_path / "run"
    options = ("--epochs", 10, "--batch", 32, "--evaluate-every", 40)
    finished(hooke_run(run, 2, "fashion_mnist.py", "--root", tmp_path, *options))
    assert [row["value"] for row in rows(run, 1, "examples")] == [32 * step for step in range(1, 101)]
    assert list(accuracies(run)) == [40, 80, 100]
    assert accuracies(run)[100] > 0.9
    # every worker has an order of its own
    assert rows(run, 0, "loss")[0]["value"] != rows(run, 1, "loss")[0]["value"]


def test_the_idx_files_are_read_right(tmp_path: Path) -> None:
    from data import fashion_mnist

    written = write_fashion_mnist(tmp_path / "fashion-mnist")
    for root in (tmp_path, tmp_path / "fashion-mnist"):
        images, labels, test_images, test_labels = fashion_mnist(str(root))
        assert np.array_equal(images[:, 0].numpy(), written["train images"])
        assert np.array_equal(test_images[:, 0].numpy(), written["t10k images"])
        assert labels.tolist() == written["train labels"].tolist()
        assert test_labels.tolist() == written["t10k labels"].tolist()


def write_cifar10(folder: Path) -> np.ndarray:
    """The standard six files, with 40 images each whose class is their color."""
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    records = random.integers(60, size=(6, 40, 3073)).astype(np.uint8)
    records[..., 0] = random.integers(10, size=(6, 40))
    for record in records.reshape(-1, 3073):
        color = np.array([20 * record[0], 180 - 20 * record[0], 180 * (record[0] % 2)])
        record[1:].reshape(3, 1024)[...] += color.astype(np.uint8)[:, None]
    for name, part in zip(names, records, strict=True):
        (folder / name).write_bytes(part.tobytes())
    return records


def test_cifar10_with_two_workers(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    run = tmp_path / "run"
    options = ("--steps", 90, "--batch", 16, "--evaluate-every", 30, "--lr", 0.02)
    finished(hooke_run(run, 2, "cifar10.py", *options, env=environment(HOOKE_DATA=str(tmp_path))))
    assert [row["value"] for row in rows(run, 0, "examples")] == [16 * step for step in range(1, 91)]
    assert list(accuracies(run)) == [30, 60, 90]
    assert max(accuracies(run).values()) > 0.4


def test_the_cifar10_files_are_read_right(tmp_path: Path) -> None:
    from data import cifar10

    written = write_cifar10(tmp_path / "cifar-10-batches-bin").reshape(240, 3073)
    images, labels, test_images, test_labels = cifar10(str(tmp_path))
    assert torch.cat([labels, test_labels]).tolist() == written[:, 0].tolist()
    everything = torch.cat([images, test_images]).numpy()
    assert np.array_equal(everything, written[:, 1:].reshape(240, 3, 32, 32))


def windows(image: Tensor) -> list[Tensor]:
    return [image[:, top : top + 28, left : left + 28] for top in range(5) for left in range(5)]


def test_random_crops_are_windows_of_the_image_or_of_its_mirror_image() -> None:
    from cifar10 import network, random_crops

    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
    crops = random_crops(images, torch.Generator().manual_seed(0))
    mirrored = 0
    for image, crop in zip(images, crops, strict=True):
        plain = any(torch.equal(window / 255, crop) for window in windows(image))
        mirror = any(torch.equal(window / 255, crop) for window in windows(image.flip(2)))
        assert plain != mirror
        mirrored += mirror
    assert 10 < mirrored < 30
    shapes = [layer.weight.shape for layer in network() if hasattr(layer, "weight")]
    assert [shape[:2] for shape in shapes] == [(64, 3), (128, 64), (64, 128), (256, 256), (10, 256)]
    assert network()(crops).shape == (40, 10)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("fashion_mnist", "train-images-idx3-ubyte.gz must be in {}/fashion-mnist. Got no such file. Download"),
        ("cifar10", "data_batch_1.bin must be in {}/cifar-10-batches-bin. Got no such file. Download"),
    ],
)
def test_missing_files_get_a_sentence(
    script: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as error:
        main_of(script, monkeypatch, "--root", tmp_path)
    assert sentence.format(tmp_path) in str(error.value)
    assert "https://" in str(error.value)
    assert str(error.value).endswith("name their folder with --root or HOOKE_DATA.")


# Other launchers and trainers ----------------------------------------------------------------------------------------


def test_torchrun() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    said = finished(started(*torchrun, EXAMPLES / "torchrun_local_sgd.py", "--steps", 120, "--lr", 0.02))
    measured = re.findall(r"step (\d+): the center knows ([\d.]+)%", said)
    assert [int(step) for step, _ in measured] == [50, 100, 120]
    assert float(measured[-1][1]) > 80


def test_lightning(tmp_path: Path) -> None:
    finished(hooke_run(tmp_path, 1, "lightning_callback.py", "--epochs", 1))
    losses = [row["value"] for row in rows(tmp_path, 0, "loss")]
    assert len(losses) == 125
    assert np.mean(losses[-25:]) < 0.7 * np.mean(losses[:25])
    assert len(rows(tmp_path, 0, "exchange_seconds")) == 13


def test_transformers(tmp_path: Path) -> None:
    finished(hooke_run(tmp_path, 2, "transformers_callback.py", "--steps", 30))
    for worker in (0, 1):
        losses = [row["value"] for row in rows(tmp_path, worker, "loss")]
        assert len(losses) == 3
        assert losses[-1] < losses[0]
        assert len(rows(tmp_path, worker, "exchange_seconds")) == 3


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import demo

    out, methods = tmp_path / "demo", {name: demo.METHODS[name] for name in ("msgd", "eamsgd")}
    monkeypatch.setattr(demo, "METHODS", methods)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    main_of("demo", monkeypatch, "--out", out, "--steps", 20, "--workers", 2, "--seeds", 1)
    said = capsys.readouterr().out
    for method, workers, examples in (("Nesterov SGD", 1, 160), ("EAMSGD", 2, 320)):
        assert re.search(rf"{method}\W+{workers}\W+[\d.]+\W+{examples}\W", said), said
    assert f"The curves of seed 0: {out / 'report.html'}" in said
    page = (out / "report.html").read_text()
    assert all(f"--method={method} " in page for method in methods)


# Across machines ------------------------------------------------------------------------------------------------------


def test_torchrun_starts_workers_that_only_know_an_address() -> None:
    with hooke.serve(hooke.LocalCenter(), token="secret") as server:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
        words = [EXAMPLES / "machines.py", server.url, "--steps", 240, "--codec", "int8"]
        said = finished(started(*torchrun, *words, env=environment(HOOKE_TOKEN="secret")))
        known = {int(number): float(share) for number, share in re.findall(r"worker (\d) .* knows ([\d.]+)%", said)}
        assert set(known) == {0, 1} and min(known.values()) > 60  # one alone: 79 to 94 by a dozen seeds
        assert 12 <= server.center.exchanges <= 48 and server.center.num_workers == 0
        assert "refused" in server.status() and not server.status()["refused"]


def test_ray_starts_workers_that_only_know_an_address(tmp_path: Path) -> None:
    words = [sys.executable, EXAMPLES / "ray_workers.py", "--workers", 2, "--steps", 200]
    said = finished(started(*words, env=environment(RAY_AUTH_MODE="disabled"), cwd=tmp_path))
    known = {int(number): float(share) for number, share in re.findall(r"worker (\d) .* knows ([\d.]+)%", said)}
    assert set(known) == {0, 1} and min(known.values()) > 60
    assert 10 <= int(re.findall(r"the center took (\d+) exchanges", said)[0]) <= 40


def test_of_a_fine_tuned_model_only_the_adapter_travels(tmp_path: Path) -> None:
    said = finished(hooke_run(tmp_path, 2, "lora.py", "--steps", 40, "--files", 4, "--batch", 2, "--length", 32))
    found = re.findall(r"([\d,]+) of ([\d,]+) parameters travel .* ([\d.]+) MB in all, .* moved ([\d.]+) MB", said)
    assert len(found) == 2
    for travels, whole, moved, all_of_it in found:
        count = int(travels.replace(",", ""))
        center = load_file(tmp_path / "center.safetensors")
        assert count == sum(tensor.numel() for tensor in center.values())
        assert all("lora_" in name for name in center)
        assert float(all_of_it) / float(moved) == pytest.approx(int(whole.replace(",", "")) / count, rel=0.05)
    losses = [row["value"] for row in rows(tmp_path, 0, "loss")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
