"""Tables for the documents, as Markdown, from the record alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

from hooke.claim import Missing, Table
from papers.easgd.best import best
from papers.easgd.claims import CLAIMS
from papers.easgd.training_verdict import DOWNPOURS, GROWTH, PERIODS, WORKERS, percent
from papers.markdown import markdown, verdicts_of


def periods(table: Table) -> str:
    """Best test error of each method at each period, four workers."""
    head = ["method", *(f"period {period}" for period in PERIODS)]
    methods = ("EAMSGD", "EASGD", *DOWNPOURS, "MDOWNPOUR")
    rows = [[name, *(_cell(table, name, WORKERS, period) for period in PERIODS)] for name in methods]
    alone = "; ".join(f"{name} {_cell(table, name, 1, 1)}" for name in ("MSGD", "SGD", "ASGD", "MVASGD"))
    words = f"\nBest test error in %, mean of the seeds, in brackets the rate. One worker: {alone}.\n"
    return markdown(head, rows) + words


def workers(table: Table) -> str:
    """Best test error of each method with each number of workers."""
    numbers = sorted({row["settings"]["workers"] for row in table.where(method="EAMSGD", period=GROWTH["EAMSGD"])})
    rows = [
        [f"{name}, period {period}", *(_cell(table, name, number, period) for number in numbers)]
        for name, period in GROWTH.items()
    ]
    words = "\nBest test error in %, mean of the seeds, in brackets the rate and the seeds.\n"
    return markdown(["method", *(f"{number} workers" for number in numbers)], rows) + words


def _cell(table: Table, method: str, workers: int, period: int) -> str:
    try:
        one = best(table, method, workers, period)
    except Missing:
        return "not run"
    return f"{percent(fmean(one.errors))} ({one.lr:g}, {len(one.errors)})"


TABLES: Mapping[str, Callable[[Table], str]] = {"verdicts": verdicts_of(CLAIMS), "periods": periods, "workers": workers}
