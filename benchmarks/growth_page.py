"""docs/growth.md and its picture, from the record of `growth.py`. Called by page.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import growth

from hooke.plan import Star
from hooke.simulate import Tree

Row = dict[str, Any]

INTRODUCTION = """# What growth costs

Made by `python benchmarks/page.py` from `benchmarks/results/growth.jsonl`; no number here is typed by hand. Nothing on
this page was trained: `hooke.simulate` moves workers on a virtual clock, and a noisy quadratic stands for the loss.
"""

SETTING = """
## The setting

Workers with {values:,} parameters and {step:g} s a step (each step's time varies by {jitter:.0%}) run EASGD with
beta = {beta:g} and period {period}, around

- a **star**: one center; workers wait for their exchanges,
- a **star, overlap**: the same, but workers step on, and the period is the smallest one, from {period} up, whose
  exchanges stay hidden behind the steps,
- **8 or 64 shards**: the center's vector cut over so many machines; workers wait,
- a **tree** of centers of degree 16 (EASGD Tree), in which nobody waits. Multi-scale: leaves and their parents send to
  each other every 10 steps, the nodes above every 100. Up/down: every node sends up every 8 steps, down every 80.

The **load** is the busy share of the busiest link. The **age** is that of what the center knows: every message moves
it by the moving rate toward the age of what it brings. The **time to an error** is how long it takes until the center's
loss is {error:g} above the minimum, from {start:g}, at the learning rate, up to 1, that would be best for this number
of workers if they never differed. The bowl has {directions} curvatures from {low:g} to {high:g} and gradient noise of
{sigma:g} in each direction. One worker alone takes {alone:,.0f} s.
"""


def growth_page(rows: list[Row]) -> str:
    """The whole text of docs/growth.md."""
    made = {(row["layout"], row["workers"], row["link"]): row for row in rows if row["section"] == "growth"}
    h = growth.CURVATURES
    text = INTRODUCTION + SETTING.format(
        values=growth.VALUES, step=growth.STEP, jitter=growth.JITTER, beta=growth.BETA, period=growth.PERIOD,
        error=growth.ERROR, start=growth.START, directions=len(h), low=h[0], high=h[-1], sigma=growth.SIGMA,
        alone=made["alone", 1, float("inf")]["seconds_to_error"],
    )  # fmt: skip
    text += "\n![Load, age, speed-up and time to an error against the number of workers](growth.svg)\n"
    text += "\n## What it says\n\n" + says(made) + "\n"
    for link in growth.LINKS:
        text += f"\n## Links of {link / 1e9:g} Gbit/s\n\n{link_table(made, link)}"
    return text + speed(rows) + source(rows)


def cell(row: Row | None) -> str:
    """Speed-up, age and time, of one layout."""
    if row is None:
        return ""
    seconds = row["seconds_to_error"]
    reached = f"**{seconds:,.0f} s**" if seconds is not None else "**not reached**"
    return f"{reached}, x {row['speed_up']:,.0f}, {row['age']:,.0f} s, {min(1, row['load']):.0%}"


def link_table(made: dict[tuple, Row], link: float) -> str:
    """Workers down, layouts across."""
    lines = [["workers", *growth.LAYOUTS], ["---"] * (1 + len(growth.LAYOUTS))]
    for workers in growth.WORKERS:
        lines.append([f"{workers:,}", *(cell(made.get((name, workers, link))) for name in growth.LAYOUTS)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**Time to the error**, speed-up in steps a second, age, load.\n\n{table}\n"


def speed(rows: list[Row]) -> str:
    """How fast the simulator itself is."""
    found = [row for row in rows if row["section"] == "speed"]
    if not found:
        return ""
    row = found[-1]
    return (
        f"\n## The simulator\n\n{row['exchanges']:,} exchanges of {row['workers']:,} workers take "
        f"{row['timeline']:.0f} s of one core ({row['cpu']}), and {row['with numbers']:.0f} s with the numbers of the "
        f"bowl. By the clock it was {row['timeline, by the clock']:.0f} and {row['with numbers, by the clock']:.0f} s; "
        f"the machine's load was {row['load']:.1f} before (0: nothing else ran). `python benchmarks/growth.py --speed` "
        "measures it.\n"
    )


def source(rows: list[Row]) -> str:
    """Where the numbers come from."""
    row = [each for each in rows if each["section"] == "growth"][-1]
    return (
        f"\n`python benchmarks/growth.py` in virtual time: hooke {row['commit'][:10]}"
        f"{' with changes' * row['commit'].endswith('+changes')}, {row['at'][:10]}. The tree is written after S. "
        "Zhang's thesis (arXiv 1605.02216) from memory and its abstract: its chapter could not be read.\n"
    )


def says(made: dict[tuple, Row]) -> str:
    """What the figures say, with the numbers."""
    slow, fast = growth.LINKS
    most, many, few = growth.WORKERS[-1], 256, 16

    def time(name: str, workers: int, link: float) -> str:
        seconds = made[name, workers, link]["seconds_to_error"]
        return f"longer than {growth.MOST:,} messages" if seconds is None else f"{seconds:,.0f} s"

    def age(name: str, workers: int, link: float) -> str:
        return f"{made[name, workers, link]['age']:,.0f} s"

    def speed_up(name: str) -> str:
        return f"{made[name, most, slow]['speed_up']:,.4g}"

    full = Star(growth.VALUES, growth.STEP, slow, period=growth.PERIOD).saturated_from
    alike = [made[name, few, fast]["seconds_to_error"] for name in growth.LAYOUTS]
    return (
        f"- **A center whose workers wait is full early.** At {slow / 1e9:g} Gbit/s its link is busy all the time from "
        f"{full} workers on: {most:,} of them step {speed_up('star')} times as fast as one. More then do harm, for "
        f"each pulls less at the center and comes by less often: {few} workers take {time('star', few, slow)} to the "
        f"error, {most:,} take {time('star', most, slow)}. Shards move the border out by their number, to "
        f"{speed_up('8 shards')} times with 8 and {speed_up('64 shards')} with 64.\n"
        "- **Overlap costs no machine.** With steps that go on and a period that hides the exchanges, the same star "
        f"with {many} workers takes {time('star, overlap', many, slow)} instead of {time('star', many, slow)}. What "
        f"its center knows is {age('star, overlap', many, slow)} old, which this bowl forgives; with {most:,} workers "
        f"it is {age('star, overlap', most, slow)} old, and they take {time('star, overlap', most, slow)}.\n"
        f"- **Past that, shards and trees help.** {most:,} workers at {slow / 1e9:g} Gbit/s take "
        f"{time('64 shards', most, slow)} around 64 shards, and {time('tree, up/down', most, slow)} in an up/down tree "
        f"of {sum(Tree(most).sizes) - most} more machines, where no link serves more than {Tree(most).degree + 1} "
        f"neighbors. A multi-scale tree takes {time('tree, multi-scale', most, slow)}: what its root knows is "
        f"{age('tree, multi-scale', most, slow)} old, against {age('tree, up/down', most, slow)}.\n"
        f"- **Where neither helps.** While the star's link has room they save nothing: {few} workers at "
        f"{fast / 1e9:g} Gbit/s take {min(alike):,.0f} to {max(alike):,.0f} s in all six layouts. And where shards "
        f"have room, the levels of a tree only add age: {most:,} workers at {fast / 1e9:g} Gbit/s take "
        f"{time('64 shards', most, fast)} around 64 shards, {time('tree, up/down', most, fast)} in an up/down tree.\n"
    )


COLORS = {
    "star": "#c2410c", "star, overlap": "#2563eb", "8 shards": "#a16207", "64 shards": "#15803d",
    "tree, multi-scale": "#7c3aed", "tree, up/down": "#db2777",
}  # fmt: skip
PANELS = {
    "load": "load of the busiest link", "age": "age of the center (s)", "speed_up": "speed-up, steps a second",
    "seconds_to_error": "seconds to the error",
}  # fmt: skip


def growth_picture(rows: list[Row], path: Path) -> None:
    """A row of panels for each link."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "hooke", "svg.fonttype": "path", "font.size": 9})
    made = [row for row in rows if row["section"] == "growth"]
    figure, grid = plt.subplots(len(growth.LINKS), 4, figsize=(13, 6), layout="constrained", sharex=True)
    for across, link in zip(grid, growth.LINKS, strict=True):
        for axes, (what, title) in zip(across, PANELS.items(), strict=True):
            for name in growth.LAYOUTS:
                mine = [row for row in made if (row["layout"], row["link"]) == (name, link) and row[what] is not None]
                points = sorted((row["workers"], row[what]) for row in mine)
                dashes = "--" if "tree" in name else "-"
                axes.plot(*zip(*points, strict=True), dashes, color=COLORS[name], label=name, marker="o", ms=3, lw=1.5)
            scale = "linear" if what == "load" else "log"
            axes.set(xscale="log", yscale=scale, title=f"{title}, {link / 1e9:g} Gbit/s")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set(xlabel="workers")
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
