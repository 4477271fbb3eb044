"""What a run leaves behind: append-only rows, one JSON object a line, readable without hooke and without torch.

A row is `{"t": seconds, "worker": id, "step": n, "name": "...", "value": x}`: at `t` seconds after the run started,
`worker` (a number, or `"center"`) had taken `step` optimizer steps, and `name` was `value`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

NAMES: dict[str, str] = {
    "loss": "mean loss of the training batches since the last row",
    "test_loss": "mean loss on held-out examples",
    "accuracy": "share of held-out examples classified correctly, 0 to 1",
    "examples": "training examples this worker has used since it first joined the run",
    "exchange_seconds": "how long one exchange with the center took, wherever it ran",
    "wait_seconds": "how long that exchange held up the training loop",
    "bytes_sent": "bytes this exchange moved from the worker toward the center",
    "bytes_received": "bytes this exchange moved from the center toward the worker",
    "communication_period": "steps between two exchanges that were chosen by measurement; `note` says why",
    "step_seconds": "how long one step took, without exchanges, when the period was chosen",
    "center_distance": "Euclidean distance of the worker's parameters from the center's",
    "staleness": "exchanges of other workers since this worker's last one",
    "missed": "exchanges (or, in shared memory, blocks of one) that did not happen; the period was longer once",
    "refused": "exchanges that the center refused; `note` says why",
    "diverging": "distance from the center over its median, where a run seems to diverge; `note` says what to do",
    "restarted": "how often this worker's process has been started again after a crash",
}
"""Every name a row may have, with its meaning. A name that is not here is an error."""


class Record:
    """Appends rows to one JSONL file; one writer a file.

    The first row is written at once. Later ones wait in memory for the first row that comes `flush_seconds` after the
    last were written, or for `close()`: a process that is killed loses those. `read` skips a line that was cut.

    Args:
        path: The file; its folder is made.
        worker: Who the rows are about: the worker's number.
        started: `time.monotonic()` at the start of the run; rows count seconds from there.
        flush_seconds: How long a row may wait in memory, in seconds.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Record(folder / "0.jsonl", worker=0) as record:
        ...     record.write("loss", 2.5, step=10)
        >>> [(row["worker"], row["step"], row["name"], row["value"]) for row in read(folder / "0.jsonl")]
        [(0, 10, 'loss', 2.5)]
    """

    def __init__(
        self, path: str | Path, worker: int, *, started: float | None = None, flush_seconds: float = 1.0
    ) -> None:
        self.path = Path(path)
        self.worker = worker
        self._started = time.monotonic() if started is None else started
        self._flush_seconds = flush_seconds
        self._waiting: list[str] = []
        self._flushed = -math.inf
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _end_cut_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def write(
        self,
        name: str,
        value: float,
        *,
        step: int,
        worker: int | str | None = None,
        note: str | None = None,
        t: float | None = None,
    ) -> None:
        """Add one row.

        Args:
            name: One of `NAMES`.
            value: A number. Not a number and infinity are kept as the words `"nan"`, `"inf"`, `"-inf"`: JSON has none.
            step: Optimizer steps that the worker has taken.
            worker: Whom the row is about, if not this record's worker: a number or `"center"`.
            note: A sentence, where a number is not enough (why an exchange was refused).
            t: Seconds since the run started. Default: now.

        Raises:
            ValueError: `name` is not in `NAMES`.
        """
        self.check(name)
        now = time.monotonic()
        about = self.worker if worker is None else worker
        row: Row = {"t": round(now - self._started if t is None else t, 6), "worker": about, "step": step, "name": name}
        value = float(value)
        row["value"] = value if math.isfinite(value) else str(value)
        if note is not None:
            row["note"] = note
        self._waiting.append(json.dumps(row))
        if now - self._flushed > self._flush_seconds:
            self.flush()

    @staticmethod
    def check(name: str) -> None:
        """Refuse a name that `NAMES` does not list.

        Raises:
            ValueError: It does not.
        """
        if name not in NAMES:
            raise ValueError(f"Record: name must be one of {', '.join(NAMES)}. Got {name!r}. Use the nearest of them.")

    def flush(self) -> None:
        """Write the rows that wait to the file."""
        if self._waiting:
            self._file.write("\n".join(self._waiting) + "\n")
            self._waiting.clear()
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_cut_line(path: Path) -> None:
    """End a last line that a killed writer left without its newline, so that the next row starts on its own."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


def parse(line: str) -> Row | None:
    """The row in `line`, its value a float again; `None` where the line is cut or is no row."""
    try:
        row = json.loads(line)
        row |= {"t": float(row["t"]), "step": int(row["step"]), "value": float(row["value"])}
        whole = math.isfinite(row["t"]) and isinstance(row["worker"], int | str) and isinstance(row["name"], str)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return row if whole else None


def read(path: str | Path) -> Iterator[Row]:
    """The rows of one JSONL file in order; lines that a killed writer cut are skipped."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            row = parse(line)
            if row is not None:
                yield row
