"""Deep learning with Elastic Averaging SGD (Zhang, Choromanska, LeCun, 2015), judged by its own claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hooke.claim import Source
from papers.easgd.best import best_rate
from papers.easgd.claims import CLAIMS

SOURCE = Source(
    title="Deep learning with Elastic Averaging SGD",
    authors="Sixin Zhang, Anna Choromanska, Yann LeCun",
    year=2015,
    url="https://arxiv.org/abs/1412.6651",
    summary="A spring ties each worker to a center variable. The workers may communicate seldom and explore, and learn "
    "faster and better than under DOWNPOUR.",
)

claims = CLAIMS

_RATES = {
    "SGD": [0.1, 0.05, 0.01, 0.005],
    "MSGD": [0.002, 0.001, 0.0005, 0.0001],
    "EASGD": [0.1, 0.05, 0.01],
    "EAMSGD": [0.01, 0.005, 0.001],
    "DOWNPOUR": [0.02, 0.005, 0.001, 0.0005],
    "MDOWNPOUR": [0.0005, 0.00005, 0.00001],
}
"""The paper's grids, with a larger rate where the largest was best in a pilot, without some that were far too small."""

FULL: dict[str, Any] = {
    "analysis": {"sides": 25, "workers": [3, 8], "periods": [1, 4, 16, 64], "decay": 0.05},
    "clock": {"width": 16, "batch": 32, "source": "cifar10"},
    "periods": [1, 4, 16, 64],
    "workers": 4,
    "growth": {"period": 10, "searched": [4, 8], "repeated": [16]},
    "rates": _RATES,
    "seeds": [0, 1, 2],
    "cell": {
        "width": 16,
        "batch": 32,
        "steps": 3000,
        "points": 12,
        "source": "cifar10",
        "bandwidth": 4e9,
        "latency": 1e-4,
        "jitter": 0.1,
    },
}

SMOKE: dict[str, Any] = FULL | {
    "analysis": {"sides": 5, "workers": [3, 8], "periods": [1, 4, 16, 64], "decay": 0.05},
    "clock": {"width": 2, "batch": 8, "source": "toy"},
    "growth": {"period": 10, "searched": [4, 8], "repeated": []},
    "rates": {method: rates[:1] for method, rates in _RATES.items()},
    "seeds": [0, 1],
    "cell": FULL["cell"] | {"width": 2, "batch": 4, "steps": 20, "points": 2, "source": "toy"},
}
"""Sizes that run in seconds and need no file."""

DEPARTURES = ()


def run(settings: dict[str, Any], record: Any) -> None:
    """Run every trial that the record does not hold."""
    _analysis(settings["analysis"], record)
    from papers.easgd import training as study

    clock = record.study("clock", study.clock, [settings["clock"]])
    if not len(clock):
        return
    cell = settings["cell"] | {"step_seconds": clock.one("seconds")}
    searches = {"periods": list(_periods(settings)), "growth": list(_growth(settings))}
    complete = {}
    for name, setups in searches.items():
        cells = [setup | cell | {"seed": settings["seeds"][0]} for setup in setups]
        complete[name] = len(record.study(name, study.trial, cells)) >= len(cells)
        if complete[name]:  # else a rate that was not tried yet may be better
            record.study(f"{name}, repeated", study.trial, lambda name=name: _repeated(settings, record, cell, name))
        if complete["periods"] and name == "periods":
            record.study("averages", study.trial, lambda: _averages(settings, record, cell))
    if complete["growth"]:
        record.study("more workers", study.trial, lambda: _more_workers(settings, record, cell))


def _analysis(settings: Mapping[str, Any], record: Any) -> None:
    """The stability of section 4 and of the supplement, on quadratics."""
    from papers.easgd import analysis as study

    grids = [{"workers": workers, "sides": settings["sides"]} for workers in settings["workers"]]
    record.study("easgd map", study.easgd_map, grids)
    record.study("admm map", study.admm_map, grids)
    record.study("admm example", study.admm_example, [{"workers": workers} for workers in settings["workers"]])
    cells = [{"workers": 4, "period": period, "decay": settings["decay"]} for period in settings["periods"]]
    record.study("downpour map", study.downpour_map, cells)


def _rates(settings: Mapping[str, Any], method: str, workers: int, period: int) -> Iterator[dict[str, Any]]:
    for lr in settings["rates"][method]:
        yield {"method": method, "workers": workers, "period": period, "lr": lr}


def _periods(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The study of the period: p = 4, and the sequential methods beside it."""
    for method in ("SGD", "MSGD"):
        yield from _rates(settings, method, 1, 1)
    for period in settings["periods"]:
        for method in ("EAMSGD", "EASGD", "DOWNPOUR"):
            yield from _rates(settings, method, settings["workers"], period)
    yield from _rates(settings, "MDOWNPOUR", settings["workers"], 1)


def _growth(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The study of the number of workers: elastic methods at period 10, DOWNPOUR at 1, as in the paper."""
    for workers in settings["growth"]["searched"]:
        for method in ("EAMSGD", "EASGD"):
            yield from _rates(settings, method, workers, settings["growth"]["period"])
        if workers != settings["workers"]:  # those are in the study of the period
            for method in ("DOWNPOUR", "MDOWNPOUR"):
                yield from _rates(settings, method, workers, 1)


def _setups(cells: Any) -> list[tuple[str, int, int]]:
    return sorted({(cell["method"], cell["workers"], cell["period"]) for cell in cells})


def _best(record: Any, cell: Mapping[str, Any], study: str, method: str, workers: int, period: int) -> dict[str, Any]:
    rows = record.table.where(study=study, method=method, workers=workers, period=period)
    return {"method": method, "workers": workers, "period": period, "lr": best_rate(rows), **cell}


def _repeated(settings: Mapping[str, Any], record: Any, cell: Mapping[str, Any], study: str) -> list[dict[str, Any]]:
    """The other seeds of each setup, at the rate that was best with the first."""
    setups = _setups({"periods": _periods, "growth": _growth}[study](settings))
    best = [_best(record, cell, study, *setup) for setup in setups]
    return [one | {"seed": seed} for seed in settings["seeds"][1:] for one in best]


def _averages(settings: Mapping[str, Any], record: Any, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """MVADOWNPOUR and MVASGD, at the best rates of the methods whose center they average."""
    pairs = [("MVASGD", "SGD", 1, 1)]
    pairs += [("MVADOWNPOUR", "DOWNPOUR", settings["workers"], period) for period in settings["periods"]]
    best = [_best(record, cell, "periods", base, *setup) | {"method": method} for method, base, *setup in pairs]
    return [one | {"seed": seed} for seed in settings["seeds"] for one in best]


def _more_workers(settings: Mapping[str, Any], record: Any, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Still more workers, at the rates that were best with the most that were searched."""
    growth, cells = settings["growth"], []
    for seed in settings["seeds"]:
        for workers in growth["repeated"]:
            for method, period in (("EAMSGD", growth["period"]), ("EASGD", growth["period"]), ("DOWNPOUR", 1), ("MDOWNPOUR", 1)):
                best = _best(record, cell, "growth", method, max(growth["searched"]), period)
                cells.append(best | {"workers": workers, "seed": seed})
    return cells
