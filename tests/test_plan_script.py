"""`hooke plan SCRIPT`: what a script's first steps tell, what wins over it, and scripts that tell nothing."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hooke import cli
from hooke.launch.evidence import cores
from hooke.plan import Copy, Measured, PlanError, measure, measurement
from hooke.plan.script import NAMES, advise
from hooke.plan.table import WIDTH
from hooke.stability import stability_of

ROOT = Path(__file__).parents[1]

TRAIN = """
import sys, torch, hooke
from hooke.rehearsal import rehearsal
rehearsal.TIMED_SECONDS = 0.1
h, lr, steps = torch.tensor([1.0, 12.5]), float(sys.argv[1]), int(sys.argv[2])
model = torch.nn.Linear(2, 1, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
with hooke.Worker(model, optimizer, hooke.EASGD(beta=0.8), communication_period=4) as worker:
    for _ in range(steps):
        optimizer.zero_grad()
        (h * model.weight.square()).sum().div(2).backward()
        optimizer.step()
        worker.record(examples=32)
    print("trained to the end")
"""

COPY: dict[str, Any] = {
    "parameters": 1000,
    "rule": "EASGD",
    "rule_settings": {"beta": 0.9, "moving_rate": None, "order": "jacobi"},
    "period": 10,
    "by_halves": False,
    "synchronous": False,
    "overlap": False,
    "steps": 60,
    "timed_steps": 40,
    "step_seconds": 0.01,
    "exchanges": 5,
    "exchange_seconds": 0.02,
    "batch": 32.0,
    "device": "cpu",
    "threads": 2,
    "optimizer": "SGD",
    "lr": 0.1,
    "lr_changes": False,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "curvatures": [[2.0, 3.0, 9.0], [1.0, 5.0, 6.0]],
    "curvature_doubt": 0.0005,
    "curvature_failure": None,
}

# A script without torch, which writes at once what a worker would.
TELLS = """
import json, os, sys, time
run = json.loads(os.environ["HOOKE_RUN"])
told = json.loads(sys.argv[1])
with open(f"{run['directory']}/workers/{run['worker']}.rehearsal.json", "w") as file:
    json.dump(told, file)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def plan(*words: str):
    return CliRunner().invoke(cli.app, ["plan", *words], prog_name="hooke")


def measured(together: int = 0, **changes: Any) -> Measured:
    copy = Copy(**{**COPY, **changes})
    return Measured("train.py", copy, (replace(copy, step_seconds=0.015, threads=1),) * together)


# A period by measurement ----------------------------------------------------------------------------------------


def test_a_script_that_measures_its_period_is_planned_with_the_one_that_it_would_come_to() -> None:
    known = {"parameters": 25_000_000, "bandwidth": 1e9, "step_seconds": 0.1}
    made = advise(measured(automatic=True), 1, known)
    assert made.network.hiding_period(1) == 16 and made.network.period == 18
    assert "EASGD, period auto, SGD" in " ".join(str(made).split())
    assert advise(measured(automatic=True), 1, {**known, "period": 7}).network.period == 7
    assert advise(measured(), 1, known).network.period == 10


# A real script --------------------------------------------------------------------------------------------------


def test_a_script_is_measured_and_stopped(folder: Path) -> None:
    (folder / "train.py").write_text(TRAIN)
    before = sorted(folder.iterdir())
    said = plan("--json", "--workers", "2", "--bandwidth", "100M", "train.py", "0.001", "1000000")
    assert said.exit_code == 0 and "trained to the end" not in said.output
    told = json.loads(said.stdout)
    assert "hooke plan: train.py, one process: waiting for the first step, at most 60 s\n" in said.stderr
    assert "hooke plan: train.py, one process: first step after " in said.stderr
    setting = {"workers": 2, "method": "easgd", "lr": 0.001, "batch": 32.0, "beta": 0.8, "bandwidth": 1e8, "period": 4}
    assert {name: told["setting"][name] for name in setting} == setting
    assert told["setting"]["curvature"] == pytest.approx(12.5, rel=1e-3)
    assert told["setting"]["step_seconds"] == told["measured"]["alone"]["step_seconds"] > 0
    assert len(told["measured"]["together"]) == (2 if cores() >= 2 else 0)
    here = told["measured"]["here"]
    assert [row["workers"] for row in here] == ([1, 2] if cores() >= 2 else [1])
    assert all(row["examples_per_second"] > 0 for row in here)
    assert sorted(folder.iterdir()) == before


# What is made of it ---------------------------------------------------------------------------------------------


def test_the_curvature_is_the_larger_median() -> None:
    assert measured().curvature == 5.0
    assert measured(curvatures=[[2.0, 3.0, 9.0]]).curvature == 3.0
    assert measured(curvatures=[]).curvature is None


def test_speed_on_this_machine_by_hand() -> None:
    """32 examples in 10 ms and a tenth of 20 ms; two at once in 15 ms each and as much."""
    assert measured().examples_per_second(1, 10) == pytest.approx(32 / 0.012)
    assert measured(2).examples_per_second(2, 10) == pytest.approx(2 * 32 / 0.017)
    assert measured(2).examples_per_second(2, 1) == pytest.approx(2 * 32 / 0.035)
    assert measured(2).examples_per_second(3, 10) is None
    assert measured(batch=None, exchange_seconds=None).examples_per_second(1, 10) == pytest.approx(100)


def test_what_is_given_wins() -> None:
    known = {"lr": 0.3, "curvature": 7.0, "period": 99, "parameters": 5, "step_seconds": 1.0, "batch": 3, "beta": 0.5}
    made = advise(measured(), 4, known)
    assert (made.lr, made.curvature, made.batch, made.beta) == (0.3, 7.0, 3, 0.5)
    assert (made.network.period, made.network.parameters, made.network.step_seconds) == (99, 5, 1.0)
    fixed = {"beta": None, "moving_rate": 0.4, "order": "gauss-seidel"}
    assert advise(measured(rule_settings=fixed), 4, known).moving_rate is None
    other = advise(measured(), 4, {"method": "downpour", "curvature": 0.1})
    assert other.method == "downpour" and other.is_stable is True


def test_each_rule_is_judged_as_it_is() -> None:
    from hooke.outer import DiLoCo, Lookahead, SlowMo
    from hooke.rule import EAMSGD, EASGD, Downpour, LocalSGD, Rule

    rules: list[Rule] = [EASGD(beta=0.7), EASGD(moving_rate=0.4, order="gauss-seidel"), EAMSGD(), Downpour()]
    rules += [LocalSGD(), Lookahead(0.7), DiLoCo(1.9, 0.8), SlowMo(0.3, 2.0)]
    seen = set()
    for rule in rules:
        name, synchronous = type(rule).__name__, isinstance(rule, DiLoCo | SlowMo | LocalSGD)
        momentum = 0.9 if isinstance(rule, EAMSGD) else 0.0
        told = {"rule": name, "rule_settings": vars(rule), "synchronous": synchronous, "momentum": momentum}
        for lr in (0.02, 0.25):
            made = advise(measured(**told, lr=lr), 3, {})
            setting = {"lr": lr, "curvature": 5.0, "num_workers": 3, "synchronous": synchronous, "momentum": momentum}
            assert made.stability() == stability_of(rule, **setting), rule
            seen.add((made.method, made.is_stable))
    assert {name for name, _ in seen} == set(NAMES.values())
    assert {stable for _, stable in seen} == {True, False}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": "AdamW"}, "Borders of stability are known for SGD, and not for AdamW."),
        ({"momentum": 0.9}, "With momentum the border is known for EAMSGD, and not for EASGD."),
        ({"by_halves": True}, "No border is known for separate periods or pull='every_step'."),
        ({"rule": "MDownpour", "rule_settings": {"momentum": 0.9}}, "No border of stability is known for MDownpour:"),
        (
            {"rule": "DiLoCo", "rule_settings": {"outer_lr": 0.7, "outer_momentum": 0.9}},
            "The stability of DiLoCo is known where all exchange at once: use --center replicated.",
        ),
    ],
)
def test_what_has_no_border_is_not_judged_but_timed(changes: dict[str, Any], sentence: str) -> None:
    made = advise(measured(**changes), 4, {"lr": 100.0})
    assert made.is_stable is None and made.row(4).border is None and made.row(4).speed_up > 0
    assert f"not judged. {sentence}" in " ".join(str(made).split())
    assert made.to_dict()["stability"]["unjudged"].startswith(sentence)
    assert made.picture().axes[1].texts[0].get_text().replace("\n", " ").startswith(sentence)
    with pytest.raises(ValueError, match="stability needs a method with a known border"):
        made.stability()


