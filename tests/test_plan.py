"""`hooke plan`: by hand, by what more of anything must bring, and against workers and a link simulated one by one."""

from __future__ import annotations

import heapq
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hooke import cli
from hooke.codec import CODECS, SCALED
from hooke.outer import DiLoCo, Lookahead, SlowMo
from hooke.plan import METHODS, PlanError, Ring, Star, advice_on, parse_bandwidth, parse_count
from hooke.plan.quantity import spell, spell_seconds
from hooke.plan.star import WIDTHS
from hooke.plan.table import WIDTH
from hooke.rule import EAMSGD, EASGD, Downpour, LocalSGD
from hooke.stability import stability_of

SETTING = {"parameters": 25_000_000, "workers": 8, "step_seconds": 0.1, "bandwidth": 1e9}

# By hand --------------------------------------------------------------------------------------------------------


def test_one_exchange_by_hand() -> None:
    """25M float32 values are 100 MB = 800 Mbit: 0.8 s up, 0.8 s down at 1 Gbit/s, and 10 ms of latency each way."""
    star = Star(25_000_000, 0.1, 1e9, latency=0.01)
    assert star.bytes_each_way == 100e6
    assert star.transfer_seconds == pytest.approx(0.8)
    assert star.exchange_seconds == pytest.approx(1.62)
    assert star.hiding_period(1) == 17  # 1.62 s are 16.2 steps
    assert star.hiding_period(10) == 80  # ten transfers of 0.8 s
    assert replace(star, bits=8).exchange_seconds == pytest.approx(0.42)


def test_speed_by_hand() -> None:
    """Ten steps take 1 s, then an exchange 1.6 s: 10 steps in 2.6 s; the link lets one exchange start every 0.8 s."""
    star = Star(25_000_000, 0.1, 1e9, period=10)
    assert star.steps_per_second(1) == pytest.approx(10 / 2.6)
    assert star.steps_per_second(3) == pytest.approx(30 / 2.6)
    assert star.steps_per_second(4) == star.steps_per_second(4000) == pytest.approx(10 / 0.8)
    assert star.saturated_from == 4  # 2.6 / 0.8 = 3.25
    assert star.speed_up(4) == pytest.approx(1.25)
    assert star.speed_up(4, overlap=True) == 4
    assert star.real_period(1, overlap=True) == 20  # 1.6 s are 16 steps: every second exchange is missed
    assert star.real_period(4, overlap=True) == 32  # four transfers take 3.2 s
    assert star.real_period(4) == 10
    assert star.bytes_per_step(4) == 20e6
    assert star.bytes_per_step(4, overlap=True) == 6.25e6


def test_what_fits_exactly_is_hidden() -> None:
    star = Star(25_000_000, 0.1, 1e9, period=16)
    assert star.hiding_period(2) == 16
    assert star.real_period(2, overlap=True) == 16
    assert star.real_period(3, overlap=True) == pytest.approx(24)
    assert replace(star, bandwidth=0.99e9).real_period(1, overlap=True) == 32


def test_a_ring_by_hand() -> None:
    """100 MB in 4 parts of 25 MB: three to add up, three to tell, 0.2 s each at 1 Gbit/s; ten steps take 1 s."""
    ring = Ring(25_000_000, 0.1, 1e9, latency=0.01)
    assert ring.sent_bytes(4) == 150e6
    assert ring.wait_seconds(4) == pytest.approx(6 * (0.2 + 0.01))
    assert ring.steps_per_second(4) == pytest.approx(40 / 2.26)
    assert ring.hiding_period(4) == 114  # 1.26 s are a tenth of 12.6 s, 11.34 of them steps
    assert ring.bytes_per_step(4) == 30e6
    assert (ring.wait_seconds(1), ring.sent_bytes(1), ring.speed_up(1), ring.hiding_period(1)) == (0, 0, 1, 1)
    assert replace(ring, latency=0).wait_seconds(10_000) == pytest.approx(1.6, rel=1e-3)  # two vectors, at most


def test_a_ring_is_as_fast_as_its_messages() -> None:
    """Each rank starts to send its part when the last one is there and its own link is free."""
    for p, latency in itertools.product((1, 2, 3, 8), (0.0, 0.003)):
        ring = Ring(1_000_000, 0.05, 1e8, latency, period=4)
        part = 32e6 / p / 1e8
        there = [0.0] * p
        for _ in range(2 * (p - 1)):
            sent = [time + part for time in there]
            there = [max(sent[rank], sent[rank - 1] + latency) for rank in range(p)]
        assert ring.wait_seconds(p) == pytest.approx(max(there))


