"""A worker's checkpoint in a run directory: everything a stopped or crashed worker needs to go on exactly."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hooke.checkpoint import load_state, save_state
from hooke.run import Run

if TYPE_CHECKING:
    from hooke.worker import Worker


def save(worker: Worker, run: Run, position: dict[str, Any]) -> None:
    """Write the checkpoint: model, optimizer, worker, random states, and the loop's own position.

    With a single worker the center is in it too, so that both are of the same moment; with several the center goes on
    from its own checkpoint.
    """
    state = {
        "worker": worker.state_dict(),
        "model": dict(worker.model.state_dict()),
        "optimizer": worker.optimizer.state_dict(),
        "center": worker.center.pull() if _has_it_alone(worker, run) else None,
        "center_memory": worker.center.pull_memory() if _has_it_alone(worker, run) else None,
        "random": {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": _numpy_state()},
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "position": position,
    }
    save_state(run.files.checkpoint(run.worker), state)


def _has_it_alone(worker: Worker, run: Run) -> bool:
    """Whether the center is this worker's alone, and may go back in time with it."""
    return run.num_workers == 1 and not run.is_shared and not hasattr(worker.center, "url")


def _numpy_state() -> list[Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest]


def restore(worker: Worker, run: Run) -> dict[str, Any] | None:
    """Read it back into `worker` and its model and optimizer; the position, or `None` where there is no checkpoint.

    Raises:
        ValueError: The file can't be read, or is of another model, optimizer or rule.
    """
    path = run.files.checkpoint(run.worker)
    if not (run.resume or run.restarts) or not path.exists():
        return None
    state = load_state(path)
    try:
        worker.model.load_state_dict(state["model"])
        worker.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Worker: {path} must be of the same model and optimizer. Got: {error} Build them as in the run that is "
            "resumed, or start a new run."
        ) from None
    worker.load_state_dict(state["worker"])
    if state["center"] is not None and _has_it_alone(worker, run):
        worker.center.put(state["center"], state.get("center_memory"))  # older checkpoints have none
    torch.set_rng_state(state["random"]["torch"])
    random.setstate(state["random"]["python"])
    name, keys, *rest = state["random"]["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    return state["position"]
