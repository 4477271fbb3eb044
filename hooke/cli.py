"""The `hooke` command: thin. No torch here, so that `hooke --help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from hooke.commands.audit import audit
from hooke.commands.center import center
from hooke.commands.certificate import certificate
from hooke.commands.plan import plan
from hooke.commands.report import report
from hooke.commands.run import run
from hooke.commands.script import ScriptCommand
from hooke.commands.status import status
from hooke.launch.evidence import version

app = typer.Typer(
    name="hooke",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hooke {version('hooke') or '(not installed)'}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Train one model with several workers, each tied to a shared center by a spring (Elastic Averaging SGD)."""


_SCRIPT = {"cls": ScriptCommand, "context_settings": {"allow_interspersed_args": False}, "no_args_is_help": True}

app.command(short_help="Train: start the workers of a script and watch them.", **_SCRIPT)(run)
app.command(short_help="Draw what runs recorded as one HTML page.", no_args_is_help=True)(report)
app.command(short_help="Check the signal through a model's layers, name what to repair.", no_args_is_help=True)(audit)
app.command(short_help="Say before a run: stable or not, seconds and bytes, speed-up.", **_SCRIPT)(plan)
app.command(short_help="Serve a center to workers on other machines.", no_args_is_help=True)(center)
app.command(short_help="Ask a center how it and its workers are.")(status)
app.command(short_help="Make certificates for a center and its workers.", no_args_is_help=True)(certificate)

if __name__ == "__main__":
    app()
