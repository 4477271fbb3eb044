"""Judges what the paper derives, and how moments travel. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import numpy as np

from hooke.claim import Missing, Table, Verdict, mean_interval, verdict_word, within


def constants(table: Table) -> Verdict:
    """alpha and lambda to 1e-12."""
    row = table.where(study="constants", mean=0.0, variance=1.0)
    alpha, scale = row.one("alpha"), row.one("scale")
    close = abs(alpha - 1.6732632423543772) < 1e-12 and abs(scale - 1.0507009873554805) < 1e-12
    return Verdict(verdict_word(close), f"alpha {alpha:.13f}, lambda {scale:.13f}", "alpha 1.6733, lambda 1.0507")


def other_point(table: Table) -> Verdict:
    """The fixed point (0, 2)."""
    row = table.where(study="constants", mean=0.0, variance=2.0)
    alpha, scale, residual = row.one("alpha"), row.one("scale"), row.one("residual")
    close = abs(alpha - 1.97126) < 1e-5 and abs(scale - 1.06071) < 1e-5
    note = f"Certificate: the map moves (0, 2) by {residual:.1g}."
    return Verdict(
        verdict_word(close), f"alpha {alpha:.5f}, lambda {scale:.5f}", "alpha 1.97126, lambda 1.06071", note=note
    )


def norm(table: Table) -> Verdict:
    """The norm of the Jacobian, to the digits that the paper prints."""
    return within(table.where(study="jacobian").one("norm"), 0.7877, 5e-5)


def proved(name: str, paper: str) -> Callable[[Table], Verdict]:
    """One theorem, which may have several parts: all proved or not."""

    def holds(table: Table) -> Verdict:
        rows = table.where(study="theorem", name=lambda of: of.startswith(name))
        boxes, seconds = sum(rows.column("boxes")), sum(rows.column("took"))
        note = f"Interval arithmetic over {boxes:,} boxes in {seconds:.1f} s: no grid, no rounding error."
        return Verdict(
            verdict_word(all(rows.column("proved"))), "; ".join(dict.fromkeys(rows.column("says"))), paper, note=note
        )

    return holds


def only_selu(table: Table) -> Verdict:
    """None of the four, as they are or scaled to unit variance, has an attracting fixed point near (0, 1)."""
    rows = table.where(study="activation")
    named = rows.where(name=lambda name: name in ("ReLU", "leaky ReLU", "tanh", "sigmoid"))
    able = [
        f"tanh times {row['result']['gain']:.3f}" if row["settings"]["name"] == "tanh" else row["settings"]["name"]
        for row in named
        if row["result"].get("normalizes")
        and abs(row["result"]["mean_there"]) < 0.1
        and abs(row["result"]["variance_there"] - 1) < 0.5
    ]
    if len(named) < 8:
        raise Missing("Not every activation is in the record.")
    ours = f"able: {', '.join(able)}" if able else "none of the four is able"
    note = "Each as it is, and multiplied so that variance 1 is kept."
    if able:
        note = "As they are, none has one. Multiplied to keep variance 1, tanh is steep enough, saturates and attracts."
    return Verdict(verdict_word(not able), ours, "none", note=note)


def moments_stay(table: Table) -> Verdict:
    """Mean within 0.1 and variance within 0.3 in every layer, at widths from 256."""
    rows = table.where(study="moments", width=lambda width: width >= 256, depth=32)
    means, variances = np.array(rows.column("means")), np.array(rows.column("variances"))
    worst = (float(np.abs(means).max()), float(np.abs(variances - 1).max()))
    ours = f"|mean| at most {worst[0]:.3f}, |variance - 1| at most {worst[1]:.3f}"
    note = "Over all layers and seeds of 32 layers, widths 256 to 1024."
    return Verdict(
        verdict_word(worst[0] < 0.1 and worst[1] < 0.3), ours, "toward 0 and 1", seeds=_seeds(rows), note=note
    )


def spread(rows: Table) -> float:
    """Root mean square over seeds of the distance of the last layer's variance from 1."""
    return math.sqrt(fmean((variances[-1] - 1) ** 2 for variances in rows.column("variances")))


def central_limit(table: Table) -> Verdict:
    """How the scatter of the variance falls with width."""
    rows = table.where(study="moments", depth=16)
    groups = rows.groups("width")
    widths = sorted(width for (width,) in groups)
    slope = float(np.polyfit(np.log(widths), np.log([spread(groups[(width,)]) for width in widths]), 1)[0])
    ours = f"falls as width^{slope:.2f}"
    note = f"Slope of the logarithms over widths {widths[0]} to {widths[-1]}, 16 layers; the theory of sums gives -1/2."
    return Verdict(verdict_word(-0.75 < slope < -0.35), ours, "width^-0.5", seeds=_seeds(rows), note=note)


def gradients(table: Table) -> Verdict:
    """Growth of the gradient variance a layer, from 1 up."""
    rows = table.where(study="moments")
    width, depth = max(rows.column("width")), max(rows.column("depth"))
    growths = [math.log(g) / (depth - 1) for g in rows.where(width=width, depth=depth).column("gradient_growth")]
    estimate = mean_interval(growths)
    ours, low, high = (math.exp(value) for value in (estimate.mean, estimate.low, estimate.high))
    chi = table.where(study="jacobian").one("backward_factor")
    note = (
        f"The fixed point's own factor is {chi:.5f} a layer: {chi**32:.1f} times in 32 layers, {chi**128:,.0f} in 128. "
        "The forward pass normalizes itself, the backward pass does not."
    )
    return Verdict(verdict_word(high < 1.01), f"{ours:.4f} times a layer", "no growth", (low, high), estimate.n, note)


def alpha_dropout(table: Table) -> Verdict:
    """Variance between 0.8 and 1.25 in every layer, which plain dropout leaves."""
    rows = table.where(study="dropout")
    worst = {kind: _worst(rows.where(kind=kind)) for kind in ("alpha", "plain")}
    rates = sorted({row["settings"]["p"] for row in rows})
    ours = f"variance between {worst['alpha'][0]:.3f} and {worst['alpha'][1]:.3f}"
    holds = worst["alpha"][0] > 0.8 and worst["alpha"][1] < 1.25 and worst["plain"][1] > 1.25
    note = (
        f"All layers of 16, rates {', '.join(f'{p:g}' for p in rates)}; "
        f"plain dropout takes it to {worst['plain'][1]:.2f}."
    )
    return Verdict(verdict_word(holds), ours, "kept at 1", seeds=_seeds(rows), note=note)


def _worst(rows: Table) -> tuple[float, float]:
    variances = np.array(rows.column("variances"))
    return float(variances.min()), float(variances.max())


def _seeds(rows: Table) -> int:
    return len({row["settings"]["seed"] for row in rows})
