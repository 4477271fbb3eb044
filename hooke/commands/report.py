"""`hooke report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooke.commands.refusal import refuse


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Run directories, as hooke run left them.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="RUN_DIR/report.html", help="The page. Needed for several runs."),
    ] = None,
) -> None:
    """Draw what a run recorded as one HTML page; of several runs, compare them."""
    from hooke.report import write_report

    try:
        page = write_report(runs, out)
    except (ImportError, ValueError, OSError) as error:
        refuse("hooke report", error)
    typer.echo(page)
