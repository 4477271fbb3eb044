"""The rows of a simulated run, as a real run leaves them, in virtual seconds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hooke.record import Record
from hooke.rule import Rule
from hooke.run import RunDirectory
from hooke.simulate.cluster import Cluster
from hooke.simulate.timeline import Event


class Rows:
    """Writes the files of a run directory.

    Args:
        path: The run directory, which must not hold a run yet.
        rule: What is exchanged.
        cluster: Where the run is simulated.
        options: The worker's options.
        seed: The simulation's.

    Raises:
        ValueError: There is a run already.
    """

    def __init__(self, path: Path, rule: Rule, cluster: Cluster, options: dict[str, Any], seed: int) -> None:
        self._files = RunDirectory(path)
        if self._files.description.exists():
            raise ValueError(
                f"Simulation: rows must be a directory without a run. Got {path}. Use another, or remove it."
            )
        path.mkdir(parents=True, exist_ok=True)
        about = {"simulated": asdict(cluster), "rule": repr(rule), "settings": {**options, "seed": seed}}
        about |= {"workers": cluster.num_workers}
        self._files.description.write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")
        self._records: dict[int, Record] = {}

    def exchange(self, event: Event, losses: list[float], examples: int, others: int, sent: int, missed: bool) -> None:
        """One exchange of one worker, and its steps since the one before."""
        record, step = self._record(event.worker), event.step
        if losses:
            record.write("loss", sum(losses) / len(losses), step=step, t=event.begun)
            record.write("examples", examples, step=step, t=event.begun)
        if missed:
            record.write("missed", 1, step=step, t=event.begun)
            return
        wait = event.settled - event.begun if event.settled_step == event.step else 0.0
        values = {"exchange_seconds": event.settled - event.begun, "wait_seconds": wait, "staleness": others}
        for name, value in {**values, "bytes_sent": sent, "bytes_received": sent}.items():
            record.write(name, value, step=step, t=event.settled)

    def membership(self, event: Event) -> None:
        """A worker has come back."""
        if event.kind == "joined":
            self._record(event.worker).write("restarted", 1, step=0, t=event.absorbed)

    def flush(self) -> None:
        """Write what waits."""
        for record in self._records.values():
            record.flush()

    def close(self) -> None:
        """Write what waits, and close the files."""
        for record in self._records.values():
            record.close()

    def _record(self, worker: int) -> Record:
        if worker not in self._records:
            self._records[worker] = Record(self._files.rows(worker), worker)
        return self._records[worker]
