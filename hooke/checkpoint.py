"""Checkpoints without pickle: nested dicts, lists and tuples of tensors and plain values as one safetensors file.

Written beside, synced, then renamed: a reader finds the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace the file `path` by `content`: beside it, synced, renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors and words about them to `path`, atomically."""
    ready = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(ready, metadata))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read back what `save_tensors` wrote.

    Raises:
        ValueError: The file is missing, cut or not a safetensors file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"checkpoint: {path} must be a readable safetensors file. Got: {error}. "
            "Point to another checkpoint, or start without resuming."
        ) from None


def save_state(path: str | Path, state: Any) -> None:
    """Write a nested state (such as an optimizer's `state_dict()`) to `path`, atomically and without pickle.

    Args:
        path: The file to replace.
        state: Dicts (with keys of str, int, float, bool or None), lists and tuples, of tensors and of what JSON holds.

    Raises:
        TypeError: Something in `state` is neither a tensor nor plain data.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_state(path, {"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.999)})
        >>> load_state(path)
        {'state': {0: {'step': tensor(3.)}}, 'betas': (0.9, 0.999)}
    """
    tensors: dict[str, Tensor] = {}
    tree = _to_json(state, tensors)
    save_tensors(path, tensors, {"tree": json.dumps(tree)})


def load_state(path: str | Path) -> Any:
    """Read back what `save_state` wrote; tensors on the CPU.

    Raises:
        ValueError: The file is missing, cut or was not written by `save_state`.
    """
    tensors, metadata = load_tensors(path)
    if "tree" not in metadata:
        raise ValueError(f"checkpoint: {path} must come from save_state. Got a file without its tree. Use another.")
    return _from_json(json.loads(metadata["tree"]), tensors)


def _to_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_to_json(key, tensors), _to_json(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_to_json(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"checkpoint: a state may hold tensors, numbers, words, dicts, lists and tuples. Got {type(value).__name__}. "
        "Turn it into one of these, e.g. with .tolist()."
    )


def _from_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    if kind == "tensor":
        return tensors[items]
    if kind == "dict":
        return {_from_json(key, tensors): _from_json(item, tensors) for key, item in items}
    parts = [_from_json(item, tensors) for item in items]
    return tuple(parts) if kind == "tuple" else parts
