"""`hooke certificate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooke.commands.refusal import refuse


def certificate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name or address that workers call the center by, beside this machine's own; repeat it.",
        ),
    ] = None,
    days: Annotated[int, typer.Option(metavar="N", help="How long the certificates last.")] = 365,
) -> None:
    """Make what a center and its workers need to trust each other: an authority, certificates, a token.

    Example: hooke certificate keys --host center.example.org

    In the same DIR again, it keeps the authority and the token and renews the certificates.
    """
    try:
        from hooke.certificate import make_certificates

        made = make_certificates(folder, host or (), days=days)
    except (ImportError, ValueError, OSError) as error:
        refuse("hooke certificate", error)
    typer.echo(f"{'renewed' if made.renewed else 'made'} in {folder}, until {made.expires:%Y-%m-%d}:")
    typer.echo(f"  server.pem server.key   for the center, called {', '.join(made.hosts)}")
    typer.echo("  ca.pem token            for every worker; the center needs the token, too")
    typer.echo("  client.pem client.key   for workers, only where the center has --authority ca.pem")
    typer.echo("  ca.key                  for nobody: it makes the others")
    keys = f"--certificate {made.certificate} --key {made.key} --token-file {made.token}"
    typer.echo(f"next:  hooke center --listen 0.0.0.0:29400 {keys}")
