"""`hooke run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hooke.commands.option import Authority, Certificate, Insecure, Key, TokenFile
from hooke.commands.refusal import refuse
from hooke.launch.request import WORKERS, LaunchError, Request


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
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Also serve the center to workers on other machines, which --join it."),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default="HOOKE_CENTER",
            help="Use the center at this address, as it was printed there; one in parts: a,b.",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="HOOKE_CODEC, else float32",
            help="With --join, how values travel: float32, bfloat16, int8 or int4.",
        ),
    ] = None,
    token_file: TokenFile = None,
    authority: Authority = None,
    certificate: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="With --join, how long to wait for a center that is not up yet.")
    ] = 60.0,
) -> None:
    """Train: start the workers of SCRIPT on this machine, watch them, restart those that crash.

    Example: hooke run --workers 4 train.py --lr 0.1

    Example: hooke run --join grpc+tls://center.example.org:29400 --authority ca.pem --codec int8 train.py

    Ctrl-C saves the center, stops the workers and prints the command that continues. A second Ctrl-C stops at once.

    Exit code: 0 if every worker finished, 1 if one failed for good, 2 if nothing could be started, 130 after Ctrl-C.
    """
    from hooke.launch import launch
    from hooke.launch.link import Link

    try:
        link = Link(
            listen=listen or "",
            join=join or ("" if listen else os.environ.get("HOOKE_CENTER", "")),
            token_file=token_file,
            authority=authority,
            certificate=certificate,
            key=key,
            codec=codec,
            insecure=insecure,
            wait=wait,
        )
        code = launch(
            script,
            arguments or [],
            workers=workers,
            out=out,
            resume=resume,
            max_restarts=max_restarts,
            checkpoint_every=checkpoint_every,
            link=link,
        )
    except (LaunchError, ImportError) as error:
        refuse("hooke run", error)
    raise typer.Exit(code)
