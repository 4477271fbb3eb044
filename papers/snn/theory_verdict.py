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
    return Verdict(verdict_word(close), f"alpha {alpha:.13f}, lambda {scale:.13f}")


def other_point(table: Table) -> Verdict:
    """The fixed point (0, 2)."""
    row = table.where(study="constants", mean=0.0, variance=2.0)
    alpha, scale, residual = row.one("alpha"), row.one("scale"), row.one("residual")
    close = abs(alpha - 1.97126) < 1e-5 and abs(scale - 1.06071) < 1e-5
    note = f"Certificate: the map moves (0, 2) by {residual:.1g}."
    return Verdict(verdict_word(close), f"alpha {alpha:.5f}, lambda {scale:.5f}", note=note)


def norm(table: Table) -> Verdict:
    """The norm of the Jacobian, to the digits that the paper prints."""
    return within(table.where(study="jacobian").one("norm"), 0.7877, 5e-5)


def proved(name: str, parts: int) -> Callable[[Table], Verdict]:
    """One theorem in so many parts: all proved or not."""

    def holds(table: Table) -> Verdict:
        rows = table.where(study="theorem", name=lambda of: of.startswith(name))
        if len(rows) < parts:
            raise Missing(f"{len(rows)} of {parts} parts of {name} are in the record.")
        boxes, seconds = sum(rows.column("boxes")), sum(rows.column("took"))
        note = f"Interval arithmetic over {boxes:,} boxes in {seconds:.1f} s: no grid, no rounding error."
        says = "; ".join(dict.fromkeys(rows.column("says")))
        return Verdict(verdict_word(all(rows.column("proved"))), says, note=note)

    return holds


OTHERS = ("ReLU", "leaky ReLU", "tanh", "sigmoid")
"""Activations that the paper says cannot make a net self-normalizing."""


def unable(scaled: bool) -> Callable[[Table], Verdict]:
    """None of `OTHERS`, plain or multiplied to keep variance 1, has an attracting fixed point near (0, 1)."""

    def holds(table: Table) -> Verdict:
        rows = table.where(study="activation", name=lambda name: name in OTHERS, scaled=scaled)
        if len(rows) < len(OTHERS):
            raise Missing("Not every activation is in the record.")
        able = [row for row in rows if _is_able(row["result"])]
        ours = ", ".join(f"{row['settings']['name']} times {row['result']['gain']:.4f} is able" for row in able)
        return Verdict(verdict_word(not able), ours or "none of the four is able")

    return holds


def _is_able(result: dict[str, float]) -> bool:
    near = abs(result.get("mean_there", 9.0)) < 0.1 and abs(result.get("variance_there", 9.0) - 1) < 0.5
    return bool(result.get("normalizes")) and near


def moments_stay(table: Table) -> Verdict:
    """Mean within 0.1 and variance within 0.3 in every layer of the deepest nets, at widths from 256."""
    rows = table.where(study="moments", width=lambda width: width >= 256)
    depth = max(rows.column("depth"))
    rows = rows.where(depth=depth)
    means, variances = np.array(rows.column("means")), np.array(rows.column("variances"))
    worst = (float(np.abs(means).max()), float(np.abs(variances - 1).max()))
    ours = f"|mean| at most {worst[0]:.3f}, |variance - 1| at most {worst[1]:.3f}"
    widths = sorted(set(rows.column("width")))
    note = f"Worst of all layers and seeds, {depth} layers, widths {', '.join(map(str, widths))}."
    return Verdict(verdict_word(worst[0] < 0.1 and worst[1] < 0.3), ours, seeds=_seeds(rows), note=note)


def spread(rows: Table) -> float:
    """Root mean square over seeds of the distance of the last layer's variance from 1."""
    return math.sqrt(fmean((variances[-1] - 1) ** 2 for variances in rows.column("variances")))


def central_limit(table: Table) -> Verdict:
    """How the scatter of the variance falls with width: its slope on logarithmic axes, by bootstrap over seeds."""
    rows = table.where(study="moments", depth=16)
    groups = {width: [v[-1] - 1 for v in one.column("variances")] for (width,), one in rows.groups("width").items()}
    widths = sorted(groups)
    errors = np.array([groups[width] for width in widths]) ** 2
    picks = np.random.default_rng(0).integers(0, errors.shape[1], (1000, errors.shape[1]))
    boots = [_slope(widths, errors[:, pick]) for pick in picks]
    slope, (low, high) = _slope(widths, errors), np.quantile(boots, [0.025, 0.975])
    note = f"Slope of the logarithms over widths {widths[0]} to {widths[-1]}, 16 layers."
    word = verdict_word(float(high) <= -0.4)
    return Verdict(
        word, f"falls as width^{slope:.2f}", interval=(float(low), float(high)), seeds=_seeds(rows), note=note
    )


def _slope(widths: list[int], squares: np.ndarray) -> float:
    return float(np.polyfit(np.log(widths), 0.5 * np.log(squares.mean(1) + 1e-300), 1)[0])


def gradients(table: Table) -> Verdict:
    """Growth of the gradient variance a layer: 1 to a hundredth."""
    rows = table.where(study="moments")
    width, depth = max(rows.column("width")), max(rows.column("depth"))
    rows = rows.where(width=width, depth=depth)
    estimate = mean_interval([math.log(growth) / (depth - 1) for growth in rows.column("gradient_growth")])
    ours, low, high = (math.exp(value) for value in (estimate.mean, estimate.low, estimate.high))
    chi = table.where(study="jacobian").one("backward_factor")
    note = (
        f"Width {width}, {depth} layers. The fixed point's own factor is {chi:.5f} a layer: {chi**32:.1f} times in 32 "
        f"layers, {chi**128:,.0f} in 128."
    )
    return Verdict(
        verdict_word(low > 0.99 and high < 1.01), f"{ours:.4f} times a layer", "", (low, high), estimate.n, note
    )


def alpha_dropout(table: Table) -> Verdict:
    """Moments in range in every layer under alpha dropout, at every rate."""
    rows = table.where(study="dropout", kind="alpha")
    means, variances = np.array(rows.column("means")), np.array(rows.column("variances"))
    low, high, off = float(variances.min()), float(variances.max()), float(np.abs(means).max())
    rates = ", ".join(f"{p:g}" for p in sorted(set(rows.column("p"))))
    ours = f"variance {low:.3f} to {high:.3f}, |mean| at most {off:.3f}"
    note = f"Worst of {variances.shape[1]} layers, rates {rates}."
    return Verdict(verdict_word(low > 0.8 and high < 1.25 and off < 0.1), ours, seeds=_seeds(rows), note=note)


def plain_dropout(table: Table) -> Verdict:
    """Variance beyond 1.25 in some layer under plain dropout, at every rate."""
    groups = table.where(study="dropout", kind="plain").groups("p")
    worst = {p: float(np.array(rows.column("variances")).max()) for (p,), rows in groups.items()}
    ours = ", ".join(f"rate {p:g}: {value:.3g}" for p, value in sorted(worst.items()))
    note = "Largest variance of any layer."
    seeds = max(_seeds(rows) for rows in groups.values())
    return Verdict(verdict_word(all(value > 1.25 for value in worst.values())), ours, seeds=seeds, note=note)


def _seeds(rows: Table) -> int:
    return len({row["settings"]["seed"] for row in rows})
