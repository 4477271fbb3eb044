"""The `hooke` command: thin. No torch here, so that `hooke --help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from hooke.launch.evidence import version
from hooke.launch.request import WORKERS, LaunchError, Request

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


class _RunCommand(TyperCommand):
    """Says where the script's own options belong when one of them stands before it."""

    example = "hooke run train.py --lr 0.1"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer brings its own copy of click: the class has no name that lasts
            if type(error).__name__ == "NoSuchOption":
                error.message += f". Options of the script stand after it: {self.example}"  # type: ignore[attr-defined]
                near = [name for name in error.possibilities or () if name != "--help"]  # type: ignore[attr-defined]
                error.possibilities = near  # type: ignore[attr-defined]
            raise


@app.command(
    cls=_RunCommand,
    short_help="Train: start the workers of a script and watch them.",
    context_settings={"allow_interspersed_args": False},
    no_args_is_help=True,
)
def run(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="Your training script, which uses hooke.Worker.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="All that stands after SCRIPT goes to the script, untouched."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default=f"{WORKERS}; with --resume as many as before",
            help="Processes to train with. They share this machine's cores.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default="runs/SCRIPT-DATE-TIME; with --resume the newest of them",
            help="Run directory: rows, logs, checkpoints of the center.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run from its last checkpoint.")] = False,
    max_restarts: Annotated[
        int, typer.Option(metavar="K", help="How often one crashed worker is started again.")
    ] = Request.max_restarts,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between checkpoints of the center.")
    ] = Request.checkpoint_every,
) -> None:
    """Train: start the workers of SCRIPT on this machine, watch them, restart those that crash.

    Example: hooke run --workers 4 train.py --lr 0.1

    Ctrl-C saves the center, stops the workers and prints the command that continues. A second Ctrl-C stops at once.

    Exit code: 0 if every worker finished, 1 if one failed for good, 2 if nothing could be started, 130 after Ctrl-C.
    """
    from hooke.launch import launch

    try:
        code = launch(
            script,
            arguments or [],
            workers=workers,
            out=out,
            resume=resume,
            max_restarts=max_restarts,
            checkpoint_every=checkpoint_every,
        )
    except LaunchError as error:
        _refuse("hooke run", error)
    raise typer.Exit(code)


@app.command(short_help="Draw what runs recorded as one HTML page.", no_args_is_help=True)
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
        _refuse("hooke report", error)
    typer.echo(page)


@app.command(short_help="Check the signal through a model's layers, name what to repair.", no_args_is_help=True)
def audit(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="A function that returns the model, or the model itself.")
    ],
    shape: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Of one example, e.g. 784 or 3,32,32: inputs are drawn N(0, 1).")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Examples to use instead, as numpy.save writes them.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", show_default="256", help="Examples; not with a factory's own inputs.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Of weights, drawn inputs and dropout.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the moments over depth, e.g. audit.png.")
    ] = None,
) -> None:
    """Measure mean and variance of activations and gradients in every layer of a model, and say what to repair.

    Example: hooke audit mymodel:build --shape 784

    FACTORY may also return a pair of the model and its inputs. Modules are imported from this directory.

    Exit code: 0 if there is nothing to repair, 1 if there are findings, 2 if the model can't be audited.
    """
    import json

    from hooke.nn.self_normalizing.audit.command import AuditError, audit_target, check_picture

    try:
        if picture is not None:
            check_picture(picture)
        made = audit_target(target, shape=shape, inputs=inputs, batch=batch, seed=seed)
        if picture is not None:
            made.picture().savefig(picture, dpi=150)
    except (AuditError, ImportError, ValueError, OSError) as error:
        _refuse("hooke audit", error)
    typer.echo(json.dumps(made.to_dict(), indent=2) if as_json else made)
    raise typer.Exit(1 if made.findings else 0)


class _PlanCommand(_RunCommand):
    """The same for `hooke plan`."""

    example = "hooke plan train.py --lr 0.1"


