"""`hooke status`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from hooke.commands.option import Authority, Certificate, Insecure, Key, TokenFile
from hooke.commands.refusal import refuse
from hooke.launch.request import LaunchError


def status(
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", show_default="HOOKE_CENTER", help="As the center printed it; several: a,b."),
    ] = None,
    token_file: TokenFile = None,
    authority: Authority = None,
    certificate: Certificate = None,
    key: Key = None,
    insecure: Insecure = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Print Prometheus' text format instead.")] = False,
) -> None:
    """Ask a center who its workers are, how far they are, what they moved, and what it refused.

    Example: hooke status grpc+tls://center.example.org:29400 --authority keys/ca.pem --token-file keys/token

    What is not given is taken from HOOKE_CENTER, HOOKE_TOKEN, HOOKE_AUTHORITY, HOOKE_CERTIFICATE and HOOKE_KEY.
    """
    from hooke.launch.link import Link, quiet

    quiet()
    try:
        where = url or os.environ.get("HOOKE_CENTER")
        if not where:
            raise LaunchError("needs the center's address. Got none. Give its URL, or set HOOKE_CENTER.")
        if as_json and prometheus:
            raise LaunchError("--json and --prometheus exclude each other. Got both. Drop one.")
        link = Link(
            join=where,
            token_file=token_file,
            authority=authority,
            certificate=certificate,
            key=key,
            insecure=insecure,
        )
        said = _asked(link, prometheus)
    except (ImportError, ValueError, OSError) as error:
        refuse("hooke status", error)
    if prometheus:
        typer.echo("".join(said), nl=False)
    elif as_json:
        typer.echo(json.dumps(said if len(said) > 1 else said[0], indent=2))
    else:
        typer.echo("\n\n".join(_text(one, answer) for one, answer in zip(link.urls, said, strict=True)))


def _asked(link: Any, prometheus: bool) -> list[Any]:
    """What each center answers."""
    from hooke.remote import connect

    said: list[Any] = []
    for url in link.urls:
        center = connect(url, timeout=10.0, **link.connecting())
        said.append(center.metrics() if prometheus else center.status())
        center.close()
    return said


_COLUMNS = {
    "worker": lambda worker: worker["name"],
    "from": lambda worker: worker["peer"],
    "step": lambda worker: f"{worker['step']:,}",
    "exchanges": lambda worker: f"{worker['exchanges']:,}",
    "staleness": lambda worker: f"{worker['staleness']:,}",
    "in": lambda worker: _bytes(worker["bytes_received"]),
    "out": lambda worker: _bytes(worker["bytes_sent"]),
    "silent": lambda worker: f"{worker['silent_seconds']:.0f} s" + ("" if worker["alive"] else ", counted out"),
    "codec": lambda worker: worker["codec"],
}


def _text(url: str, said: Mapping[str, Any]) -> str:
    size = f"{said['parameters']:,} values, " if said["ready"] else "empty: no worker has come yet, "
    lines = [
        f"{url}: {size}{said['num_workers']} live workers, {said['exchanges']:,} exchanges, up {said['seconds']:.0f} s"
    ]
    if said["local_workers"]:
        lines.append(f"{said['local_workers']} of the workers are on the center's own machine")
    if said["workers"]:
        rows = [[cell(worker) for cell in _COLUMNS.values()] for worker in said["workers"]]
        lines += _aligned([list(_COLUMNS), *rows])
    refused = ", ".join(f"{kind} {count:,}" for kind, count in sorted(said["refused"].items()))
    return "\n".join([*lines, f"refused: {refused or 'nothing'}"])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
