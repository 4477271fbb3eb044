"""Speed of workers around one center: each has a link of its own, and all of them meet in the center's."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDTHS = {"float32": 32, "bfloat16": 16, "int8": 8.125, "int4": 4.125}
"""Bits of a value on the wire by each of `hooke.codec.CODECS` (which need torch), its share of a scale included."""

BITS = WIDTHS["float32"]
"""What is sent where no codec is named."""


@dataclass(frozen=True)
class Star:
    """p workers, each on a processor of its own, and a center whose link carries every exchange.

    An exchange sends the vector up and brings one down, one after the other. Links are full duplex, all of the same
    bandwidth; what several workers send at once waits in the center's link, first come, first served. With t seconds
    of `transfer_seconds`, s of a step, l of latency and tau steps a period:

        one exchange          2 (t + l)
        steps a second        p tau / (tau s + 2 (t + l)), at most tau / t
        with overlap          p / s: nobody waits, but what takes longer than a period makes the period longer

    The arithmetic of an exchange is left out: it costs about one copy of the vector.

    Args:
        parameters: Values in the vector.
        step_seconds: s, of one optimizer step of one worker without exchanges.
        bandwidth: In bit/s, of the center's link and of each worker's, in each direction.
        latency: l, seconds one way.
        period: tau.
        bits: Of a value on the wire.

    Example:
        >>> star = Star(parameters=25_000_000, step_seconds=0.1, bandwidth=1e9)
        >>> star.exchange_seconds, star.hiding_period(1), star.hiding_period(8)
        (1.6, 16, 64)
        >>> round(star.speed_up(2), 2), round(star.speed_up(8), 2), star.speed_up(8, overlap=True)
        (0.77, 1.25, 8.0)
    """

    parameters: int
    step_seconds: float
    bandwidth: float
    latency: float = 0.0
    period: int = 10
    bits: float = BITS

    @property
    def bytes_each_way(self) -> float:
        """What one exchange sends; as much comes back."""
        return self.parameters * self.bits / 8

    @property
    def transfer_seconds(self) -> float:
        """t: how long one vector occupies one direction of a link."""
        return 8 * self.bytes_each_way / self.bandwidth

    @property
    def exchange_seconds(self) -> float:
        """One exchange where nobody else wants the center's link."""
        return 2 * (self.transfer_seconds + self.latency)

    def sent_bytes(self, num_workers: int) -> float:
        """What a worker sends in one exchange, whatever their number; as much comes back."""
        return self.bytes_each_way

    def wait_seconds(self, num_workers: int) -> float:
        """One exchange where nobody else wants the center's link, whatever their number."""
        return self.exchange_seconds

    @property
    def saturated_from(self) -> int:
        """Workers, waiting for their exchanges, that keep the center's link busy all the time; more bring nothing."""
        return up((self.period * self.step_seconds + self.exchange_seconds) / self.transfer_seconds)

    def round_trip_seconds(self, num_workers: int) -> float:
        """How often each of p workers can exchange at best: its own exchange, or everybody's turn at the center."""
        return max(self.exchange_seconds, num_workers * self.transfer_seconds)

    def hiding_period(self, num_workers: int) -> int:
        """Smallest period, in steps, whose exchanges all stay hidden behind the steps (`overlap=True`)."""
        return up(self.round_trip_seconds(num_workers) / self.step_seconds)

    def real_period(self, num_workers: int, *, overlap: bool = False) -> float:
        """Mean steps between two exchanges: with overlap, one that comes due while the last is under way is missed."""
        if not overlap:
            return self.period
        alone = self.period * up(self.exchange_seconds / (self.period * self.step_seconds))
        return max(float(alone), num_workers * self.transfer_seconds / self.step_seconds)

    def steps_per_second(self, num_workers: int, *, overlap: bool = False) -> float:
        """Of all workers together."""
        if overlap:
            return num_workers / self.step_seconds
        alone = self.period / (self.period * self.step_seconds + self.exchange_seconds)
        return min(num_workers * alone, self.period / self.transfer_seconds)

    def speed_up(self, num_workers: int, *, overlap: bool = False) -> float:
        """Examples a second of all workers, over those of one that never exchanges."""
        return self.steps_per_second(num_workers, overlap=overlap) * self.step_seconds

    def bytes_per_step(self, num_workers: int, *, overlap: bool = False) -> float:
        """Bytes that a worker sends and receives, per step."""
        return 2 * self.bytes_each_way / self.real_period(num_workers, overlap=overlap)


def up(ratio: float) -> int:
    """The next whole number, at least 1; what misses one only by rounding counts as that one."""
    return max(1, math.ceil(ratio * (1 - 1e-12)))
