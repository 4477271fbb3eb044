"""Between the parameters' device and the host, where the center works.

On the CPU there is nothing to carry, only snapshots to take. On an accelerator copies go through pinned host memory on
a stream of their own, so that the device never waits for the center.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

WHOLE = slice(None)
"""All of a vector."""


class Staging:
    """Carries vectors of one size between the device of `vector` and the host.

    Args:
        vector: The worker's flat vector; says size and device.
        on_host: Whether the center works on the CPU, and not where the vector is.

    Attributes:
        is_direct: Whether the center works where the vector is, so that nothing has to be carried.
    """

    def __init__(self, vector: Float[Tensor, " n"], *, on_host: bool = True) -> None:
        self.is_direct = vector.device.type == "cpu" or not on_host
        self._vector = vector
        self._scratch: Tensor | None = None
        self._host: Tensor | None = None
        self._stream = torch.cuda.Stream(vector.device) if vector.device.type == "cuda" else None
        self._copied: Any = None
        self._returned: Any = None

    @property
    def scratch(self) -> Float[Tensor, " n"]:
        """A second vector on the parameters' device, made when it is first asked for."""
        if self._scratch is None:
            self._scratch = torch.empty_like(self._vector)
        return self._scratch

    def to_host(self, point: Float[Tensor, " n"], part: slice = WHOLE) -> Float[Tensor, " n"]:
        """`point` on the CPU, in memory that may be overwritten, of which `part` counts; waits for the copy."""
        copy = self.begin_copy(point, part)
        self.wait_copied()
        return copy

    def to_device(self, correction: Float[Tensor, " m"], part: slice = WHOLE) -> Float[Tensor, " m"]:
        """`correction` of that part on the parameters' device; waits for the copy."""
        ready = self.begin_return(correction, part)
        self.wait_returned()
        return ready

    def begin_copy(self, point: Float[Tensor, " n"], part: slice = WHOLE) -> Float[Tensor, " n"]:
        """Start to copy that part of `point`; the same part of what it gives may be read after `wait_copied()`.

        Later changes of the parameters don't reach the copy: on an accelerator `point` is first copied on the device,
        in the order of its own work, and then to the host on the side stream.
        """
        if point is not self._scratch:
            self.scratch[part].copy_(point[part])
        if self.is_direct:
            return self.scratch
        if self._host is None:
            self._host = torch.empty(self.scratch.shape, dtype=torch.float32, pin_memory=self._stream is not None)
        if self._stream is None:
            self._host[part].copy_(self.scratch[part])
            return self._host
        self._stream.wait_stream(torch.cuda.current_stream(self.scratch.device))
        with torch.cuda.stream(self._stream):
            self._host[part].copy_(self.scratch[part], non_blocking=True)
            self._copied = self._stream.record_event()
        return self._host

    def wait_copied(self) -> None:
        """Wait, on the host, until the copy that was begun has arrived."""
        if self._copied is not None:
            self._copied.synchronize()

    def begin_return(self, correction: Float[Tensor, " m"], part: slice = WHOLE) -> Float[Tensor, " m"]:
        """Start to copy `correction` of that part to the device; may be used after `wait_returned()`."""
        if self.is_direct:
            return correction
        if self._stream is None:
            return self.scratch[part].copy_(correction)
        with torch.cuda.stream(self._stream):
            self.scratch[part].copy_(correction, non_blocking=True)
            self._returned = self._stream.record_event()
        return self.scratch[part]

    def wait_returned(self) -> None:
        """Let the device's own work, not the host, wait for the copy."""
        if self._returned is not None:
            torch.cuda.current_stream(self.scratch.device).wait_event(self._returned)
