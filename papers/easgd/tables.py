"""Tables for the documents, as Markdown, from the record alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hooke.claim import Missing, Table
from papers.easgd.best import best, is_at_edge, numbers_of_workers
from papers.easgd.claims import CLAIMS
from papers.easgd.training_verdict import DOWNPOURS, GROWTH, PERIODS, WORKERS, percent
from papers.markdown import markdown, verdicts_of

_WORDS = (
    "Best test error in %, mean of the seeds; in brackets the rate and how many seeds. A star: the smallest or the "
    "largest rate that was tried."
)


def periods(table: Table) -> str:
    """Best test error of each method at each period, four workers."""
    head = ["method", *(f"period {period}" for period in PERIODS)]
    methods = ("EAMSGD", "EASGD", *DOWNPOURS, "MDOWNPOUR")
    rows = [[name, *(_cell(table, name, WORKERS, period) for period in PERIODS)] for name in methods]
    alone = "; ".join(f"{name} {_cell(table, name, 1, 1)}" for name in ("MSGD", "SGD", "ASGD", "MVASGD"))
    return f"{markdown(head, rows)}\n{_WORDS} One worker: {alone}.\n"


def workers(table: Table) -> str:
    """Best test error of each method with each number of workers."""
    numbers = numbers_of_workers(table, "EAMSGD", GROWTH["EAMSGD"])
    if not numbers:
        raise Missing("No run of EAMSGD at the period of the study of p is in the record.")
    rows = [
        [f"{name}, period {period}", *(_cell(table, name, number, period) for number in numbers)]
        for name, period in GROWTH.items()
    ]
    return f"{markdown(['method', *(f'{number} workers' for number in numbers)], rows)}\n{_WORDS}\n"


def _cell(table: Table, method: str, workers: int, period: int) -> str:
    try:
        one = best(table, method, workers, period)
    except Missing:
        return "not run"
    edge = "*" if is_at_edge(table, one) else ""
    return f"{percent(one.error)} ({one.lr:g}{edge}, {len(one.seeds)})"


TABLES: Mapping[str, Callable[[Table], str]] = {"verdicts": verdicts_of(CLAIMS), "periods": periods, "workers": workers}