def test_the_text_says_what_was_measured() -> None:
    text = str(advise(measured(2), 2, {}))
    assert max(map(len, text.splitlines())) <= WIDTH
    words = " ".join(text.split())
    assert "train.py, 60 steps on this machine: EASGD, period 10, SGD with lr 0.1, 1,000 values on cpu." in words
    assert "Here 1 worker, 2 threads each: a step 10 ms, an exchange 20 ms; 2.67k examples/s." in words
    assert "Here 2 workers, 1 thread each: a step 15 ms, an exchange 20 ms; 3.76k examples/s." in words
    assert "Curvature 5 in the middle of single batches (1 to 9); it changes while a run learns." in words
    assert "One exchange over links of 1 Gbit/s: 4 kB up, 4 kB down, 0.064 ms." in words
    unsure = str(advise(measured(curvature_doubt=0.2, lr_changes=True, momentum=0.9, rule="EAMSGD"), 1, {}))
    assert "Curvature 5, give or take 20%, in the middle" in " ".join(unsure.split())
    assert "SGD with lr 0.1 and changing: give the largest by --lr, momentum 0.9, 1,000 values" in " ".join(
        unsure.split()
    )


def test_without_a_curvature_the_border_is_told() -> None:
    made = advise(measured(curvatures=[], curvature_failure="it has a kink"), 2, {})
    words = " ".join(str(made).split())
    assert "The curvature could not be measured: it has a kink. Give it by --curvature." in words
    assert "stable while lr * curvature <" in words and "Give --curvature to have it judged." in words
    given = advise(measured(curvatures=[]), 2, {"curvature": 1.0})
    assert given.is_stable is True and "urvature" not in str(given).split("EASGD, 2 workers")[0]
    assert "Give --lr to have it judged." in str(advise(measured(lr=0.0), 2, {}))


