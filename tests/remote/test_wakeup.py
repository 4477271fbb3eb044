"""gRPC reads its environment once, when it starts: it must be there then, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from pyarrow import flight
import hooke

name, seen, made = "GRPC_EXPERIMENTS", [], flight.FlightClient
flight.FlightClient = lambda *words, **more: (seen.append(os.environ.get(name)), made(*words, **more))[1]
with hooke.serve(hooke.LocalCenter()) as server:
    center = hooke.connect(server.url)
    print(seen, os.environ.get(name))
    center.close()
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "['tcp_frame_size_tuning,tcp_rcv_lowat'] None"),
        ({"GRPC_EXPERIMENTS": ""}, "[''] "),
        ({"GRPC_EXPERIMENTS": "tcp_rcv_lowat"}, "['tcp_rcv_lowat'] tcp_rcv_lowat"),
    ],
    ids=["nothing", "nothing wanted", "another"],
)
def test_grpc_starts_with_few_wakeups_unless_the_user_wants_something_else(own: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=clean | own, capture_output=True, text=True, timeout=60)
    assert done.stdout == expected + "\n", done.stderr
    assert "xperiment" not in done.stderr
