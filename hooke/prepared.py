"""The center that was prepared for a worker: by `hooke run` on this machine, or elsewhere, named by the environment."""

from __future__ import annotations

import os
import sys
from typing import Any

from hooke.center import Center, LocalCenter
from hooke.run import Run

WAIT_SECONDS = 60.0
"""How long a worker waits for a center that is not up yet."""


def prepared_center(run: Run | None) -> Center:
    """The center of the run, or the one at `HOOKE_CENTER`.

    Raises:
        ValueError: There is none.
        OSError: The center elsewhere can't be reached, or turns this worker away.
    """
    if run is not None and run.center:
        return LocalCenter(run.center)
    if not os.environ.get("HOOKE_CENTER"):
        raise ValueError(
            "Worker: needs a center. Got none: this script was not started by `hooke run`. Start it with "
            "`hooke run --workers 4 SCRIPT`, or pass center=hooke.LocalCenter() to train alone."
        )
    return _reached(name=None if run is None else f"{run.name}-{run.worker}")


def _reached(**options: Any) -> Center:
    """The center elsewhere, once it is up."""
    from hooke.remote import connect

    try:
        return connect(**options)
    except (PermissionError, ValueError):
        raise
    except OSError as error:
        print(f"hooke: {error} Waiting up to {WAIT_SECONDS:g} seconds for it.", file=sys.stderr, flush=True)
    return connect(**options, wait=WAIT_SECONDS)