# More of anything -----------------------------------------------------------------------------------------------

STARS = st.builds(
    Star,
    parameters=st.integers(1, 10**10),
    step_seconds=st.floats(0.01, 100),
    bandwidth=st.floats(1e7, 1e12),
    latency=st.floats(0, 1),
    period=st.integers(1, 1000),
)
WORKERS = st.integers(1, 5000)


@given(STARS, WORKERS, st.floats(1, 100))
def test_more_bandwidth_never_lowers_speed(star: Star, workers: int, times: float) -> None:
    more = replace(star, bandwidth=times * star.bandwidth)
    assert more.speed_up(workers) >= star.speed_up(workers) * (1 - 1e-12)
    assert more.hiding_period(workers) <= star.hiding_period(workers)
    assert more.real_period(workers, overlap=True) <= star.real_period(workers, overlap=True)


@given(STARS, WORKERS, st.integers(1, 100))
def test_longer_periods_and_more_workers_never_lower_speed(star: Star, workers: int, more: int) -> None:
    assert replace(star, period=star.period + more).speed_up(workers) >= star.speed_up(workers) * (1 - 1e-12)
    assert star.speed_up(workers + more) >= star.speed_up(workers) * (1 - 1e-12)
    assert star.hiding_period(workers + more) >= star.hiding_period(workers)


@given(STARS, WORKERS)
def test_speed_stays_within_its_limits(star: Star, workers: int) -> None:
    assert 0 < star.speed_up(workers) <= star.speed_up(workers, overlap=True) * (1 + 1e-9)
    assert star.speed_up(workers, overlap=True) == pytest.approx(workers)
    assert star.steps_per_second(workers) * star.transfer_seconds <= star.period * (1 + 1e-9)
    hiding = replace(star, period=star.hiding_period(workers))
    assert hiding.real_period(workers, overlap=True) == pytest.approx(hiding.period)
    if hiding.period > 1:
        shorter = replace(star, period=hiding.period - 1)
        assert shorter.real_period(workers, overlap=True) > shorter.period


@given(STARS)
def test_from_where_the_link_is_full_more_workers_bring_nothing(star: Star) -> None:
    full = star.saturated_from
    assert star.speed_up(full + 1) == pytest.approx(star.speed_up(full))
    if full > 1:
        assert star.speed_up(full - 1) < star.speed_up(full) * (1 + 1e-9)


# Event by event -------------------------------------------------------------------------------------------------


def simulated(star: Star, workers: int, *, overlap: bool, jitter: float = 0.0, exchanges: int = 60) -> tuple:
    """Steps a second and mean period of workers whose exchanges queue up, then down, at the center's link."""
    random = np.random.default_rng(0)
    horizon = exchanges * max(star.period * star.step_seconds + star.exchange_seconds, star.round_trip_seconds(workers))
    free = {"up": 0.0, "down": 0.0}
    steps, made, under_way = 0, 0, [False] * workers

    def computing() -> float:
        return star.step_seconds * float(np.sum(1 + jitter * random.uniform(-1, 1, star.period)))

    events = [(computing() * random.uniform(), number, "due", who) for number, who in enumerate(range(workers))]
    heapq.heapify(events)
    numbers = itertools.count(workers)

    def at(time: float, what: str, who: int) -> None:
        heapq.heappush(events, (time, next(numbers), what, who))

    while events:
        now, _, what, who = heapq.heappop(events)
        if now > horizon:
            break
        counts = now > horizon / 4
        if what == "due":
            steps += star.period if counts else 0
            if not under_way[who]:
                under_way[who] = True
                at(now + star.latency, "up", who)
            if overlap:
                at(now + computing(), "due", who)
        elif what in free:  # first come, first served
            free[what] = max(now, free[what]) + star.transfer_seconds
            at(free[what] + (star.latency if what == "down" else 0.0), "down" if what == "up" else "there", who)
        else:
            made += counts
            under_way[who] = False
            if not overlap:
                at(now + computing(), "due", who)
    return steps / (0.75 * horizon), steps / max(1, made)


