"""A worker whose first words come late."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import hooke
from hooke.remote.wire import Wire


class _SlowWriter:
    """Begins and ends only after the center has had the time to answer."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def begin(self, schema: Any) -> None:
        time.sleep(0.2)
        self._writer.begin(schema)

    def done_writing(self) -> None:
        time.sleep(0.2)
        self._writer.done_writing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def test_the_center_does_not_hang_up_on_a_slow_writer(
    center: hooke.LocalCenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is sent up (a pull, a join of a set center), its answer may come before the question ends."""
    spec = hooke.CenterSpec((), 8)
    center.join(torch.arange(8.0), spec)
    connected = Wire._connected

    class Slow:
        def __init__(self, client: Any) -> None:
            self._client = client

        def do_exchange(self, *given: Any) -> tuple[Any, Any]:
            writer, reader = self._client.do_exchange(*given)
            return _SlowWriter(writer), reader

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

    monkeypatch.setattr(Wire, "_connected", lambda wire: Slow(connected(wire)))
    with hooke.serve(center) as server:
        worker = hooke.connect(server.url)
        assert torch.equal(worker.join(torch.zeros(8), spec), torch.arange(8.0))
        assert torch.equal(worker.pull(), torch.arange(8.0))
        worker.exchange(torch.zeros(8), hooke.EASGD(moving_rate=0.5))
        assert torch.equal(worker.pull(), torch.arange(8.0) / 2)
        worker.close()
        assert server.status()["refused"] == {}
