"""Checkpoints: what goes in comes out, and half of one is never found."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hooke.checkpoint import load_state, load_tensors, save_state, save_tensors, write_atomically


def same(a: object, b: object) -> bool:
    """Equal in type, in value and, for tensors, in dtype and to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
tensors = st.builds(
    lambda shape, dtype, seed: (
        torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        if shape
        else torch.tensor(seed).to(dtype)
    ),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 9),
)
keys = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none())
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=9))
states = st.recursive(
    st.one_of(plain, tensors),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=10,
)


@given(state=states)
@settings(deadline=None, max_examples=60)
def test_any_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: object) -> None:
    path = tmp_path_factory.mktemp("any") / "state"
    save_state(path, state)
    assert same(load_state(path), state)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
        lambda p: torch.optim.LBFGS(p),
    ],
    ids=["SGD", "AdamW", "LBFGS"],
)
def test_an_optimizer_goes_on_from_its_saved_state(make: Callable, tmp_path: Path) -> None:
    def started() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, make(model.parameters())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(1, 3)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    model, optimizer = started()
    step(model, optimizer)
    save_state(tmp_path / "state", {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()})
    step(model, optimizer)

    again, its_optimizer = started()
    state = load_state(tmp_path / "state")
    again.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["optimizer"])
    step(again, its_optimizer)
    assert torch.equal(again.weight, model.weight)


def test_not_a_number_and_infinity_come_back(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"loss": float("nan"), "best": float("inf"), "x": torch.tensor([torch.nan])})
    state = load_state(tmp_path / "state")
    assert state["loss"] != state["loss"]
    assert state["best"] == float("inf")
    assert state["x"].isnan().all()


@pytest.mark.parametrize("bad", [object(), {1, 2}, b"bytes", lambda: None, nn.Linear(1, 1)])
def test_what_would_need_pickle_gets_a_sentence_and_leaves_the_old_file(bad: object, tmp_path: Path) -> None:
    save_state(tmp_path / "state", 1)
    sentence = (
        "checkpoint: a state may hold tensors, numbers, words, dicts, lists and tuples. Got "
        f"{type(bad).__name__}. Turn it into one of these, e.g. with .tolist()."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        save_state(tmp_path / "state", {"deep": [bad]})
    assert load_state(tmp_path / "state") == 1


def test_tied_views_and_devices_do_not_matter_to_what_is_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    model = nn.Linear(2, 3)
    save_tensors(
        tmp_path / "file",
        {"whole": base, "part": base[::2], "turned": base.view(2, 3).t(), "weight": model.weight, "tied": model.weight},
        {"word": "spring"},
    )
    loaded, words = load_tensors(tmp_path / "file")
    assert words == {"word": "spring"}
    assert torch.equal(loaded["part"], base[::2])
    assert torch.equal(loaded["turned"], base.view(2, 3).t())
    assert torch.equal(loaded["tied"], model.weight)
    assert not loaded["weight"].requires_grad
    assert set(safetensors.torch.load_file(tmp_path / "file")) == set(loaded)


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", b"old")

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        happened.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        happened.append(f"rename {target.name}")
        return replace(self, target)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("pathlib.Path.replace", renamed)
    write_atomically(tmp_path / "folder" / "file", b"content")
    assert happened == [f"sync .file.{os.getpid()}", "rename file", "sync folder"]
    assert (tmp_path / "folder" / "file").read_bytes() == b"content"


def test_a_file_cut_anywhere_is_never_loaded(tmp_path: Path) -> None:
    save_state(tmp_path / "whole", {"x": torch.arange(100.0), "y": [1, 2]})
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=rf"^checkpoint: {path} must be a readable safetensors file\. Got: .*\. Point to another"
        ):
            load_state(path)


def test_a_file_of_something_else_gets_a_sentence(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "model")
    sentence = f"checkpoint: {tmp_path / 'model'} must come from save_state. Got a file without its tree. Use another."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        load_state(tmp_path / "model")


def test_a_state_is_readable_without_hooke_and_holds_no_pickle(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"step": 3, "x": torch.ones(2)})
    content = (tmp_path / "state").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["tree"]) == {"dict": [["step", 3], ["x", {"tensor": "0"}]]}
    assert header["0"]["dtype"] == "F32"
