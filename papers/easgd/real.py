"""The same network trained by real processes around a `hooke.LocalCenter`, in real seconds."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import torch

import hooke
from papers.easgd.images import images
from papers.easgd.training import error_of, loss, network, optimizer_of, rule_of

MEETING_SECONDS = 300.0
"""How long processes may take to start and to load the images."""

ENDING_SECONDS = 60.0
"""How long a worker may take to end."""


def trial(
    method: str,
    workers: int,
    period: int,
    lr: float,
    seed: int,
    width: int,
    batch: int,
    seconds: float,
    points: int,
    source: str,
) -> dict[str, Any]:
    """Train for some seconds of this machine's clock; test errors of the center at `points` moments.

    The center is copied while training goes on and tested afterwards, so that testing takes no time from it.
    """
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "center"
        ready, over = context.Barrier(workers + 1), context.Event()
        settings = (str(path), method, workers, period, lr, seed, width, batch, source, ready, over)
        processes = [context.Process(target=_train, args=(number, *settings)) for number in range(workers)]
        try:
            for process in processes:
                process.start()
            _meet(ready, processes)
            centers, exchanges = _watch(path, seconds, points)
        finally:
            over.set()
            _end(processes)
    if any(process.exitcode for process in processes):
        raise _failure(processes)
    tested = [_tested(center, width, source) for center in centers]
    moments = [round(seconds * point / points, 3) for point in range(1, points + 1)]
    return {"moments": moments, "error": tested, "exchanges": exchanges}


def _meet(ready: Barrier, processes: Sequence[BaseProcess]) -> None:
    """Start together; where a worker ended before it was there, nobody waits for it.

    Raises:
        RuntimeError: A worker ended, or was not there in time.
    """
    ends = time.monotonic() + MEETING_SECONDS
    while ready.n_waiting < len(processes):
        if any(process.exitcode is not None for process in processes) or time.monotonic() > ends:
            ready.abort()
            _end(processes)
            raise _failure(processes)
        time.sleep(0.005)
    ready.wait(MEETING_SECONDS)


def _watch(path: Path, seconds: float, points: int) -> tuple[list[torch.Tensor], int]:
    """Copies of the center at `points` moments, and how many exchanges it has absorbed by the last."""
    began, centers = time.perf_counter(), []
    watched = hooke.LocalCenter(path)
    try:
        for point in range(1, points + 1):
            time.sleep(max(0.0, began + seconds * point / points - time.perf_counter()))
            centers.append(watched.pull())
        return centers, watched.exchanges
    finally:
        watched.close()


def _end(processes: Sequence[BaseProcess]) -> None:
    """Wait for the workers; kill one that does not end."""
    for process in processes:
        if process.pid is not None:
            process.join(ENDING_SECONDS)
            process.kill()
            process.join()


def _failure(processes: Sequence[BaseProcess]) -> RuntimeError:
    codes = [process.exitcode for process in processes]
    return RuntimeError(f"real: every worker must end well. Got exit codes {codes}. Read what they wrote above.")


def _context() -> Any:
    """Processes that start from one that has everything loaded already, where the system has that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["papers.easgd.training"])
    return context


def _train(
    number: int,
    path: str,
    method: str,
    workers: int,
    period: int,
    lr: float,
    seed: int,
    width: int,
    batch: int,
    source: str,
    ready: Barrier,
    over: Event,
) -> None:
    torch.set_num_threads(1)
    shown = images(source)
    torch.manual_seed(seed)
    model = network(width)
    optimizer = optimizer_of(method, model.parameters(), lr)
    center = hooke.LocalCenter(path)
    with hooke.Worker(model, optimizer, rule_of(method), center=center, communication_period=period) as worker:
        torch.manual_seed(1000 * seed + number)
        ready.wait(MEETING_SECONDS)
        while not over.is_set():
            value = loss(model, shown.batch(batch, seed, number, worker.steps))
            if not math.isfinite(value.item()):
                break
            value.backward()
            optimizer.step()
            optimizer.zero_grad()


def _tested(center: torch.Tensor, width: int, source: str) -> float:
    model = network(width)
    hooke.FlatParameters(model).set_(center)
    return error_of(model, images(source))[0]
