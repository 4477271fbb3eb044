"""Judges the dissent. No torch."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from hooke.claim import Table, Verdict, mean_interval, verdict_word


def pair_accuracies(table: Table, activation: str, variant: str) -> list[float]:
    """Accuracy at the end, one a seed."""
    return table.where(study="dissent", activation=activation, variant=variant).column("accuracy")


def selu_loses(variant: str) -> Callable[[Table], Verdict]:
    """ReLU leads, with an interval of seeds above 0."""

    def holds(table: Table) -> Verdict:
        relu, selu = (pair_accuracies(table, activation, variant) for activation in ("ReLU", "SELU"))
        lead = mean_interval([100 * (a - b) for a, b in zip(relu, selu, strict=True)])
        found = table.where(study="dissent", activation="SELU", variant=variant).column("findings")[0]
        said = found[0][2] if found else "nothing"
        ours = f"ReLU {100 * fmean(relu):.1f} %, SELU {100 * fmean(selu):.1f} %"
        note = f"Interval of ReLU's lead in points. The audit of the SELU net: {said}"
        return Verdict(
            verdict_word(lead.low > 0), ours, "ReLU about 82.0 %, SELU about 80.7 %", lead.interval, lead.n, note
        )

    return holds


def mended(table: Table) -> Verdict:
    """SELU built as the theory asks against the best ReLU net."""
    before = pair_accuracies(table, "SELU", "blog")
    after = pair_accuracies(table, "SELU", "SNN")
    best = max((pair_accuracies(table, "ReLU", variant) for variant in ("blog", "blog+BN", "SNN")), key=fmean)
    gain = mean_interval([100 * (a - b) for a, b in zip(after, best, strict=True)])
    ours = f"SELU {100 * fmean(before):.1f} to {100 * fmean(after):.1f} %, best ReLU {100 * fmean(best):.1f} %"
    note = "Interval of the mended SELU net's lead over the best ReLU net in points; reproduced if ReLU does not lead."
    return Verdict(verdict_word(gain.high >= 0), ours, "not in the paper", gain.interval, gain.n, note)