GRID = list(itertools.product((1, 2, 5, 16), (1e7, 1e8, 1e9, 1e10), (0.0, 0.02), (1, 8, 30)))


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_speed_is_that_of_simulated_workers_that_wait(jitter: float) -> None:
    limited = 0
    for workers, bandwidth, latency, period in GRID:
        star = Star(2_000_000, 0.05, bandwidth, latency, period)
        speed, _ = simulated(star, workers, overlap=False, jitter=jitter)
        assert star.steps_per_second(workers) == pytest.approx(speed, rel=0.02 if jitter == 0 else 0.07), star
        limited += workers > star.saturated_from
    assert 20 < limited < len(GRID) - 20  # both sides of the border were tried


def test_period_and_speed_are_those_of_simulated_workers_that_overlap() -> None:
    longer = 0
    for workers, bandwidth, latency, period in GRID:
        star = Star(2_000_000, 0.05, bandwidth, latency, period)
        if star.hiding_period(workers) > 20 * period:
            continue  # a simulation long enough would take long
        speed, real = simulated(star, workers, overlap=True, exchanges=100)
        assert star.steps_per_second(workers, overlap=True) == pytest.approx(speed, rel=0.03), star
        assert star.real_period(workers, overlap=True) == pytest.approx(real, rel=0.03), (star, workers)
        longer += star.real_period(workers, overlap=True) > period
    assert longer > 5


# Stability ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "rule", "momentum"),
    [("easgd", EASGD(), 0.0), ("eamsgd", EAMSGD(), 0.9), ("downpour", Downpour(), 0.0), ("local-sgd", LocalSGD(), 0.0)],
)
def test_it_judges_as_the_library_does(method: str, rule, momentum: float) -> None:
    for lr, period in itertools.product((0.01, 0.3, 1.7), (1, 16)):
        advice = advice_on(**SETTING, method=method, lr=lr, curvature=1.0, period=period)
        setting = {"curvature": 1.0, "num_workers": 8, "communication_period": period, "momentum": momentum}
        assert advice.stability() == stability_of(rule, lr=lr, **setting)
        assert advice.is_stable == advice.row(8).is_stable == advice.stability().is_stable


def test_without_a_rate_or_a_curvature_nothing_is_judged_but_the_border_is_told() -> None:
    for known in ({}, {"lr": 0.1}, {"curvature": 3.0}):
        advice = advice_on(**SETTING, **known)
        assert advice.is_stable is None and advice.row(1).is_stable is None
        assert advice.stability().border == pytest.approx(1.989, abs=1e-3)
        assert "stable while lr * curvature < 1.98." in str(advice)
        assert f"Give {' and '.join(f'--{name}' for name in ('lr', 'curvature') if name not in known)} to" in str(
            advice
        )


def test_overlap_has_a_border_of_its_own() -> None:
    """A worker alone, whose correction comes a whole period late, is pulled by where it was."""
    alone = {**SETTING, "workers": 1, "period": 16, "lr": 0.1, "curvature": 1.0}
    advice = advice_on(**alone)
    assert advice.is_stable
    assert advice.overlap_border() == pytest.approx(0.02785, abs=1e-5)
    assert "With overlap it is sure to be stable only while lr * curvature < 0.0278." in str(advice)
    assert "With overlap it is sure" not in str(advice_on(**{**alone, "workers": 4}))
    assert advice_on(**SETTING, method="downpour").overlap_border() is None
    assert "With overlap its stability is not known" in str(advice_on(**SETTING, method="downpour"))


def test_ranks_that_exchange_at_once_are_judged_so() -> None:
    rules = {
        "easgd": EASGD(),
        "downpour": Downpour(),
        "lookahead": Lookahead(0.7),
        "diloco": DiLoCo(),
        "slowmo": SlowMo(0.5),
    }
    more = {"lookahead": {"outer_lr": 0.7}}
    for (method, rule), lr in itertools.product(rules.items(), (0.01, 0.3, 1.7)):
        advice = advice_on(**SETTING, **more.get(method, {}), method=method, center="replicated", lr=lr, curvature=1.0)
        assert advice.stability() == stability_of(rule, lr=lr, curvature=1.0, num_workers=8, synchronous=True)
        assert advice.overlap_border() is None and advice.row(8).overlap_speed_up is None
    alone = advice_on(**SETTING, method="diloco", lr=0.1, curvature=1.0)
    assert alone.is_stable is None and "use --center replicated" in str(alone)


# What is printed ------------------------------------------------------------------------------------------------


def plan(*words: str):
    base = ["plan", "--parameters", "25M", "--workers", "8", "--step-seconds", "0.1", "--bandwidth", "1G"]
    return CliRunner().invoke(cli.app, [*base, *words], prog_name="hooke")


