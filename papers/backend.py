"""Many calls at once through joblib, on any backend that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from itertools import islice
from typing import Any

from papers.error import PapersError


def outcomes(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], jobs: int, backend: str | None
) -> Iterator:
    """`function(*call)` for every call, begun in order; each outcome as soon as it is there.

    A call is taken from `calls` only when it can start at once.

    Args:
        function: A function at the top level of its module.
        calls: Its arguments.
        jobs: How many run at once; -1 is one a core.
        backend: The name of a joblib backend; `None` is loky, processes on this machine.

    Raises:
        PapersError: joblib is not installed, or does not have the backend.
    """
    joblib = _joblib()
    tasks = (joblib.delayed(function)(*call) for call in calls)
    with _active(backend, jobs):
        if _returns_as_it_goes(jobs):
            start = joblib.Parallel(jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
            yield from start(tasks)
            return
        while batch := list(islice(tasks, count(jobs))):
            yield from joblib.Parallel(jobs, batch_size=1)(batch)


def count(jobs: int) -> int:
    """How many run at once, as a number above 0."""
    return _joblib().effective_n_jobs(jobs)


def _joblib() -> Any:
    try:
        import joblib
    except ImportError as error:
        raise PapersError(f'joblib must be installed. Got: {error}. Run pip install "hooke[papers]".') from error
    return joblib


def _active(backend: str | None, jobs: int) -> AbstractContextManager[Any]:
    """The backend, used by all that runs inside; processes of loky compute on one thread each."""
    one_thread = {"inner_max_num_threads": 1} if backend in (None, "loky") and jobs != 1 else {}
    try:
        _prepare(backend)
        return _joblib().parallel_config(backend=backend or "loky", **one_thread)
    except (ImportError, ValueError) as error:
        raise PapersError(f"--backend must be one that joblib finds. Got {backend!r}: {error}. Use loky.") from error


@cache
def _prepare(backend: str | None) -> None:
    """What some backends want before joblib knows them, once a process."""
    if backend == "ray":
        from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

        register_ray()
    if backend == "dask":
        from distributed import Client  # pyright: ignore[reportMissingImports]

        Client()  # the cluster of DASK_SCHEDULER_ADDRESS, or one on this machine; joblib finds it by itself


def _returns_as_it_goes(jobs: int) -> bool:
    """Whether the active backend hands over each result when it is there (ray and multiprocessing do not)."""
    try:
        _joblib().Parallel(jobs, return_as="generator_unordered")
    except ValueError:
        return False
    return True
