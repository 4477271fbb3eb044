"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hooke.claim import Claim, Table


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def verdicts_of(claims: Sequence[Claim]) -> Callable[[Table], str]:
    """What makes a table of every claim with its verdict."""

    def verdicts(table: Table) -> str:
        rows = [[claim.sentence, claim.where, claim.judge(table).word] for claim in claims]
        return markdown(["the paper says", "where", "verdict"], rows)

    return verdicts
