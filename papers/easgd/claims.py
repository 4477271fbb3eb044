"""What the paper claims, where, and when a claim counts as reproduced. No torch."""

from __future__ import annotations

from hooke.claim import Claim
from papers.easgd import analysis_verdict as analysis
from papers.easgd import training_verdict as training

_LEAD = "the 95 % interval of every lead, paired by seed, is above 0; if one lies around 0 it is not judged"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "In the round-robin scheme EASGD is stable if and only if 0 <= eta <= 2 and "
        "0 <= alpha <= (4 - 2 eta) / (4 - eta), for any number of workers.",
        "section 4",
        analysis.condition,
        condition="the condition is right at every point of the grid",
    ),
    Claim(
        "ADMM in the round-robin scheme can be unstable.",
        "section 4, figure 1",
        analysis.admm_unstable,
        condition="the spectral radius is above 1 somewhere on the figure's grid, for p = 3 and 8",
    ),
    Claim(
        "EASGD is stable where ADMM is not.",
        "section 4",
        analysis.easgd_stable_there,
        condition="the spectral radius is below 1 on the whole grid of figure 1",
    ),
    Claim(
        "At eta = 0.001 and rho = 2.5 ADMM's path is unstable.",
        "section 4, figure 2",
        analysis.example,
        condition="ADMM's spectral radius is above 1 and its path grows, EASGD's is below 1",
    ),
    Claim(
        "DOWNPOUR becomes unstable with a long period, EASGD does not (on a quadratic).",
        "section 5 and supplement",
        analysis.downpour_and_period,
        condition="the literal runs equal the closed form; stable at periods 1 and 4, not at 16 and 64; EASGD at all",
    ),
    Claim(
        "Of the sequential methods MSGD is the best.",
        "section 5.1",
        training.momentum_first,
        condition=_LEAD,
    ),
    Claim(
        "DOWNPOUR, ADOWNPOUR and MVADOWNPOUR are best at small periods.",
        "section 5.2, figure 2",
        training.best_at_small_periods,
        "best at 1 and 4",
        _LEAD,
    ),
    Claim(
        "DOWNPOUR becomes highly unstable at periods 16 and 64.",
        "section 5.2, figure 2",
        training.rate_of_short_periods_fails,
        condition="at the rate that is best at period 1 nothing is learned (test error above 85 %, or a worker becomes "
        "infinite) at 16 and at 64",
    ),
    Claim(
        "EASGD and EAMSGD stay stable at every period.",
        "section 5.2, figure 2",
        training.elastic_stays_stable,
        condition="no run, at any rate of the grid and any period, ends with a test error above 85 %, and no worker "
        "becomes infinite",
    ),
    Claim(
        "EASGD's test error gets better as the period grows.",
        "section 5.2",
        training.longer_period_is_better("EASGD"),
        condition="at 64 it is lower than at 1: the 95 % interval of the lead, paired by seed, is above 0",
    ),
    Claim(
        "EAMSGD's test error gets better as the period grows.",
        "section 5.2",
        training.longer_period_is_better("EAMSGD"),
        condition="at 64 it is lower than at 1: the 95 % interval of the lead, paired by seed, is above 0",
    ),
    Claim(
        "EAMSGD has the lowest test error of all methods at every period.",
        "section 5.2, figure 2",
        training.eamsgd_best_everywhere,
        condition=_LEAD,
    ),
    Claim(
        "EASGD reaches a lower test error than DOWNPOUR, for every number of workers.",
        "section 5.3, figure 3",
        training.easgd_beats_downpour,
        condition=_LEAD,
    ),
    Claim(
        "EASGD converges faster than SGD.",
        "section 5",
        training.faster_than_alone("EASGD", "SGD"),
        condition="the 95 % interval of the ratio of seconds to SGD's best test error (its worst seed) is above 1",
    ),
    Claim(
        "EAMSGD converges faster than MSGD.",
        "section 5.2",
        training.faster_than_alone("EAMSGD", "MSGD"),
        condition="the 95 % interval of the ratio of seconds to MSGD's best test error (its worst seed) is above 1",
    ),
    Claim(
        "With more workers EASGD's best test error falls.",
        "section 5.3, figure 3",
        training.more_workers_lower("EASGD"),
        "falls from 4 over 8 to 16",
        "it falls with each larger number: " + _LEAD,
    ),
    Claim(
        "With more workers EAMSGD's best test error falls.",
        "section 5.3, figure 3",
        training.more_workers_lower("EAMSGD"),
        "falls from 4 over 8 to 16",
        "it falls with each larger number: " + _LEAD,
    ),
    Claim(
        "The speed-up of EAMSGD to a fixed test error grows with the number of workers.",
        "section 5.3, figures 4 and 5",
        training.speed_up_grows,
        condition="to every level that MSGD reaches, each larger number of workers needs fewer seconds, p = 4 fewer "
        "than MSGD: the 95 % intervals of the ratios, paired by seed, are above 1",
    ),
    Claim(
        "EAMSGD converges faster than MSGD in real seconds too, here with two processes.",
        "section 5",
        training.faster_in_real_seconds,
        condition="the 95 % interval of the ratio of seconds to MSGD's best test error (its worst seed) is above 1",
    ),
)
