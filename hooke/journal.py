"""What a worker writes down about itself: rows of its run, and a warning where the user should look."""

from __future__ import annotations

import warnings

from hooke.center import Center
from hooke.exchange import Outcome
from hooke.pacing import Choice
from hooke.record import Record
from hooke.run import Run
from hooke.spec import Refused


class Journal:
    """Rows of one worker; without a run there is no record, and values are checked and dropped.

    Args:
        run: The run that the worker belongs to.
        center: What the worker exchanges with; joined already.
    """

    def __init__(self, run: Run | None, center: Center) -> None:
        self._center = center
        self._exchanges = center.exchanges
        self._bytes = (center.bytes_sent, center.bytes_received)
        self._record = None if run is None else Record(run.files.rows(run.worker), run.worker, started=run.started)
        if run is not None and run.restarts:
            self.note("restarted", run.restarts, 0)

    def note(self, name: str, value: float, step: int, *, note: str | None = None, about: str | None = None) -> None:
        """Add a row, as `Record.write`."""
        if self._record is None:
            Record.check(name)
        else:
            self._record.write(name, value, step=step, worker=about, note=note)

    def exchanged(self, outcome: Outcome, step: int) -> None:
        """Add the rows of one exchange."""
        exchanges, moved = self._center.exchanges, (self._center.bytes_sent, self._center.bytes_received)
        others, sent, received = exchanges - self._exchanges - 1, moved[0] - self._bytes[0], moved[1] - self._bytes[1]
        self._exchanges, self._bytes = exchanges, moved
        if outcome.failure is not None:
            self._failed(outcome.failure, step)
            return
        if outcome.center_distance is not None:
            self.note("center_distance", outcome.center_distance, step)
        self.note("exchange_seconds", outcome.exchange_seconds, step)
        self.note("wait_seconds", outcome.wait_seconds, step)
        self.note("bytes_sent", sent, step)
        self.note("bytes_received", received, step)
        self.note("staleness", max(0, others), step)

    def paced(self, choice: Choice, step: int) -> None:
        """Say which period was chosen, and why."""
        self.note("communication_period", choice.period, step, note=choice.why)
        self.note("step_seconds", choice.step_seconds, step)

    def diverging(self, growth: float, step: int, said: str) -> None:
        """Say that the run seems to diverge, and why."""
        self.note("diverging", growth, step, note=said)
        warnings.warn(said, RuntimeWarning, stacklevel=3)

    def close(self) -> None:
        """Write what waits."""
        if self._record is not None:
            self._record.close()

    def _failed(self, failure: Exception, step: int) -> None:
        if not isinstance(failure, Refused):
            self.note("missed", 1, step, note=str(failure))
            return
        self.note("refused", 1, step, note=str(failure))
        warnings.warn(f"Worker: an exchange was refused, training goes on. {failure}", RuntimeWarning, stacklevel=2)
