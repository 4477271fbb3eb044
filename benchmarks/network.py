"""Slow links on one Linux machine, made of network namespaces; needs root.

Every node is a namespace with one cable to a switch. Each direction of each cable carries so many bits a second,
headers included, as a rented link does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PREFIX = f"hooke-{os.getpid()}"  # of this process, so that two may have nodes at once


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def address(node: int) -> str:
    return f"10.77.0.{node + 1}"


def inside(node: int, command: Sequence[str]) -> list[str]:
    """The command that runs `command` at a node."""
    return ["ip", "netns", "exec", f"{PREFIX}-{node}", *command]


def shape(namespace: str, device: str, bits: float) -> None:
    """Let so many bits a second leave a device."""
    limits = ["rate", f"{int(bits)}bit", "burst", "64kb", "latency", "400ms"]
    ip("netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limits)


@contextmanager
def cables(nodes: int, bits: float) -> Iterator[None]:
    """So many nodes around a switch, each direction of each cable with so many bits a second."""
    names = [f"{PREFIX}-{node}" for node in range(nodes)]
    switch = f"{PREFIX}-switch"
    made: list[str] = []
    try:
        for name in [switch, *names]:
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for node, name in enumerate(names):
            port = f"port{node}"
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "cable", "netns", name)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"{address(node)}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            shape(name, "cable", bits)
            shape(switch, port, bits)
        yield
    finally:
        for name in made:
            ip("netns", "del", name)
