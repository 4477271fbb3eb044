"""Writes what the last chaos run showed into docs/failures.md, between two marks.

python benchmarks/chaos_page.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import machine

PAGE = Path(__file__).parents[1] / "docs" / "failures.md"
BEGIN, END = "<!-- benchmarks/chaos_page.py writes this -->\n", "<!-- up to here -->\n"


def section(row: dict[str, Any]) -> str:
    """What happened to the workers of one run, and what came of it."""
    quiet, chaos = row["quiet"], row["chaos"]
    faults = [f"| {kind} | {count} |" for kind, count in sorted(chaos["faults"].items())]
    restarts = sum(chaos["worker_starts"]) - len(chaos["worker_starts"])
    return "\n".join(
        [
            "## A bad day, measured",
            "",
            f"{row['workers']} workers take {row['steps']:,} steps each, once in quiet and once while every "
            f"{row['every']:g} seconds, on average, something is killed, stopped (SIGSTOP, for 1 to 5 seconds), cut or",
            "silenced. A process that was killed is started again by a supervisor; nothing else helps.",
            "",
            "| fault | times |",
            "| --- | --- |",
            *faults,
            "",
            "| | in quiet | with faults |",
            "| --- | --- | --- |",
            f"| loss of the center at the end | {quiet['loss']:.3f} | {chaos['loss']:.3f} |",
            f"| accuracy | {quiet['accuracy']:.3f} | {chaos['accuracy']:.3f} |",
            f"| seconds | {quiet['seconds']:.0f} | {chaos['seconds']:.0f} |",
            f"| longest that a step was held up, at a time-out of {row['timeout']:g} s | "
            f"{quiet['longest_blocked']:.2f} s | {chaos['longest_blocked']:.2f} s |",
            f"| workers, centers started again | 0, 0 | {restarts}, {chaos['center_starts'] - 1} |",
            "",
            f"`python benchmarks/chaos.py` on {row['cores']} cores ({row['cpu']}), torch {row['torch']}, Python "
            f"{row['python']}, hooke {row['commit'][:10]}, {row['at'][:10]}.",
            "",
        ]
    )


def written(page: str, row: dict[str, Any]) -> str:
    """The page with the section of that run."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + section(row) + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), machine.read(machine.RESULTS / "chaos.jsonl")[-1]))
