"""Judges the dissent. No torch."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from hooke.claim import NOT_REPRODUCED, Estimate, Missing, Table, Verdict, lead_word, mean_interval


def accuracies(table: Table, activation: str, variant: str) -> dict[int, float]:
    """Accuracy in % at the end, by seed."""
    rows = table.where(study="dissent", activation=activation, variant=variant)
    return {seed: 100 * value for seed, value in zip(rows.column("seed"), rows.column("accuracy"), strict=True)}


def _lead(ours: dict[int, float], other: dict[int, float]) -> Estimate:
    common = sorted(set(ours) & set(other))
    if len(common) < 2:
        raise Missing("Fewer than two seeds of both nets are in the record.")
    return mean_interval([ours[seed] - other[seed] for seed in common])


def _findings(table: Table, variant: str) -> list[str]:
    """What the audit says of the SELU net before training."""
    found = table.where(study="dissent", activation="SELU", variant=variant).column("findings")
    return list(dict.fromkeys(kind for of_seed in found for kind, *_ in of_seed))


def selu_loses(variant: str) -> Callable[[Table], Verdict]:
    """ReLU leads, over seeds."""

    def holds(table: Table) -> Verdict:
        relu, selu = (accuracies(table, activation, variant) for activation in ("ReLU", "SELU"))
        lead = _lead(relu, selu)
        ours = f"ReLU {fmean(relu.values()):.1f} %, SELU {fmean(selu.values()):.1f} %"
        said = ", ".join(_findings(table, variant)) or "nothing"
        note = f"Interval of ReLU's lead in points. The audit finds in the SELU net: {said}."
        return Verdict(lead_word((lead.low, lead.high)), ours, "", lead.interval, lead.n, note)

    return holds


def mended(table: Table) -> Verdict:
    """SELU built as the theory asks, without a finding, leads the best ReLU net."""
    before, after = (accuracies(table, "SELU", variant) for variant in ("plain", "theory"))
    nets = {variant: accuracies(table, "ReLU", variant) for variant in ("plain", "batch norm", "theory")}
    name = max(nets, key=lambda variant: fmean(nets[variant].values()))
    lead = _lead(after, nets[name])
    found = _findings(table, "theory")
    ours = (
        f"SELU from {fmean(before.values()):.1f} to {fmean(after.values()):.1f} %, "
        f"best ReLU ({name}) {fmean(nets[name].values()):.1f} %"
    )
    note = f"Interval of SELU's lead in points. The audit of the mended net finds: {', '.join(found) or 'nothing'}."
    word = NOT_REPRODUCED if found else lead_word((lead.low, lead.high))
    return Verdict(word, ours, "", lead.interval, lead.n, note)
