"""How a command says what can't be done."""

from __future__ import annotations

from typing import NoReturn

import typer


def refuse(command: str, error: Exception) -> NoReturn:
    """Say what is wrong in one sentence, without a traceback; exit code 2."""
    said = str(error)
    if isinstance(error, ImportError) and error.name in ("pyarrow", "cryptography"):
        said = f"needs the extra `remote`. Got no {error.name}. Install it: pip install 'hooke[remote]'"
    typer.echo(f"{command}: {said}", err=True)
    raise typer.Exit(2)
