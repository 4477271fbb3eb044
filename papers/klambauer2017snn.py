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
    "depth": {
        "sources": {"mnist": 1000, "cifar10": 600},
        "depths": [8, 16, 32],
        "width": 256,
        "rates": [0.01, 0.05, 0.2],
        "seeds": [0, 1, 2],
        "batch": 64,
        "every": 20,
        "check": 2000,
    },
    "htru2": {
        "source": "htru2",
        "width": 128,
        "depths": [2, 4, 8, 16],
        "rates": [0.01, 0.1, 0.3],
        "dropouts": [0.0, 0.05],
        "steps": 500,
        "batch": 64,
        "folds": 10,
        "seed": 0,
    },
    "tox21": {
        "source": "tox21",
        "depths": [2, 3, 4, 6, 8, 16, 32],
        "bits": 1024,
        "width": 128,
        "rates": [0.01, 0.05, 0.1],
        "steps": 600,
        "batch": 64,
        "seeds": [0, 1, 2],
    },
    "dissent": {
        "source": "war-and-peace",
        "lrs": [0.001],
        "words": 4000,
        "vector": 100,
        "hidden": 200,
        "count": 60000,
        "steps": 4000,
        "batch": 64,
        "every": 200,
        "seeds": [0, 1, 2],
    },
    "classical": {"tasks": "all", "largest": 1000, "seed": 0},
}


def run(settings: dict[str, Any], record: Any) -> None:
    """Run every trial that the record does not hold."""
    _uci(settings["uci"], record)
    _classical(settings["classical"], record)
    _depth(settings["depth"], record)
    _htru2(settings["htru2"], record)
    _tox21(settings["tox21"], record)
    _dissent(settings["dissent"], record)


def _tasks(settings: dict[str, Any]) -> list[str]:
    from papers import data

    tasks = data.uci_tasks() if settings["tasks"] == "all" else list(settings["tasks"])
    random.Random(0).shuffle(tasks)  # a run that is cut short leaves a sample, not the head of the alphabet
    return tasks


def _uci(settings: dict[str, Any], record: Any) -> None:
    from papers.feedforward import METHODS
    from papers.snn import uci

    cell = {name: value for name, value in settings.items() if name != "tasks"}
    tasks = _tasks(settings)
    record.study("uci", uci.trial, [{"task": task, "method": method, **cell} for task in tasks for method in METHODS])


def _classical(settings: dict[str, Any], record: Any) -> None:
    """Random forest and support vector machine on the tasks of at most `largest` rows."""
    from papers.snn import uci

    tasks = [task for task in _tasks(settings) if len(uci.load(task).y) <= settings["largest"]]
    methods = ("RandomForest", "SVM")
    cells = [{"task": task, "method": method, "seed": settings["seed"]} for task in tasks for method in methods]
    record.study("classical", uci.classical, cells)


def _depth(settings: dict[str, Any], record: Any) -> None:
    from papers.feedforward import METHODS
    from papers.snn import depth

    cell = {name: value for name, value in settings.items() if name not in ("sources", "depths")}
    cells = [
        {"source": source, "method": method, "depth": layers, "steps": steps, **cell}
        for source, steps in settings["sources"].items()
        for layers in settings["depths"]
        for method in METHODS
    ]
    record.study("depth", depth.trial, cells)


def _htru2(settings: dict[str, Any], record: Any) -> None:
    from papers.feedforward import METHODS
    from papers.snn import table

    record.study("htru2", table.htru2, [{"method": method, **settings} for method in METHODS])


def _tox21(settings: dict[str, Any], record: Any) -> None:
    from papers.feedforward import METHODS
    from papers.snn import table

    cell = {name: value for name, value in settings.items() if name != "depths"}
    cells = [
        {"method": method, "depth": depth, "dropouts": [0.0, 0.05 if method == "SNN" else 0.5], **cell}
        for depth in settings["depths"]
        for method in METHODS
    ]
    record.study("tox21", table.tox21, cells)


def _dissent(settings: dict[str, Any], record: Any) -> None:
    from papers.snn import dissent

    cell = {name: value for name, value in settings.items() if name not in ("lrs", "seeds")}
    cells = [
        {"activation": activation, "variant": variant, "lr": lr, "seed": seed, **cell}
        for seed in settings["seeds"]
        for lr in settings["lrs"]
        for variant in ("blog", "blog+BN", "SNN")
        for activation in ("ReLU", "SELU")
    ]
    record.study("dissent", dissent.trial, cells)