def test_stable_is_0_and_unstable_is_1_with_the_remedy() -> None:
    good = plan("--lr", "0.1", "--curvature", "10")
    assert good.exit_code == 0
    assert good.output.startswith(
        "EASGD, 8 workers, period 10: stable. The learning rate could be 1.98 times as large."
    )
    bad = plan("--lr", "0.1", "--curvature", "10", "--method", "downpour")
    assert bad.exit_code == 1
    assert "DOWNPOUR, 8 workers, period 10: NOT STABLE. Lower lr below 0.00231, or use EASGD" in bad.output
    assert plan().exit_code == 0
    assert plan("--lr", "1", "--curvature", "3", "--method", "eamsgd", "--momentum", "0.99").exit_code == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_table_fits_and_lists_thousands_of_workers(method: str) -> None:
    said = plan("--method", method, "--workers", "777", "--batch", "128", "--latency", "0.05", "--bandwidth", "3M")
    assert max(map(len, said.output.splitlines())) <= WIDTH
    lines = said.output.split("\n---")[1].splitlines()[1:]
    assert "waits" not in said.output
    workers = [int(line.split()[0]) for line in lines if line.strip() and line.split()[0].isdigit()]
    assert workers == sorted([*(2**k for k in range(13)), 777])
    assert sum("777 *" in line for line in lines) == 1


def test_the_table_of_a_ring_has_no_overlap() -> None:
    said = plan("--center", "replicated", "--workers", "4", "--latency", "0.01", "--batch", "10")
    assert "overlap" not in said.output
    (row,) = [line for line in said.output.splitlines() if line.lstrip().startswith("4 *")]
    assert row.split()[-1] == "114"
    assert "150 MB up, 150 MB down, 1.26 s." in said.output
    told = json.loads(plan("--center", "replicated", "--json").output)
    assert told["saturated_from"] is None
    assert [one["values"] for one in told["exchange"] if one["is_there"]] == ["float32"]


def test_the_period_that_hides_an_exchange_is_told_for_each_codec() -> None:
    said = " ".join(plan().output.split())
    assert "With overlap it is hidden from period 64 on" in said
    codecs = "bfloat16 0.8 s, period 32; int8 0.406 s, period 17; int4 0.206 s, period 9."
    assert f"A remote center's codec makes that: {codecs}" in said


def test_bits_of_a_value_are_what_the_codecs_send() -> None:
    blocks = 1000 * SCALED
    assert {name: 8 * codec.size(blocks) / blocks for name, codec in CODECS.items()} == WIDTHS
    assert list(WIDTHS) == list(CODECS)


def test_json_says_the_same_in_plain_numbers() -> None:
    said = json.loads(plan("--json", "--lr", "0.1", "--curvature", "10", "--batch", "32").output)
    assert said["setting"]["parameters"] == 25_000_000 and said["setting"]["method"] == "easgd"
    assert said["stability"]["is_stable"] is True and said["stability"]["margin"] == pytest.approx(1.989, abs=1e-3)
    assert [one["values"] for one in said["exchange"] if one["is_there"]] == ["float32", "bfloat16", "int8", "int4"]
    assert [one["hiding_period"] for one in said["exchange"]] == [64, 32, 17, 9]
    row = next(row for row in said["rows"] if row["workers"] == 8)
    assert row["examples_per_second"] == pytest.approx(32 * 12.5)
    assert row["bytes_per_example"] == pytest.approx(20e6 / 32)
    assert said["saturated_from"] == 4


