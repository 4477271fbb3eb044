"""What happened to one worker of a simulated cluster, and when."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from hooke.simulate.pace import Leg

Kind = Literal["exchange", "missed", "died", "joined", "left"]


class Event(NamedTuple):
    """Something that happened to one worker. Times are seconds of the virtual clock.

    Attributes:
        kind: `"exchange"`; `"missed"`: one that came due while the last was under way, or was lost; `"died"`;
            `"joined"`: a fresh process, whose steps count from 0 again; `"left"`: all its steps are taken, or the
            horizon has come.
        worker: Its number.
        step: Steps that the worker had taken when the event began.
        begun: When it began.
        absorbed: When the center had taken in the whole vector. For `"missed"`, when it had taken in the one under way,
            if that is later than `begun`; so a worker's events keep their order. For other kinds `begun`.
        settled: When the correction had come back; inf if the worker died before, or the run ended.
        settled_step: Steps that the worker has taken when the correction is subtracted; `step` where it waits.
        workers: Live workers when absorbed, of a ring those that took part; for who joined, died or left, afterwards.
        ran: The steps that it took since its event before.
    """

    kind: Kind
    worker: int
    step: int
    begun: float
    absorbed: float
    settled: float
    settled_step: int
    workers: int
    ran: Leg

    @property
    def ends(self) -> np.ndarray:
        """Seconds at which the steps ended that this worker took since its event before, up to `step`."""
        return self.ran.seconds()
