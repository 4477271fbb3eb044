"""`hooke center`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooke.commands.option import Authority, Certificate, Insecure, Key, TokenFile
from hooke.commands.refusal import refuse
from hooke.launch.request import LaunchError, Request


def center(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where; 0.0.0.0 is every address of this machine.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default="runs/center-DATE-TIME",
            help="Where the center is saved, and taken from when it is started again.",
        ),
    ] = None,
    token_file: TokenFile = None,
    certificate: Certificate = None,
    key: Key = None,
    authority: Authority = None,
    insecure: Insecure = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between checkpoints.")
    ] = Request.checkpoint_every,
) -> None:
    """Serve a center to workers on other machines, which `hooke run --join` starts. It does not train.

    Example: hooke center --listen 0.0.0.0:29400 --out runs/center --certificate keys/server.pem
    --key keys/server.key --token-file keys/token

    With the same --out it goes on where it was saved; workers train on meanwhile. Ctrl-C and SIGTERM save and end it.

    Exit code: 0 after Ctrl-C or SIGTERM, 1 if the center could not be saved, 2 if nothing could be started.
    """
    from hooke.launch.link import Link

    try:
        link = Link(
            listen=listen,
            token_file=token_file,
            certificate=certificate,
            key=key,
            authority=authority,
            insecure=insecure,
        )
        from hooke.launch.service import serve_center

        code = serve_center(link, out=out, checkpoint_every=checkpoint_every)
    except (LaunchError, ImportError) as error:
        refuse("hooke center", error)
    raise typer.Exit(code)
