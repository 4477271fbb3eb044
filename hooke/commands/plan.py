"""`hooke plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooke.commands.refusal import refuse


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
        refuse("hooke plan", error)
    typer.echo(json.dumps(made.to_dict(), indent=2) if as_json else made)
    raise typer.Exit(1 if made.is_stable is False else 0)
