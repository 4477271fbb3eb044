"""Judges what was trained on CIFAR-10. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from hooke.claim import NOT_JUDGED, Estimate, Missing, Table, Verdict, lead_word, mean_interval, verdict_word
from papers.easgd.best import MOST, Best, best, lowest, numbers_of_workers, paired, seconds_to, tried

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
    return mean_interval([100 * (b - a) for a, b in paired(ours, theirs, lambda one: one.errors)])


def _against(ours: Best, theirs: Best) -> str:
    """The mean errors of the seeds that both have run."""
    means = map(fmean, zip(*paired(ours, theirs, lambda one: one.errors), strict=True))
    return " against ".join(f"{percent(mean)} %" for mean in means)


def _word_of(every_run_does: bool, seeds: int) -> str:
    """One run that does not refutes; that all do takes enough seeds."""
    return verdict_word(every_run_does) if seeds >= NEEDED or not every_run_does else NOT_JUDGED


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
    ours = "; ".join(f"{about}: {_against(a, b)} ({one.mean:+.1f})" for about, a, b, one in leads)
    return Verdict(_together(words, seeds), ours, "", smallest.interval, seeds, note)


_POINTS = (
    "Mean of the seeds' best test errors; in brackets the lead in points. The interval is that of the smallest lead."
)


def momentum_first(table: Table) -> Verdict:
    """MSGD below SGD, ASGD and MVASGD."""
    momentum = best(table, "MSGD", 1, 1)
    return _leads([(f"MSGD, {name}", momentum, best(table, name, 1, 1)) for name in SEQUENTIAL[:-1]], _POINTS)


def best_at_small_periods(table: Table) -> Verdict:
    """DOWNPOUR and its averages: the better of periods 1 and 4 below both 16 and 64."""
    pairs = []
    for name in DOWNPOURS:
        runs = {period: best(table, name, WORKERS, period) for period in PERIODS}
        small = min((runs[1], runs[4]), key=lambda one: one.error)
        pairs += [(f"{name}, {small.period} against {period}", small, runs[period]) for period in (16, 64)]
    return _leads(pairs, _POINTS)


def rate_of_short_periods_fails(table: Table) -> Verdict:
    """DOWNPOUR at the rate that is best at period 1: nothing is learned at 16 and 64."""
    lr = best(table, "DOWNPOUR", WORKERS, 1).lr
    runs = {period: _runs(table, "DOWNPOUR", period, lr) for period in (16, 64)}
    ends = {period: [percent(row["result"]["error"][-1]) for row in found] for period, found in runs.items()}
    words = "; ".join(f"period {period}: {', '.join(found)} %" for period, found in ends.items())
    fails = all(_fails(row) for found in runs.values() for row in found)
    seeds = min(map(len, runs.values()))
    note = f"Test error at the end at rate {lr:g}, one number a seed. Above {percent(MOST)} % nothing is learned."
    return Verdict(_word_of(fails, seeds), words, seeds=seeds, note=note)


def _runs(table: Table, method: str, period: int, lr: float) -> list[dict[str, Any]]:
    """Every run at that rate."""
    runs = [row for row in tried(table, method, WORKERS, period) if row["settings"]["lr"] == lr]
    if not runs:
        raise Missing(f"No run of {method} at period {period} and rate {lr} is in the record.")
    return runs


def _fails(row: dict[str, Any]) -> bool:
    """Whether nothing is learned at the end (what is no number has learned nothing), or a worker became infinite."""
    return not row["result"]["error"][-1] <= MOST or row["result"]["refused"] > 0


def elastic_stays_stable(table: Table) -> Verdict:
    """No run of EASGD and EAMSGD, at any rate of the grid and any period, ends where nothing is learned."""
    runs = {(name, period): tried(table, name, WORKERS, period) for name in ("EASGD", "EAMSGD") for period in PERIODS}
    if not all(runs.values()):
        raise Missing("Some period has no run of EASGD or EAMSGD in the record.")
    every = [row for rows in runs.values() for row in rows]
    failed = [row["settings"] for row in every if _fails(row)]
    cut_off = sum(row["result"]["refused"] > 0 for row in every)
    named = "; ".join(f"{one['method']}, period {one['period']}, rate {one['lr']:g}" for one in failed)
    seeds = min(len({row["settings"]["seed"] for row in rows}) for rows in runs.values())
    note = (
        f"Every rate with the first seed, the best with all. {f'Not: {named}' if failed else 'None ends above 85 %'}. "
        f"Runs in which a worker's parameters became infinite: {cut_off}."
    )
    ours = f"{len(every) - len(failed)} of {len(every)} runs learn"
    return Verdict(_word_of(not failed, seeds), ours, seeds=seeds, note=note)


def longer_period_is_better(method: str) -> Callable[[Table], Verdict]:
    """Period 64 below period 1."""

    def holds(table: Table) -> Verdict:
        runs = {period: best(table, method, WORKERS, period) for period in PERIODS}
        every = ", ".join(f"{period}: {percent(one.error)} %" for period, one in runs.items())
        return _leads([("period 64 against 1", runs[64], runs[1])], f"{_POINTS} By period {every}.")

    return holds


def eamsgd_best_everywhere(table: Table) -> Verdict:
    """EAMSGD below every other method of p = 4 at each period, and below MSGD."""
    words, nearest, seeds = [], [], []
    for period in PERIODS:
        ours = best(table, "EAMSGD", WORKERS, period)
        others = [best(table, name, WORKERS, period) for name in ("EASGD", *DOWNPOURS)]
        others += [best(table, "MDOWNPOUR", WORKERS, 1)] * (period == 1) + [best(table, "MSGD", 1, 1)]
        leads = [(lead(ours, other), other) for other in others]
        words += [lead_word((one.low, one.high)) for one, _ in leads]
        seeds += [one.n for one, _ in leads]
        _, other = min(leads, key=lambda pair: pair[0].mean)
        nearest.append((f"period {period}, {other.method} next", ours, other))
    return replace(
        _leads(nearest, f"{_POINTS} Every lead counts, also those not named."), word=_together(words, min(seeds))
    )


def easgd_beats_downpour(table: Table) -> Verdict:
    """EASGD below DOWNPOUR, each at its own period, for every number of workers."""
    pairs = []
    for workers in _numbers(table, "EASGD"):
        ours, theirs = (best(table, name, workers, GROWTH[name]) for name in ("EASGD", "DOWNPOUR"))
        pairs.append((f"p = {workers}", ours, theirs))
    return _leads(pairs, _POINTS)


def _numbers(table: Table, method: str) -> list[int]:
    """Numbers of workers with which `method` has run at its period of the study of p."""
    found = numbers_of_workers(table, method, GROWTH[method])
    if len(found) < 2:
        raise Missing(f"{method} has not run with two numbers of workers.")
    return found


def more_workers_lower(method: str) -> Callable[[Table], Verdict]:
    """Each number of workers below the next smaller one."""

    def holds(table: Table) -> Verdict:
        runs = [best(table, method, number, GROWTH[method]) for number in _numbers(table, method)]
        pairs = [(f"p = {more.workers} against {few.workers}", more, few) for few, more in pairwise(runs)]
        return _leads(pairs, _POINTS)

    return holds


def speed_up_grows(table: Table) -> Verdict:
    """Seconds to fixed errors: shorter with each larger number of workers, at every level that one worker reaches."""
    alone = best(table, "MSGD", 1, 1)
    runs = [best(table, "EAMSGD", number, GROWTH["EAMSGD"]) for number in _numbers(table, "EAMSGD")]
    speed = {level: [_speed_up(alone, one, level) for one in runs] for level in levels_of(alone)}
    gains = [_gain(few, more, level) for level in speed for few, more in pairwise([alone, *runs])]
    ours = "; ".join(f"to {percent(level)} %: " + ", ".join(map(_times, row)) for level, row in speed.items())
    seeds = min(gain.n for gain in gains)
    word = _together([lead_word((gain.low, gain.high)) for gain in gains], seeds)
    numbers = ", ".join(str(one.workers) for one in runs)
    note = (
        f"MSGD's median seconds over EAMSGD's, p = {numbers}. Each number of workers is paired by seed with the next."
    )
    return Verdict(word if max(alone.errors) <= MOST else NOT_JUDGED, ours, seeds=seeds, note=note)


def _gain(few: Best, more: Best, level: float) -> Estimate:
    """Log of the seconds that fewer workers need over those that more need; never counts as e times as long."""
    pairs = paired(few, more, lambda one: one.seconds_to(level))
    return mean_interval([_log_ratio(a, b) for a, b in pairs])


def _log_ratio(a: float, b: float) -> float:
    if math.isfinite(a) and math.isfinite(b):
        return math.log(a / b)
    return float(math.isfinite(b)) - float(math.isfinite(a))


def _speed_up(alone: Best, ours: Best, level: float) -> float:
    """How many times as fast the median seed is; 0 where it never gets there."""
    return median(alone.seconds_to(level)) / median(ours.seconds_to(level))


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio else "never"


def levels_of(alone: Best) -> list[float]:
    """Errors to reach: the seeds' median after a third and two thirds of the run, and the worst of their best."""
    count = len(alone.seconds)
    middle = [median(curve[i] for curve in alone.curves) for i in (count // 3, 2 * count // 3)]
    levels = sorted({*middle, _reached(alone.errors)}, reverse=True)
    return [level for level in levels if 0 < median(alone.seconds_to(level)) < math.inf]


def _reached(errors: Sequence[float]) -> float:
    """The error that every one of these runs reaches.

    Raises:
        Missing: Some run has every image wrong, so that any other reaches its error at once.
    """
    level = max(errors)
    if not level < 1:
        raise Missing("A run of one worker alone has every image wrong.")
    return level


def faster_than_alone(method: str, sequential: str) -> Callable[[Table], Verdict]:
    """Fewer seconds to the error that the sequential method has at its best; p = 4, period as in the study of p."""

    def holds(table: Table) -> Verdict:
        alone, ours = best(table, sequential, 1, 1), best(table, method, WORKERS, GROWTH[method])
        level = _reached(alone.errors)
        ratios = [_log_ratio(a, b) for a, b in paired(alone, ours, lambda one: one.seconds_to(level))]
        note = (
            f"Virtual seconds of {sequential} over those of {method}; geometric mean. Never counts as e times as slow."
        )
        return _faster(ratios, level, note)

    return holds


def _faster(log_ratios: Sequence[float], level: float, note: str) -> Verdict:
    """Whether the interval of the mean ratio is above 1; not judged where the level shows no learning."""
    estimate = mean_interval(log_ratios)
    interval = (math.exp(estimate.low), math.exp(estimate.high)) if estimate.interval else None
    judged = estimate.n >= NEEDED and level <= MOST
    word = lead_word((estimate.low, estimate.high)) if judged else NOT_JUDGED
    said = f"{math.exp(estimate.mean):.2f} times as fast to {percent(level)} %"
    return Verdict(word, said, "", interval, estimate.n, note)


def faster_in_real_seconds(table: Table) -> Verdict:
    """Two processes with EAMSGD against one with MSGD, both on this machine's own clock."""
    searched = {"MSGD": (1, 1), "EAMSGD": (WORKERS, GROWTH["EAMSGD"])}
    alone, ours = (
        table.where(study="real", method=name, lr=best(table, name, *at).lr) for name, at in searched.items()
    )
    level = _reached([lowest(errors) for errors in alone.column("error")])
    seconds, other = (_real_seconds(rows, level) for rows in (alone, ours))
    ratios = [math.log(seconds[seed] / other[seed]) for seed in sorted(seconds.keys() & other.keys())]
    note = (
        "Two processes share the two threads of one core here, so that each is slower than one alone. The level is the "
        "worst of MSGD's best test errors; never counts as e times the length of the run."
    )
    return _faster(ratios, level, note)


def _real_seconds(rows: Table, level: float) -> dict[int, float]:
    """Of each seed, at most e times the length of its run."""
    return {
        row["settings"]["seed"]: min(
            seconds_to(row["result"]["moments"], row["result"]["error"], level), math.e * row["settings"]["seconds"]
        )
        for row in rows
    }
