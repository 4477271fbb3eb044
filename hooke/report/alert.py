"""What went wrong in a run, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hooke.report.data import Alert, Groups, WorkerSummary
from hooke.report.words import METRICS, called, place, spell_seconds, times


def find_alerts(about: Mapping[str, Any], groups: Groups, workers: Sequence[WorkerSummary]) -> list[Alert]:
    """Every recorded failure, refusal, missed exchange, restart and value that is not finite, by name."""
    alerts = [*_recorded_failures(about)]
    started = about.get("workers")
    silent = set(range(started)) if isinstance(started, int) and started <= 4096 else set()
    silent = (silent | {w.worker for w in workers}) - {who for who, _ in groups}
    alerts += [Alert(who, f"worker {who} left no rows") for who in silent]
    for w in workers:
        alerts += _troubles(groups, w)
    for (who, name), rows in groups.items():
        bad = [row for row in rows if name in METRICS and not np.isfinite(row["value"])]
        if bad:
            what = f"the {METRICS[name].label.lower()} of {called(who)} was not finite in {times(len(bad), 'row')}"
            alerts.append(Alert(who, f"{what}, first at step {bad[0]['step']:,}: {bad[0]['value']}"))
    return sorted(alerts, key=lambda alert: (alert.worker is not None, *place(alert.worker)))


def _recorded_failures(about: Mapping[str, Any]) -> Iterator[Alert]:
    """What `run.json` says: the exit code, and how each worker ended."""
    code, states = about.get("exit_code"), about.get("workers_state")
    if isinstance(code, int) and code > 128:
        yield Alert(None, f"the run was stopped by signal {code - 128}", serious=False)
    elif code not in (None, 0):
        yield Alert(None, f"the run ended with exit code {code}")
    for who, state in states.items() if isinstance(states, dict) else ():
        if not re.match(_WELL, str(state), re.IGNORECASE):
            yield Alert(int(who) if who.isdigit() else who, f"worker {who} {state}")


_WELL = r"(starting|training|running|restarting|finished|done|ok|stopped|left)\b"


def _troubles(groups: Groups, w: WorkerSummary) -> Iterator[Alert]:
    def first(name: str) -> str:
        row = next(row for row in groups[w.worker, name] if row["value"])
        return f"first at step {row['step']:,}" + (f": {row['note']}" if row.get("note") else "")

    if w.refused:
        yield Alert(w.worker, f"worker {w.worker} was refused {times(w.refused)}, {first('refused')}")
    if (w.worker, "diverging") in groups:
        yield Alert(w.worker, f"worker {w.worker} seems to diverge, {first('diverging')}")
    if w.missed:
        yield Alert(
            w.worker, f"worker {w.worker} missed {times(w.missed, 'exchange')}, {first('missed')}", serious=False
        )
    if w.restarts:
        row = groups[w.worker, "restarted"][0]
        away = f" after step {row['taken']:,}; away for {spell_seconds(w.down)} in all" if w.down else ""
        when = f"first at {spell_seconds(row['t'])}{away}"
        yield Alert(w.worker, f"worker {w.worker} was started again {times(w.restarts)}, {when}", serious=False)