def test_a_picture_has_two_panels(tmp_path: Path) -> None:
    target = tmp_path / "plan.png"
    assert plan("--picture", str(target), "--lr", "0.1", "--curvature", "1").exit_code == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert len(advice_on(**SETTING, center="replicated").picture().axes[0].lines) == 2
    figure = advice_on(**SETTING, lr=0.1, curvature=1.0).picture()
    speed, border = figure.axes
    assert speed.get_ylabel() == "speed-up over one worker alone"
    (mark,) = [line for line in border.lines if line.get_label() == "learning rate given"]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (10, 0.1)


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = plan("--picture", str(tmp_path / "plan.png"))
    assert said.exit_code == 2 and "hooke[report]" in said.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--parameters", "many"], "--parameters must be a count above 0. Got many. Use e.g. 25M, 1.2B or 857336."),
        (["--parameters", "0"], "--parameters must be a count above 0. Got 0."),
        (["--parameters", "0.5"], "--parameters must be a count above 0. Got 0.5."),
        (["--parameters", "1e400"], "--parameters must be a count above 0. Got 1e400."),
        (
            ["--bandwidth", "10MB"],
            "--bandwidth must be in bit/s, above 0. Got 10MB. Use e.g. 100M, 1G or 10Mbit (1 byt",
        ),
        (["--bandwidth", "0"], "--bandwidth must be in bit/s, above 0. Got 0."),
        (["--workers", "0"], "--workers must be 1 or more. Got 0. Use e.g. 10."),
        (["--period", "0"], "--period must be 1 or more. Got 0. Use e.g. 10."),
        (["--batch", "0"], "--batch must be 1 or more. Got 0. Use e.g. 64."),
        (["--step-seconds", "0"], "--step-seconds must be above 0 and finite. Got 0.0. Use e.g. 0.1."),
        (["--step-seconds", "nan"], "--step-seconds must be above 0 and finite. Got nan. Use e.g. 0.1."),
        (["--latency", "-1"], "--latency must be 0 or more seconds, and finite. Got -1.0. Use e.g. 0.01."),
        (["--lr", "-0.1"], "--lr must be above 0 and finite. Got -0.1. Use e.g. 0.1."),
        (["--curvature", "inf"], "--curvature must be above 0 and finite. Got inf. Use e.g. 0.1."),
        (
            ["--method", "adam"],
            "--method must be one of easgd, eamsgd, downpour, local-sgd, lookahead, slowmo, diloco. Got adam. Use e.g.",
        ),
        (["--center", "ring"], "--center must be one of star, replicated. Got ring. Use e.g. star."),
        (["--outer-lr", "1"], "--outer-lr needs --method lookahead, slowmo or diloco. Got easgd. Drop it, or use one"),
        (["--method", "lookahead", "--outer-momentum", "0"], "needs --method slowmo or diloco. Got lookahead. Drop it"),
        (["--method", "diloco", "--outer-momentum", "1"], "--outer-momentum must be in [0, 1). Got 1.0. Use e.g. 0.9."),
        (["--momentum", "0.9"], "--momentum needs --method eamsgd. Got easgd. Drop it, or use eamsgd."),
        (["--method", "eamsgd", "--momentum", "1"], "--momentum must be in [0, 1). Got 1.0. Use e.g. 0.9."),
        (["--beta", "3"], "--beta must be in (0, 2]. Got 3.0. Use e.g. 0.9."),
        (["--method", "downpour", "--beta", "1"], "--beta needs --method easgd or eamsgd. Got downpour. Drop it, or"),
        (["--picture", "nowhere/plan.png"], "No such file or directory"),
    ],
)
def test_what_can_not_be_planned_is_one_sentence(words: list[str], sentence: str) -> None:
    said = plan(*words)
    assert said.exit_code == 2
    assert said.output.startswith("hooke plan: ") and said.output.count("\n") == 1
    assert sentence in said.output


def test_counts_and_bandwidths_are_read_as_people_write_them() -> None:
    for text, count in {"25M": 25e6, "1.2B": 1.2e9, "857_336": 857336, "3k": 3000, "7g": 7e9, "2e6": 2e6}.items():
        assert parse_count(text) == count
    for text, bits in {"100M": 1e8, "1G": 1e9, "10Mbit": 1e7, "2.5Gbit/s": 2.5e9, "56kbps": 56e3, "1000": 1e3}.items():
        assert parse_bandwidth(text) == bits
    for text in ("", "G", "1.2.3M", "10MB/s", "-5M", "fast"):
        with pytest.raises(PlanError, match=re.escape(f"Got {text}.")):
            parse_bandwidth(text)


def test_numbers_are_told_in_three_digits() -> None:
    assert [spell(value, "B") for value in (999, 999.9, 1e6, 12_345)] == ["999 B", "1 kB", "1 MB", "12.3 kB"]
    assert spell(1e15) == "1e+03T"
    assert [spell_seconds(value) for value in (0.0005, 0.25, 86_400)] == ["0.5 ms", "0.25 s", "86,400 s"]


def test_it_answers_without_torch() -> None:
    """`tests/test_imports.py` shows that the module loads none; neither does making and printing advice."""
    import subprocess

    code = (
        "import sys; from hooke.plan import advice_on\n"
        "print(len(str(advice_on(parameters=9, workers=2, step_seconds=1, bandwidth=1e6, lr=1, curvature=9))) > 0)\n"
        "print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert said.stdout == "True\nFalse\n"
