"""The README's table of papers and verdicts, made from the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hooke.claim import WORDS
from hooke.report import JudgedPaper
from papers.error import PapersError

BEGIN, END = "<!-- papers -->", "<!-- /papers -->"


def markdown(papers: Sequence[JudgedPaper]) -> str:
    """One row a paper: its title with a link, how many claims have each verdict, and its page."""
    lines = [["paper", *WORDS, "report"], ["---"] * (len(WORDS) + 2), *map(_row, papers)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _row(paper: JudgedPaper) -> list[str]:
    title = f"[{paper.source.title}]({paper.source.url}), {paper.source.year}"
    if not paper.table:
        return [title, *[""] * len(WORDS), "no record yet"]
    counts = [str(paper.counts[word]) for word in WORDS]
    return [title, *counts, f"[{len(paper.table):,} trials](docs/papers/{paper.key}.html)"]


def between(text: str) -> tuple[str, str, str]:
    """What stands before, between and after the markers.

    Raises:
        PapersError: A marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not begin or not end:
        raise PapersError(f"README.md must hold {BEGIN} and {END}. Got neither or one. Put them around its table.")
    return before, inside, after


def write_table(papers: Sequence[JudgedPaper], readme: Path) -> None:
    """Put the table between the markers of the README."""
    before, _, after = between(readme.read_text(encoding="utf-8"))
    readme.write_text(f"{before}{BEGIN}\n{markdown(papers)}{END}{after}", encoding="utf-8")
