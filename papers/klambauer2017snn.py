"""Self-Normalizing Neural Networks (Klambauer, Unterthiner, Mayr, Hochreiter, 2017), judged by its own claims."""

from __future__ import annotations

import random
from typing import Any

FULL: dict[str, Any] = {
    "uci": {
        "tasks": "all",
        "width": 128,
        "depths": [2, 4, 8, 16],
        "rates": [0.01, 0.1, 0.3],
        "dropouts": [0.0, 0.05, 0.5],
        "steps": 500,
        "batch": 32,
        "every": 50,
        "validate": 600,
        "seed": 0,
    },
}


def run(settings: dict[str, Any], record: Any) -> None:
    """Run every trial that the record does not hold."""
    _uci(settings["uci"], record)


def _uci(settings: dict[str, Any], record: Any) -> None:
    from papers import data
    from papers.feedforward import METHODS
    from papers.snn import uci

    cell = {name: value for name, value in settings.items() if name != "tasks"}
    tasks = data.uci_tasks() if settings["tasks"] == "all" else list(settings["tasks"])
    random.Random(0).shuffle(tasks)  # a run that is cut short leaves a sample, not the head of the alphabet
    record.study("uci", uci.trial, [{"task": task, "method": method, **cell} for task in tasks for method in METHODS])
