"""The rows of a simulated run, as a real run leaves them, in virtual seconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from hooke.launch import evidence
from hooke.record import Record
from hooke.rule import Rule
from hooke.run import RunDirectory
from hooke.simulate.cluster import Cluster
from hooke.simulate.timeline import Event
from hooke.spec import Refused


@dataclass(frozen=True)
class Exchanged:
    """What one exchange came to.

    Attributes:
        others: Exchanges of other workers since the worker's last event.
        moved: Bytes, each way.
        distance: Of the worker from the center just before, where it was measured.
        failure: Why it did not happen, or `None`.
    """

    others: int
    moved: int
    distance: float | None
    failure: Exception | None


class Rows:
    """Writes the files of a run directory: `run.json` and one file of rows a worker.

    A worker writes the rows of an exchange when its correction has come back, as a real one does.

    Args:
        path: The run directory, which must not hold a run yet.
        rule: What is exchanged.
        cluster: Where the run is simulated.
        settings: The worker's options, and the simulation's.

    Raises:
        ValueError: There is a run already.
    """

    def __init__(self, path: Path, rule: Rule, cluster: Cluster, settings: Mapping[str, Any]) -> None:
        self._files = RunDirectory(path)
        if self._files.description.exists() or (path.exists() and not path.is_dir()):
            raise ValueError(
                f"Simulation: rows must be a directory without a run. Got {path}. Use another, or remove it."
            )
        path.mkdir(parents=True, exist_ok=True)
        about = {
            "workers": cluster.num_workers,
            "settings": {"rule": repr(rule), **settings},
            "simulated": _plain(cluster),
            "versions": evidence.versions(),
            "device": evidence.device(),
        }
        self._files.description.write_text(json.dumps(about, indent=2, default=str) + "\n", encoding="utf-8")
        self._records = {number: Record(self._files.rows(number), number) for number in range(cluster.num_workers)}
        self._waiting: dict[int, tuple[Event, Exchanged]] = {}
        self._steps, self._restarts = Counter[int](), Counter[int]()

    def trained(self, event: Event, losses: Sequence[float], examples: int) -> None:
        """The steps of a worker up to this event."""
        self._settle(event.worker, by=event.begun)
        if losses:
            self._write(event.worker, "loss", sum(losses) / len(losses), event.step, event.begun)
            self._write(event.worker, "examples", examples, event.step, event.begun)

    def missed(self, event: Event, why: str) -> None:
        """An exchange that did not happen."""
        self._write(event.worker, "missed", 1, event.step, event.begun, note=why)

    def diverging(self, event: Event, growth: float, said: str) -> None:
        """A worker whose distance from the center grows without end."""
        self._write(event.worker, "diverging", growth, event.step, event.begun, note=said)

    def exchanged(self, event: Event, exchanged: Exchanged) -> None:
        """An exchange that the center has absorbed or refused; its rows wait until it has settled."""
        self._waiting[event.worker] = event, exchanged

    def died(self, event: Event) -> None:
        """A worker's process is gone: what had not come back never will."""
        self._settle(event.worker, by=event.absorbed)
        self._waiting.pop(event.worker, None)

    def joined(self, event: Event) -> None:
        """A fresh process has joined."""
        self._steps[event.worker] = 0
        self._restarts[event.worker] += 1
        self._write(event.worker, "restarted", self._restarts[event.worker], 0, event.absorbed)

    def center(self, name: str, value: float, seconds: float) -> None:
        """What was measured with the center's weights; worker 0 writes it down."""
        self._write(0, name, value, self._steps[0], seconds, about="center")

    def flush(self, seconds: float) -> None:
        """Write everything up to then to the files."""
        for worker in list(self._waiting):
            self._settle(worker, by=seconds)
        for record in self._records.values():
            record.flush()

    def close(self) -> None:
        """Close the files; exchanges that have not settled leave no rows."""
        for record in self._records.values():
            record.close()

    def _settle(self, worker: int, *, by: float) -> None:
        if worker not in self._waiting or self._waiting[worker][0].settled > by:
            return
        event, exchanged = self._waiting.pop(worker)
        step, seconds = event.settled_step, event.settled
        if exchanged.failure is not None:
            name = "refused" if isinstance(exchanged.failure, Refused) else "missed"
            self._write(worker, name, 1, step, seconds, note=str(exchanged.failure))
            return
        lasted = event.settled - event.begun
        values: dict[str, float] = {} if exchanged.distance is None else {"center_distance": exchanged.distance}
        values |= {"exchange_seconds": lasted, "wait_seconds": lasted if step == event.step else 0.0}
        values |= {"bytes_sent": exchanged.moved, "bytes_received": exchanged.moved, "staleness": exchanged.others}
        for name, value in values.items():
            self._write(worker, name, value, step, seconds)

    def _write(
        self,
        worker: int,
        name: str,
        value: float,
        step: int,
        t: float,
        *,
        note: str | None = None,
        about: str | None = None,
    ) -> None:
        self._steps[worker] = step
        self._records[worker].write(name, value, step=step, worker=about, note=note, t=t)


def _plain(cluster: Cluster) -> dict[str, Any]:
    """What is not as usual about it: an infinite bandwidth has no place in JSON."""
    values = {field.name: (getattr(cluster, field.name), field.default) for field in fields(cluster)}
    return {name: value for name, (value, usual) in values.items() if usual is MISSING or value != usual}
