"""`python -m papers`: run papers, judge them, write their pages. Thin; no torch until a trial needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from papers.engine import Request, carry_out
from papers.error import PapersError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="Papers; all of them if left out.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Minutes instead of hours; nothing is judged.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default="papers/results and docs/papers; with --smoke runs/papers-smoke",
            help="Folder of records and pages.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="Trials at once; -1: one a core.")] = 1,
    backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="loky", help="joblib backend: loky, threading, dask, ray, ..."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Start no trial later than this; run again to go on.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="STUDY", help="Run only this study; may be repeated.")
    ] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Run nothing: judge the records and write the pages.")] = False,
) -> None:
    """Run the trials of papers that are not recorded yet, judge every claim, write one page a paper.

    Kill it at any time: finished trials are kept, and the same command goes on.

    Exit code: 0, 1 if a trial failed, 2 if nothing could be started, 130 after Ctrl-C.
    """
    shown = Console(stderr=True)
    try:
        request = Request(tuple(keys or ()), smoke, out, jobs, backend, minutes, tuple(only or ()), judge)
        code = carry_out(request, Console(), shown)
    except PapersError as error:
        typer.echo(f"python -m papers: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


if __name__ == "__main__":
    app(prog_name="python -m papers")
