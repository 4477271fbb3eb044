"""A paper that is quick to run: springs. It writes down each trial's start and end where SPRING_LOG says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hooke.claim import NOT_REPRODUCED, REPRODUCED, Claim, Picture, Source, Table, Verdict, mean_interval, within

SOURCE = Source("Of <Spring>", "Robert Hooke", 1678, "https://example.org/spring", "As the extension, so the force.")
DEPARTURES = ("The ruler is simulated.", "No watch was built.")
FULL = {"forces": [1.0, 2.0, 4.0], "seeds": 4, "slow": 0.0}
SMOKE = {"forces": [1.0, 2.0], "seeds": 2, "slow": 0.0}


def log(line: str) -> None:
    if "SPRING_LOG" in os.environ:
        with Path(os.environ["SPRING_LOG"]).open("a") as file:
            file.write(line + "\n")


def stretch(force: float, seed: int, slow: float) -> dict[str, Any]:
    log(f"start {force} {seed}")
    time.sleep(slow)
    log(f"end {force} {seed}")
    return {"length": 2 * force + 0.01 * (seed - 1.5), "ruler": float("inf")}


def hang(mass: float) -> dict[str, Any]:
    if mass > 1:
        raise RuntimeError(f"the spring broke under [bold]{mass}[/bold]")
    return {"period": 6.28 * mass**0.5}


def run(settings: dict[str, Any], record: Any) -> None:
    slow = float(os.environ.get("SPRING_SLOW", settings["slow"]))
    forces, seeds = settings["forces"], range(settings["seeds"])
    record.study(
        "stretch", stretch, [{"force": force, "seed": seed, "slow": slow} for force in forces for seed in seeds]
    )
    record.study("hang", hang, [{"mass": mass} for mass in (0.25, 1.0)])


def proportional(table: Table) -> Verdict:
    rows = table.where(study="stretch")
    ratios = [length / force for length, force in zip(rows.column("length"), rows.column("force"), strict=True)]
    found = mean_interval(ratios)
    word = REPRODUCED if found.low <= 2 <= found.high else NOT_REPRODUCED
    return Verdict(word, f"{found.mean:.3f}", "2", found.interval, seeds=len(rows.groups("seed")))


claims = (
    Claim("Ut tensio, sic vis: length is to force as 2 to 1.", "page 1", proportional),
    Claim(
        "A mass of 1 takes 6.28 s.",
        "page 4",
        lambda t: within(t.where(study="hang", mass=1.0).one("period"), 6.28, 0.01),
    ),
    Claim(
        "A quarter of it takes 6.28 s, too.", "page 5", lambda t: within(t.where(mass=0.25).one("period"), 6.28, 0.01)
    ),
)


def draw(table: Table, figure: Any) -> None:
    axes = figure.add_subplot()
    for (seed,), rows in table.where(study="stretch").groups("seed").items():
        axes.plot(rows.column("force"), rows.column("length"), "o-", label=f"seed {seed}")
    axes.set(xlabel="force", ylabel="length")
    axes.legend()


def draw_sea(table: Table, figure: Any) -> None:
    figure.add_subplot().plot(table.where(study="sea").column("drift"))


PICTURES = (
    Picture('Length follows "force"', "One line a seed.", draw),
    Picture("A watch at sea", "Drift by the day.", draw_sea),
)
