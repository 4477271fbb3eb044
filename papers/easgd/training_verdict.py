"""Judges what was trained on CIFAR-10. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from hooke.claim import NOT_JUDGED, Estimate, Missing, Table, Verdict, lead_word, mean_interval, verdict_word
from papers.easgd.best import MOST, Best, best, crossing, searched

PERIODS = (1, 4, 16, 64)
WORKERS = 4
GROWTH = {"EASGD": 10, "EAMSGD": 10, "DOWNPOUR": 1, "MDOWNPOUR": 1}
"""Periods of the study of the number of workers (section 5)."""
DOWNPOURS = ("DOWNPOUR", "ADOWNPOUR", "MVADOWNPOUR")
SEQUENTIAL = ("SGD", "ASGD", "MVASGD", "MSGD")
NEEDED = 3
"""Seeds below which a claim about training is not judged."""


def percent(value: float) -> str:
    """An error in percent."""
    return f"{100 * value:.1f}"


def lead(ours: Best, theirs: Best) -> Estimate:
    """By how many points of test error `ours` is lower, over the seeds that both have run."""
    return mean_interval([100 * (b - a) for a, b in zip(ours.errors, theirs.errors, strict=False)])


def _together(words: Sequence[str], seeds: int) -> str:
    """One word for several leads: all reproduced, or the worst that is certain."""
    if seeds < NEEDED:
        return NOT_JUDGED
    for word in (verdict_word(False), NOT_JUDGED):
        if word in words:
            return word
    return verdict_word(True)


def _leads(pairs: Sequence[tuple[str, Best, Best]], note: str) -> Verdict:
    """Of each pair the first should have the lower error."""
    leads = [(about, ours, theirs, lead(ours, theirs)) for about, ours, theirs in pairs]
    words = [lead_word((one.low, one.high)) for *_, one in leads]
    smallest = min((one for *_, one in leads), key=lambda one: one.mean)
    seeds = min(one.n for *_, one in leads)
    ours = "; ".join(
        f"{about}{percent(fmean(a.errors))} % against {percent(fmean(b.errors))} % ({one.mean:+.1f})"
        for about, a, b, one in leads
    )
    return Verdict(_together(words, seeds), ours, "", smallest.interval, seeds, note)


_POINTS = (
    "Mean of the seeds' best test errors; in brackets the lead in points. The interval is that of the smallest lead."
)


def momentum_first(table: Table) -> Verdict:
    """MSGD below SGD, ASGD and MVASGD."""
    momentum = best(table, "MSGD", 1, 1)
    return _leads([(f"{name} ", momentum, best(table, name, 1, 1)) for name in SEQUENTIAL[:-1]], _POINTS)


def best_at_small_periods(table: Table) -> Verdict:
    """DOWNPOUR and its averages: the better of periods 1 and 4 below both 16 and 64."""
    pairs = []
    for name in DOWNPOURS:
        runs = {period: best(table, name, WORKERS, period) for period in PERIODS}
        small = min((runs[1], runs[4]), key=lambda one: fmean(one.errors))
        pairs += [(f"{name}, {small.period} against {period}: ", small, runs[period]) for period in (16, 64)]
    return _leads(pairs, _POINTS)


def rate_of_short_periods_fails(table: Table) -> Verdict:
    """DOWNPOUR at the rate that is best at period 1: nothing is learned at 16 and 64."""
    lr = best(table, "DOWNPOUR", WORKERS, 1).lr
    ends = {period: _end(table, "DOWNPOUR", period, lr) for period in (16, 64)}
    words = "; ".join(f"period {period}: {percent(end)} %" for period, end in ends.items())
    note = f"Test error at the end at rate {lr:g}, the first seed. Above {percent(MOST)} % nothing is learned."
    return Verdict(verdict_word(all(end > MOST for end in ends.values())), words, seeds=1, note=note)


def _end(table: Table, method: str, period: int, lr: float) -> float:
    for row in searched(table, method, WORKERS, period):
        if row["settings"]["lr"] == lr:
            return row["result"]["error"][-1]
    raise Missing(f"No run of {method} at period {period} and rate {lr} is in the record.")


def elastic_stays_stable(table: Table) -> Verdict:
    """No run of EASGD and EAMSGD, at any rate of the grid and any period, ends where nothing is learned."""
    ends = {
        (method, period, row["settings"]["lr"]): row["result"]["error"][-1]
        for method in ("EASGD", "EAMSGD")
        for period in PERIODS
        for row in searched(table, method, WORKERS, period)
    }
    if len({(method, period) for method, period, _ in ends}) < 2 * len(PERIODS):
        raise Missing("Some period has no run of EASGD or EAMSGD in the record.")
    failed = [f"{method} at period {period}, rate {lr:g}" for (method, period, lr), end in ends.items() if end > MOST]
    ours = f"{len(ends) - len(failed)} of {len(ends)} runs learn"
    note = "The first seed, every rate. " + (f"Not: {', '.join(failed)}." if failed else "None ends above 85 %.")
    return Verdict(verdict_word(not failed), ours, seeds=1, note=note)


def longer_period_is_better(method: str) -> Callable[[Table], Verdict]:
    """The better of periods 16 and 64 below period 1."""

    def holds(table: Table) -> Verdict:
        runs = {period: best(table, method, WORKERS, period) for period in PERIODS}
        long = min((runs[16], runs[64]), key=lambda one: fmean(one.errors))
        every = ", ".join(f"{period}: {percent(fmean(one.errors))} %" for period, one in runs.items())
        return _leads([(f"period {long.period} against 1: ", long, runs[1])], f"{_POINTS} By period {every}.")

    return holds


def eamsgd_best_everywhere(table: Table) -> Verdict:
    """EAMSGD below every other method of p = 4 at each period, and below MSGD."""
    pairs = []
    for period in PERIODS:
        ours = best(table, "EAMSGD", WORKERS, period)
        others = [best(table, name, WORKERS, period) for name in ("EASGD", *DOWNPOURS)]
        others += [best(table, "MDOWNPOUR", WORKERS, 1)] * (period == 1) + [best(table, "MSGD", 1, 1)]
        nearest = min(others, key=lambda one: fmean(one.errors))
        pairs.append((f"period {period}, {nearest.method} next: ", ours, nearest))
    return _leads(pairs, _POINTS)


def easgd_beats_downpour(table: Table) -> Verdict:
    """EASGD below DOWNPOUR, each at its own period, for every number of workers."""
    pairs = []
    for workers in _numbers(table, "EASGD"):
        ours, theirs = (best(table, name, workers, GROWTH[name]) for name in ("EASGD", "DOWNPOUR"))
        pairs.append((f"p = {workers}: ", ours, theirs))
    return _leads(pairs, _POINTS)


def _numbers(table: Table, method: str) -> list[int]:
    """Numbers of workers with which `method` has run at its period of the study of p."""
    rows = table.where(method=method, period=GROWTH[method])
    found = sorted({row["settings"]["workers"] for row in rows if row["study"] != "averages"})
    found = [number for number in found if len(best(table, method, number, GROWTH[method]).curves) >= 1]
    if len(found) < 2:
        raise Missing(f"{method} has not run with two numbers of workers.")
    return found


def more_workers_lower(method: str) -> Callable[[Table], Verdict]:
    """The most workers below the fewest."""

    def holds(table: Table) -> Verdict:
        runs = [best(table, method, number, GROWTH[method]) for number in _numbers(table, method)]
        every = ", ".join(f"p = {one.workers}: {percent(fmean(one.errors))} %" for one in runs)
        pair = (f"p = {runs[-1].workers} against {runs[0].workers}: ", runs[-1], runs[0])
        return _leads([pair], f"{_POINTS} {every}.")

    return holds


def speed_up_grows(table: Table) -> Verdict:
    """Seconds to fixed errors: shorter with each larger number of workers, at every level that one worker reaches."""
    alone = best(table, "MSGD", 1, 1)
    runs = [best(table, "EAMSGD", number, GROWTH["EAMSGD"]) for number in _numbers(table, "EAMSGD")]
    levels = levels_of(alone)
    speed = {
        level: [median(alone.seconds_to(level)) / median(one.seconds_to(level)) for one in runs] for level in levels
    }
    grows = [all(a < b for a, b in zip([1.0, *row], row, strict=False)) for row in speed.values()]
    ours = "; ".join(f"to {percent(level)} %: " + ", ".join(f"{x:.2f}" for x in row) for level, row in speed.items())
    seeds = min(len(one.curves) for one in [alone, *runs])
    note = f"MSGD's median seconds over EAMSGD's, p = {', '.join(str(one.workers) for one in runs)}."
    return Verdict(verdict_word(all(grows)) if seeds >= NEEDED else NOT_JUDGED, ours, seeds=seeds, note=note)


def levels_of(alone: Best) -> list[float]:
    """Errors to reach: what one worker has after a third and two thirds of its run, and at its best (seeds' median)."""
    count = len(alone.seconds)
    middle = [median(curve[i] for curve in alone.curves) for i in (count // 3, 2 * count // 3)]
    return sorted({*middle, max(alone.errors)}, reverse=True)


def faster_than_alone(method: str, sequential: str) -> Callable[[Table], Verdict]:
    """Fewer seconds to the error that the sequential method has at its best; p = 4, period as in the study of p."""

    def holds(table: Table) -> Verdict:
        alone, ours = best(table, sequential, 1, 1), best(table, method, WORKERS, GROWTH[method])
        level = max(alone.errors)
        pairs = zip(alone.seconds_to(level), ours.seconds_to(level), strict=False)
        ratios = [math.log(a / b) if math.isfinite(b) else -1.0 for a, b in pairs]
        estimate = mean_interval(ratios)
        interval = (math.exp(estimate.low), math.exp(estimate.high)) if estimate.interval else None
        word = lead_word((estimate.low, estimate.high)) if estimate.n >= NEEDED else NOT_JUDGED
        said = f"{math.exp(estimate.mean):.2f} times as fast to {percent(level)} %"
        note = (
            f"Virtual seconds of {sequential} over those of {method}; geometric mean. Never counts as e times as slow."
        )
        return Verdict(word, said, "", interval, estimate.n, note)

    return holds


def faster_in_real_seconds(table: Table) -> Verdict:
    """Two processes with EAMSGD against one with MSGD, both on this machine's own clock."""
    rows = table.where(study="real")
    pairs = [
        (_real_seconds(rows, "MSGD", seed), _real_seconds(rows, "EAMSGD", seed))
        for seed in sorted(set(rows.column("seed")))
    ]
    estimate = mean_interval([math.log(a / b) for a, b in pairs])
    word = lead_word((estimate.low, estimate.high)) if estimate.n >= NEEDED else NOT_JUDGED
    interval = (math.exp(estimate.low), math.exp(estimate.high)) if estimate.interval else None
    note = "Two processes share the two threads of one core here, so that each is slower than one alone."
    said = f"{math.exp(estimate.mean):.2f} times as fast to the worst of MSGD's best test errors"
    return Verdict(word, said, "", interval, estimate.n, note)


def _real_seconds(rows: Table, method: str, seed: int) -> float:
    level = max(min(row["result"]["error"]) for row in rows.where(method="MSGD"))
    row = next(iter(rows.where(method=method, seed=seed)), None)
    if row is None:
        raise Missing(f"No run of {method} with seed {seed} in real seconds is in the record.")
    reached = crossing([0.0, *row["result"]["moments"]], [1.0, *row["result"]["error"]], level)
    return min(reached, math.e * row["settings"]["seconds"])
