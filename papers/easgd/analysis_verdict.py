"""Judges the analysis on quadratics. No torch."""

from __future__ import annotations

from hooke.claim import Missing, Table, Verdict, verdict_word

WORKERS = (3, 8)
"""Of figure 1."""
PERIODS = (1, 4, 16, 64)


def _rows(table: Table, study: str, name: str = "workers", needed: tuple[int, ...] = WORKERS) -> Table:
    """The trials of a study, once it has all that its claims are about."""
    rows = table.where(study=study)
    for value in needed:
        if not len(rows.where(**{name: value})):
            raise Missing(f"No trial of the study {study} with {name} {value} is in the record.")
    return rows


def condition(table: Table) -> Verdict:
    """The paper's condition says of every point of the grid whether the round's spectral radius is at most 1."""
    rows = _rows(table, "easgd map")
    agree, points = sum(rows.column("agree")), sum(rows.column("points"))
    workers = " and ".join(map(str, rows.column("workers")))
    ours = f"{agree} of {points} points agree (p = {workers})"
    note = (
        "The grid is coarse: an even number of workers stays stable in a narrow band beyond the condition, so that "
        '"only if" holds for odd numbers.'
    )
    return Verdict(verdict_word(agree == points), ours, note=note)


def admm_unstable(table: Table) -> Verdict:
    """ADMM is unstable on a part of figure 1's grid."""
    rows = _rows(table, "admm map")
    shares = {row["settings"]["workers"]: row["result"]["unstable_share"] for row in rows}
    ours = "; ".join(f"p = {workers}: {100 * share:.0f} % of the grid" for workers, share in shares.items())
    return Verdict(verdict_word(all(share > 0 for share in shares.values())), ours)


def easgd_stable_there(table: Table) -> Verdict:
    """EASGD is stable on the whole grid."""
    largest = max(_rows(table, "admm map").column("easgd_largest"))
    return Verdict(verdict_word(largest < 1), f"largest spectral radius {largest:.5f}")


def example(table: Table) -> Verdict:
    """At eta = 0.001 and rho = 2.5 ADMM grows without bound and EASGD does not."""
    rows = _rows(table, "admm example")
    parts, holds = [], []
    for row in rows:
        result = row["result"]
        holds.append(result["radius"] > 1 and result["last_over_first"] > 1 and result["easgd_radius"] < 1)
        parts.append(f"p = {row['settings']['workers']}: {result['radius']:.5f} against {result['easgd_radius']:.5f}")
    return Verdict(verdict_word(all(holds)), "; ".join(parts), note="Spectral radius of a round, ADMM against EASGD.")


def downpour_and_period(table: Table) -> Verdict:
    """DOWNPOUR's factor is its closed form: below 1 at periods 1 and 4, above at 16 and 64; EASGD's stays below."""
    rows = _rows(table, "downpour map", "period", PERIODS)
    factors = {row["settings"]["period"]: row["result"] for row in rows}
    exact = all(abs(one["factor"] - one["closed"]) <= 1e-9 * abs(one["closed"]) for one in factors.values())
    small = all(abs(one["factor"]) < 1 for period, one in factors.items() if period <= 4)
    large = all(abs(one["factor"]) > 1 for period, one in factors.items() if period >= 16)
    elastic = all(one["easgd_radius"] < 1 and one["easgd_last"] < 1 for one in factors.values())
    ours = "; ".join(
        f"period {period}: {one['factor']:.2f} against {one['easgd_radius']:.2f}" for period, one in factors.items()
    )
    note = "Factor of a round, DOWNPOUR against EASGD (beta 0.9), lr * curvature 0.05, p = 4."
    return Verdict(verdict_word(exact and small and large and elastic), ours, note=note)
