"""`hooke audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hooke.commands.refusal import refuse


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
        refuse("hooke audit", error)
    typer.echo(json.dumps(made.to_dict(), indent=2) if as_json else made)
    raise typer.Exit(1 if made.findings else 0)
