"""Speed of ranks that all reduce together: each sends to the next one, and all wait for the slowest link."""

from __future__ import annotations

from dataclasses import dataclass

from hooke.plan.star import BITS, up


@dataclass(frozen=True)
class Ring:
    """p ranks, each with a copy of the center, kept equal by a ring all-reduce (`hooke.ReplicatedCenter`).

    The vector goes around in p parts: p - 1 steps add them up, p - 1 more tell everybody. Each rank sends and receives
    2 (p - 1) / p vectors, both at the same time (full duplex); with t seconds of `transfer_seconds` for one vector, s
    of a step, l of latency and tau steps a period:

        one exchange          2 (p - 1) (t / p + l)
        steps a second        p tau / (tau s + that)

    No exchange is hidden behind steps: ranks wait for each other.

    Args:
        parameters: Values in the vector.
        step_seconds: s, of one optimizer step of one rank without exchanges.
        bandwidth: In bit/s, of each rank's link, in each direction.
        latency: l, seconds one way.
        period: tau.
        bits: Of a value on the wire.

    Example:
        >>> ring = Ring(parameters=25_000_000, step_seconds=0.1, bandwidth=1e9)
        >>> ring.wait_seconds(2), round(ring.wait_seconds(8), 3), round(ring.speed_up(8), 2)
        (0.8, 1.4, 3.33)

    Reference:
        Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel Distrib.
        Comput. 69 (2009).
    """

    parameters: int
    step_seconds: float
    bandwidth: float
    latency: float = 0.0
    period: int = 10
    bits: float = BITS

    @property
    def transfer_seconds(self) -> float:
        """t: how long one vector occupies one direction of a link."""
        return self.parameters * self.bits / self.bandwidth

    def sent_bytes(self, num_workers: int) -> float:
        """What a rank sends in one exchange; as much comes in."""
        return 2 * (num_workers - 1) / num_workers * self.parameters * self.bits / 8

    def wait_seconds(self, num_workers: int) -> float:
        """One exchange."""
        return 2 * (num_workers - 1) * (self.transfer_seconds / num_workers + self.latency)

    def hiding_period(self, num_workers: int) -> int:
        """Smallest period at which a rank waits for exchanges no more than a tenth of its time: none hides them."""
        return up(9 * self.wait_seconds(num_workers) / self.step_seconds)

    def steps_per_second(self, num_workers: int) -> float:
        """Of all ranks together."""
        return num_workers * self.period / (self.period * self.step_seconds + self.wait_seconds(num_workers))

    def speed_up(self, num_workers: int) -> float:
        """Examples a second of all ranks, over those of one alone."""
        return self.steps_per_second(num_workers) * self.step_seconds

    def bytes_per_step(self, num_workers: int) -> float:
        """Bytes that a rank sends and receives, per step."""
        return 2 * self.sent_bytes(num_workers) / self.period