@app.command(
    cls=_PlanCommand,
    short_help="Say before a run: stable or not, seconds and bytes, speed-up.",
    context_settings={"allow_interspersed_args": False},
    no_args_is_help=True,
)
def plan(
    script: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SCRIPT]", help="Your training script: its first steps are measured, then it is stopped."
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]", help="All that stands after SCRIPT goes to the script, untouched."),
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Values in the model, e.g. 857336, 25M or 1.2B.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="P", show_default="with SCRIPT 2", help="Each on a processor of its own."),
    ] = None,
    step_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Of one optimizer step of one worker.")
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="B", show_default="with SCRIPT 1G", help="Bit/s each way, of every link, e.g. 100M or 1G."
        ),
    ] = None,
    latency: Annotated[float, typer.Option(metavar="S", help="Seconds one way.")] = 0.0,
    period: Annotated[
        int | None, typer.Option(metavar="T", show_default="10", help="Steps between two exchanges of a worker.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="easgd",
            help="easgd, eamsgd, downpour, local-sgd, lookahead, slowmo or diloco.",
        ),
    ] = None,
    center: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", show_default="star", help="star (one by one) or replicated (all at once, by all-reduce)."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(metavar="ETA", help="Learning rate.")] = None,
    curvature: Annotated[
        float | None, typer.Option(metavar="H", help="Largest eigenvalue of the loss's Hessian.")
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(metavar="D", show_default="0.9", help="Of Nesterov SGD, for eamsgd.")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(metavar="B", show_default="0.9", help="Workers times moving rate, if elastic.")
    ] = None,
    outer_lr: Annotated[
        float | None, typer.Option(metavar="ETA", help="Of lookahead (0.5), slowmo (1) or diloco (0.7).")
    ] = None,
    outer_momentum: Annotated[float | None, typer.Option(metavar="D", help="Of slowmo (0.5) or diloco (0.9).")] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Examples a step; without it steps are counted.")
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(metavar="S", show_default="60", help="Seconds that SCRIPT may take to its first step."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw speed-up and border, e.g. plan.png.")
    ] = None,
) -> None:
    """Say what a run would bring: whether it is stable, what an exchange costs, how much faster more workers are.

    Example: hooke plan --parameters 25M --workers 8 --step-seconds 0.1 --bandwidth 1G --lr 0.1 --curvature 10

    Example: hooke plan --bandwidth 100M train.py --lr 0.1

    With SCRIPT, what is not given is measured: seconds of a step and of an exchange (also by P processes at once, if
    there are cores for them), size, top curvature; rule, period, learning rate, momentum and batch are read.

    Stability holds on a quadratic bowl, without gradient noise, for SGD.

    Exit code: 0 if it is stable or not judged, 1 if it is not stable, 2 if the numbers can't be used.
    """
    import json

    from hooke.plan import PlanError, advice_on, advice_on_script, parse_bandwidth, parse_count

    try:
        given = {
            "parameters": None if parameters is None else parse_count(parameters),
            "workers": workers,
            "step_seconds": step_seconds,
            "bandwidth": None if bandwidth is None else parse_bandwidth(bandwidth),
            "latency": latency,
            "period": period,
            "method": method,
            "center": center,
            "lr": lr,
            "curvature": curvature,
            "momentum": momentum,
            "beta": beta,
            "outer_lr": outer_lr,
            "outer_momentum": outer_momentum,
            "batch": batch,
        }
        given = {name: value for name, value in given.items() if value is not None}
        missing = [name for name in ("parameters", "workers", "step_seconds", "bandwidth") if name not in given]
        if script is None and missing:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise PlanError(f"without a SCRIPT these must be given: {options}. Got none. Give them, or a script.")
        if script is None and wait is not None:
            raise PlanError("--wait must stand before a SCRIPT. Got none. Give one, or drop --wait.")
        if script is None:
            made = advice_on(**given)
        else:
            say = lambda line: typer.echo(f"hooke plan: {line}", err=True)  # noqa: E731
            patience = {} if wait is None else {"wait": wait}
            made = advice_on_script(script, arguments or [], say=say, **patience, **given)
        if picture is not None:
            made.picture().savefig(picture, dpi=150)
    except (PlanError, ImportError, ValueError, OSError) as error:
        _refuse("hooke plan", error)
    typer.echo(json.dumps(made.to_dict(), indent=2) if as_json else made)
    raise typer.Exit(1 if made.is_stable is False else 0)


def _refuse(command: str, error: Exception) -> NoReturn:
    """Say what is wrong in one sentence, without a traceback."""
    typer.echo(f"{command}: {error}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
