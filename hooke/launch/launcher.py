"""Starts, watches and restarts the workers of `hooke run`.

The launcher prepares the center's place in shared memory, starts one process a worker, and looks on: it trains
nothing and stands in nobody's way. A worker that crashes is started again alone; the others never notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hooke.launch import evidence
from hooke.launch.description import Description
from hooke.launch.display import display
from hooke.launch.folder import held, memory_folder
from hooke.launch.link import Link, check_reached, quiet
from hooke.launch.process import WorkerProcess, how_it_ended
from hooke.launch.progress import Progress
from hooke.launch.request import LaunchError, Request, make_request
from hooke.launch.server import ServerProcess
from hooke.launch.stopping import Stopping
from hooke.run import Run

if TYPE_CHECKING:
    from hooke.center import LocalCenter

STOP_SECONDS = 5.0
"""How long a worker may take to end after SIGTERM."""


def launch(
    script: str | Path,
    arguments: Sequence[str] = (),
    *,
    workers: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    max_restarts: int = Request.max_restarts,
    checkpoint_every: float = Request.checkpoint_every,
    link: Link | None = None,
) -> int:
    """Train with `workers` processes of a script that share one center; what `hooke run` does.

    Call it from the main thread. Ctrl-C, SIGTERM and a closed terminal save the center and stop the workers; a second
    one stops them at once.

    Args:
        script: The user's script.
        arguments: Its arguments.
        workers: How many processes. Default: as many as the run that is resumed had, else 2.
        out: The run directory. Default: `runs/SCRIPT-DATE-TIME`, or with `resume` the newest of this script there.
        resume: Continue an interrupted run from its checkpoint.
        max_restarts: How often one worker is started again after a crash.
        checkpoint_every: Seconds between checkpoints of the center.
        link: Where others reach the center, or where it is. Default: it stays on this machine.

    Returns:
        The exit code: 0 if every worker finished, 1 if one failed for good or the center could not be saved, 128 +
        the signal's number after a signal (130 after Ctrl-C).

    Raises:
        LaunchError: Something can't be done; nothing was started.
    """
    request = make_request(
        script,
        arguments,
        workers=workers,
        out=out,
        resume=resume,
        max_restarts=max_restarts,
        checkpoint_every=checkpoint_every,
        link=link,
    )
    with held(request.directory), memory_folder() as memory:
        return _Launch(request, memory / "center").run()


class _Launch:
    """One launch, from the first process to the exit code."""

    def __init__(self, request: Request, center: Path) -> None:
        self._request = request
        self._link = request.link or Link()
        self._description = Description(request)
        self._run = Run(
            directory=str(request.directory.absolute()),
            center="" if request.joins else str(center),
            worker=0,
            num_workers=request.workers,
            started=time.monotonic() - self._description.seconds,
            checkpoint_every=request.checkpoint_every,
            resume=request.resume,
            name=f"{request.directory.absolute().name[:100]}-{self._description.id}",
            is_shared=bool(self._link.listen or self._link.join),
        )
        self._center = _loaded(center, request) if request.resume and not request.joins else None
        script = [str(request.script), *request.arguments]
        runs = [dataclasses.replace(self._run, worker=number) for number in range(request.workers)]
        self._display = display()
        more = self._link.environment()
        self._workers = [WorkerProcess(run, script, self._display.worker_said, more) for run in runs]
        self._server = self._new_server(center) if self._link.listen else None
        self._progress = Progress(self._run, self._workers, self._display.show)
        self._stopping = Stopping(self._kill_workers)
        self._waits_for_others = False
        self._saved = time.monotonic()
        self._save_failed = False

    def run(self) -> int:
        with self._stopping.watched():
            try:
                self._meet()
                if not self._stopping.signal:
                    self._start()
                    self._watch()
                if self._stopping.signal:
                    self._stop()
                return self._finish()
            finally:
                self._kill()
                self._display.close()
                if self._center is not None:
                    self._center.close()

    def _new_server(self, center: Path) -> ServerProcess:
        log = self._request.directory / "center.log"
        return ServerProcess(center, log, self._link, self._display.say)

    def _meet(self) -> None:
        """See to it that others can reach the center, or that the center can be reached."""
        if self._request.joins:
            quiet()
            check_reached(self._link, self._say, lambda: bool(self._stopping.signal))
            self._say(f"the center is at {self._link.join}")
        if self._server is not None:
            self._server.start()
            url = self._link.advertised(self._server.url)
            self._say(f"the center listens at {url}")
            self._say(f"start workers elsewhere with:  {self._link.invitation(url)}")

    def _start(self) -> None:
        threads = max(1, evidence.cores() // self._request.workers)
        self._say(
            f"{_count(self._request.workers, 'worker')} of {self._request.script}, {_count(threads, 'thread')} each; "
            f"everything goes to {self._request.directory}"
        )
        for worker in self._workers:
            worker.start()
        if not self._request.joins:
            self._center = self._center or _attach(Path(self._run.center))  # torch is imported while the workers start
        self._describe(None)

    def _watch(self) -> None:
        while (any(worker.going for worker in self._workers) or self._others()) and not self._stopping.signal:
            for worker in self._workers:
                self._tend(worker)
            if self._server is not None:
                self._server.tend()
            self._progress.look(self._center, every=0.5)
            if time.monotonic() - self._saved >= self._request.checkpoint_every:
                self._save()
                self._describe(None)
            time.sleep(0.05)

    def _others(self) -> int:
        """How many workers elsewhere still train with the center here, once those of this machine have finished."""
        if self._server is None or self._center is None:
            return 0
        count = sum(member.alive and member.pid == self._server.pid for member in self._center.members())
        if count and not self._waits_for_others:
            self._say(
                f"the workers here have ended; the center stays for {count} elsewhere (Ctrl-C: saves it and ends)"
            )
        self._waits_for_others |= count > 0
        return count

    # One worker -----------------------------------------------------------------------------------------------------

    def _tend(self, worker: WorkerProcess) -> None:
        """Start it if it is time, and see to it if its process has ended."""
        if worker.state == "restarting" and time.monotonic() >= worker.start_at:
            worker.start()
        code = worker.poll() if worker.running else None
        if code is None:
            return
        self._progress.look(self._center)
        if code == 0:
            worker.state = "finished"
        elif code > 0 and not worker.began:
            worker.state = "failed"
            self._say(
                f"worker {worker.number} {how_it_ended(code)} before its first step. It is not started again: "
                f"the same script would fail again. What it printed: {self._request.files.log(worker.number)}"
            )
        elif worker.restarts >= self._request.max_restarts:
            worker.state = "failed"
            times = _count(worker.restarts, "restart")
            self._say(f"worker {worker.number} {how_it_ended(code)} after {times}, no more to come. The others go on.")
        else:
            worker.restart_after(min(10.0, 0.25 * 2**worker.restarts))
            again = f"{worker.restarts} of {self._request.max_restarts}"
            self._say(f"worker {worker.number} {how_it_ended(code)}. It is started again ({again}).")

    # The end --------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """End the workers that still go, between two checkpoints of the center: the first is there in any case."""
        what = "stopping the workers" if self._request.joins else "saving the center, stopping the workers"
        self._say(f"{self._stopping.word}: {what} (again: at once)")
        self._save()
        for worker in self._workers:
            worker.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while (
            any(worker.alive() for worker in self._workers) and time.monotonic() < deadline and not self._stopping.hurry
        ):
            time.sleep(0.02)
        self._kill()
        for worker in self._workers:
            worker.state = "stopped" if worker.going else worker.state
        if not self._stopping.hurry:
            self._save()

    def _kill_workers(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _kill(self) -> None:
        self._kill_workers()
        if self._server is not None:
            self._server.kill()
        while any(worker.alive() for worker in self._workers):
            time.sleep(0.005)

    def _finish(self) -> int:
        self._progress.look(self._center)
        stopped = any(worker.state == "stopped" for worker in self._workers)
        if not stopped:
            self._save()
        trained = self._request.resume or any(worker.began for worker in self._workers)
        done = trained and all(worker.state == "finished" for worker in self._workers) and not self._save_failed
        code = 128 + self._stopping.signal if stopped else 0 if done else 1
        self._describe(code)
        self._display.close()
        for sentence in self._last_words(code):
            self._say(sentence)
        return code

    def _last_words(self, code: int) -> Iterator[str]:
        request, saved = self._request, self._request.files.center.exists()
        began = any(worker.began for worker in self._workers)
        if code == 0 and not began:
            yield "nothing was left to do"
        elif code == 1 and not began and all(worker.state == "finished" for worker in self._workers):
            yield f"no worker trained. {request.script} needs: with hooke.Worker(model, optimizer, rule)"
        elif code == 1 and not began:
            yield f"no worker took a step. Repair {request.script}, and run it again.{_misplaced(request)}"
        if saved:
            yield f"the center is in {request.files.center}"
        if code > 1:
            goes_on = saved or (request.joins and began)
            yield f"continue with:  {request.resume_line()}" if goes_on else "nothing was trained yet: start it again"
        elif saved or (request.joins and began):
            yield self._drawn()

    def _drawn(self) -> str:
        """Draw the report, where the extra for it is installed."""
        from hooke.report import write_report

        try:
            return f"the report is {write_report([self._request.directory])}"
        except Exception as error:  # whatever a picture stumbles over, the run itself is done
            return f"no report was drawn: {error}"

    # What is left behind --------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint of the center, once there is one."""
        self._saved = time.monotonic()
        if self._center is not None and self._center.ready:
            with self._reporting_failure():
                self._center.save(self._request.files.center)
                self._save_failed = False

    def _describe(self, code: int | None) -> None:
        with self._reporting_failure():
            self._description.write(self._workers, self._run.seconds, code)

    @contextlib.contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        """A full disk must not end a training: the next try may succeed."""
        try:
            yield
        except OSError as error:
            self._save_failed = True
            self._say(f"{self._request.directory} could not be written: {error}. Make room there; training goes on.")

    def _say(self, sentence: str) -> None:
        self._display.say(sentence)


def _attach(path: Path) -> LocalCenter:
    from hooke.center import LocalCenter

    return LocalCenter(path)


def _loaded(path: Path, request: Request) -> LocalCenter:
    center = _attach(path)
    try:
        center.load(request.files.center)
    except ValueError as error:
        center.close()
        raise LaunchError(str(error)) from None
    return center


def _misplaced(request: Request) -> str:
    """A hint, where the script was given an option that is hooke's."""
    ours = ("--workers", "--out", "--resume", "--max-restarts", "--checkpoint-every", "--listen", "--join", "--codec")
    found = [argument for argument in request.arguments if argument.partition("=")[0] in ours]
    return f" {found[0]} went to the script: hooke's own options stand before it." if found else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