def test_ranks_that_exchange_at_once() -> None:
    made = advise(measured(synchronous=True, rule="LocalSGD", rule_settings={}), 4, {"bandwidth": 1e6})
    assert made.at_once and made.is_stable is True
    words = " ".join(str(made).split())
    assert "6 kB up, 6 kB down, 48 ms." in words  # 2 * 3/4 of 4 kB
    assert "All ranks wait for it: less than a tenth of their time from period 44 on." in words
    assert "overlap" not in words
    assert "One rank alone exchanges with nobody." in str(advise(measured(synchronous=True), 1, {}))


# Scripts that tell nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("", "SCRIPT must train inside `with hooke.Worker(model, optimizer, rule)`. Got train.py, which ended without"),
        (
            "print('so far'); raise KeyError('images')",
            "SCRIPT must run for its first steps. Got train.py, which ended with exit code 1; its last line: "
            "KeyError: 'images'. Repair it: python train.py shows more.",
        ),
        ("import os; os.kill(os.getpid(), 9)", "Got train.py, which was killed by SIGKILL; its last line: nothing."),
        (
            TELLS.replace("told =", "told = {**json.loads(sys.argv[1]), 'timed_steps': 2, 'steps': 9}; _ ="),
            "SCRIPT must take more steps, so that some can be timed. Got train.py, which ended after 9. Let it take 50",
        ),
    ],
)
def test_a_script_that_can_not_be_measured_is_one_sentence(folder: Path, script: str, sentence: str) -> None:
    (folder / "train.py").write_text(script)
    said = plan("train.py", json.dumps(COPY))
    assert said.exit_code == 2 and said.stdout == ""
    progress, last = said.stderr.splitlines()[:-1], said.stderr.splitlines()[-1]
    assert last.startswith("hooke plan: ") and sentence in last
    assert all(line.startswith("hooke plan: train.py, one process: ") for line in progress) and len(progress) <= 2


LOOPS = "import time\nprint('loading images', flush=True)\nwhile True: time.sleep(0.05)"


def test_a_script_without_a_worker_is_waited_for_no_longer_than_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "SAY_SECONDS", 1.5)
    (folder / "train.py").write_text(LOOPS)
    said = plan("--wait", "4", "train.py")
    assert said.exit_code == 2 and said.stdout == ""
    assert said.stderr.splitlines()[-1] == (
        "hooke plan: SCRIPT must take its first step inside `with hooke.Worker(model, optimizer, rule)` within 4 "
        "seconds. Got train.py, which has not; its last line: loading images. Put its loop there, or wait longer: "
        "--wait 40."
    )
    assert "hooke plan: train.py, one process: no step after 3 s; its last line: loading images\n" in said.stderr


