"""Which learning rate was best. No torch."""

from __future__ import annotations

from hooke.claim import Missing, Table


def best_rate(rows: Table) -> float:
    """The rate with the lowest test error at any recorded moment, as the paper reports it.

    Raises:
        Missing: There is no row.
    """
    if not len(rows):
        raise Missing("No trial from which a learning rate could be chosen is in the record.")
    return min(rows, key=lambda row: min(row["result"]["error"]))["settings"]["lr"]
