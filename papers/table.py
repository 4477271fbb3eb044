"""Tables in the documents that are made from the records: the README's of verdicts, and those of single papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hooke.claim import WORDS, Missing, Table
from hooke.report import JudgedPaper
from papers.error import PapersError
from papers.markdown import markdown

BEGIN, END = "<!-- papers -->", "<!-- /papers -->"


def overview(papers: Sequence[JudgedPaper]) -> str:
    """One row a paper: its title with a link, how many claims have each verdict, and its page."""
    return markdown(["paper", *WORDS, "report"], [_row(paper) for paper in papers])


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
    readme.write_text(f"{before}{BEGIN}\n{overview(papers)}{END}{after}", encoding="utf-8")


def fill(text: str, key: str, tables: Mapping[str, Callable[[Table], str]], table: Table) -> str:
    """`text` with every `<!-- KEY NAME -->...<!-- /KEY NAME -->` holding what `tables[NAME]` makes of the record.

    Args:
        text: A page in Markdown.
        key: The paper's.
        tables: Name to a function from recorded trials to Markdown.
        table: The trials; where they do not suffice, the place says so.

    Raises:
        PapersError: A page asks for a table that the paper does not define.
    """

    def made(place: re.Match[str]) -> str:
        name = place[1]
        if name not in tables:
            raise PapersError(
                f"{key}: a page's table must be one of {', '.join(tables)}. Got {name!r}. Define it in TABLES."
            )
        try:
            content = tables[name](table)
        except Missing as error:
            content = f"*Not yet: {error}*\n"
        return f"<!-- {key} {name} -->\n{content}<!-- /{key} {name} -->"

    return re.sub(rf"<!-- {key} (\S+) -->.*?<!-- /{key} \1 -->", made, text, flags=re.DOTALL)


def write_tables(key: str, tables: Mapping[str, Callable[[Table], str]], table: Table, pages: Sequence[Path]) -> None:
    """Fill the places of one paper in Markdown pages."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        filled = fill(text, key, tables, table)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