@pytest.mark.parametrize("wait", ["0", "-1", "nan", "inf"])
def test_a_wait_is_a_time(folder: Path, wait: str) -> None:
    (folder / "train.py").write_text("open('ran', 'w')")
    said = plan("--wait", wait, "train.py")
    assert said.exit_code == 2 and "--wait must be above 0 and finite. Got" in said.stderr
    assert not (folder / "ran").exists()


def test_a_wait_needs_a_script() -> None:
    said = plan(*["--wait", "5", "--parameters", "5", "--workers", "2", "--step-seconds", "1", "--bandwidth", "1G"])
    assert said.exit_code == 2 and "--wait must stand before a SCRIPT. Got none." in said.stderr


def test_one_process_that_fails_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "END_SECONDS", 0.1)
    fails = "import json, os, sys\nif json.loads(os.environ['HOOKE_RUN'])['worker']: sys.exit('too little memory')\n"
    (folder / "train.py").write_text(fails + TELLS + "time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(PlanError, match=r"ended with exit code 1; its last line: too little memory\. Repair"):
        measure("train.py", [json.dumps(COPY)], workers=2)
    assert time.monotonic() - began < 40


def test_a_curvature_that_is_given_is_not_measured(folder: Path) -> None:
    (folder / "train.py").write_text(TELLS.replace("told", "assert run['curvature'] is (sys.argv[2] != 'no'); told", 1))
    assert plan("--workers", "1", "train.py", json.dumps(COPY), "yes").exit_code in (0, 1)
    assert plan("--workers", "1", "--curvature", "1", "train.py", json.dumps(COPY), "no").exit_code == 0
    assert plan("--workers", "1", "--curvature", "1", "train.py", json.dumps(COPY), "yes").exit_code == 2


RANKS = """
import os, time
import torch
import torch.distributed as dist
import hooke

torch.set_num_threads(1)
dist.init_process_group("gloo")
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
with hooke.Worker(
    model, optimizer, hooke.LocalSGD(), center=hooke.ReplicatedCenter(), communication_period=7
) as worker:
    while True:
        time.sleep(0.001 * (1 + 4 * dist.get_rank()) * (worker.steps % 3))
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
"""


def test_ranks_that_exchange_at_once_end_after_the_same_step(folder: Path) -> None:
    (folder / "train.py").write_text(RANKS)
    made = measure("train.py", workers=2, curvature=False)
    slow, fast = sorted(made.together, key=lambda copy: copy.step_seconds or 0, reverse=True)
    assert slow.steps == fast.steps and slow.exchanges == fast.exchanges >= 5


def test_a_script_that_does_not_stop_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "END_SECONDS", 0.1)
    (folder / "train.py").write_text(TELLS + "time.sleep(60)")
    made = measure("train.py", [json.dumps(COPY)])
    assert made.alone == Copy(**COPY) and made.together == ()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian.py"], "SCRIPT must be a Python file. Got trian.py: no such file."),
        ([], "without a SCRIPT these must be given: --parameters, --workers, --step-seconds, --bandwidth. Got none."),
        (["--parameters", "5"], "must be given: --workers, --step-seconds, --bandwidth. Got none. Give them, or a"),
        (["--lr", "-1", "train.py"], "--lr must be above 0 and finite. Got -1.0. Use e.g. 0.1."),
        (["--workers", "0", "train.py"], "--workers must be 1 or more. Got 0."),
        (["--method", "adam", "train.py"], "--method must be one of easgd, eamsgd, downpour, local-sgd, lookahead, sl"),
        (["--center", "moon", "train.py"], "--center must be one of star, replicated. Got moon. Use e.g. star."),
    ],
)
def test_what_is_given_is_checked_before_anything_runs(folder: Path, words: list[str], sentence: str) -> None:
    (folder / "train.py").write_text("open('ran', 'w')")
    said = plan(*(words or ["--json"]))
    assert said.exit_code == 2 and sentence in said.stderr and not (folder / "ran").exists()


def test_options_of_the_script_stand_after_it(folder: Path) -> None:
    said = plan("--epochs", "3", "train.py")
    assert said.exit_code == 2
    assert "Options of the script stand after it: hooke plan train.py --lr 0.1" in " ".join(said.stderr.split())
