"""Options that several commands have: who may talk to a center, and over what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", show_default="HOOKE_TOKEN", help="The file that holds the token.")
]
Authority = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="PEM of the authority that the other side's certificate comes from, e.g. ca.pem."
    ),
]
Certificate = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM of one's own certificate, for TLS.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM of its private key.")]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Allow what others can read or enter: no token, or no TLS, beyond this machine."),
]
