"""A rule whose correction travels over a link that rounds: both ends end with the same values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hooke.averaged import Averaged
from hooke.codec import Codec
from hooke.rule import Rule, State


@dataclass(frozen=True)
class Coded(Rule):
    """Any rule, with a correction that arrives whole although it is sent by fewer bits.

    Where what leaves x enters the center (`Rule.conserves`), the elastic difference is rounded before it is used with
    both signs. Elsewhere the correction is rounded, and what a remembering worker starts from is what it was told.

    Args:
        rule: What is exchanged.
        codec: What the correction is sent by.
    """

    rule: Rule
    codec: Codec

    def bind(self, num_workers: int) -> Coded:
        """The same around the rule for `num_workers`."""
        return Coded(self.rule.bind(num_workers), self.codec)

    def leading(self, leads: bool) -> Coded:
        """The same around the rule for the leader, or for another worker."""
        return Coded(self.rule.leading(leads), self.codec)

    def buffer_rule(self) -> Rule:
        """Averaged buffers travel by the same codec."""
        return Coded(self.rule.buffer_rule(), self.codec)

    @property
    def center_memory(self) -> tuple[str, ...]:  # type: ignore[override]
        """That of the rule inside."""
        return self.rule.center_memory

    @property
    def follows_leader(self) -> bool:  # type: ignore[override]
        """As the rule inside."""
        return self.rule.follows_leader

    def delta(self, x: Tensor, c: Tensor, state: State) -> Tensor:
        """That of the rule inside; rounded where it is the correction too."""
        delta = self.rule.delta(x, c, state)
        return self.codec.rounded(delta) if self.rule.conserves else delta

    def settle(self, x: Tensor, delta: Tensor, c: Tensor, state: State) -> Tensor:
        """That of the rule inside, rounded."""
        correction = self.rule.settle(x, delta, c, state)
        return correction if self.rule.conserves else self.codec.rounded(correction)

    def absorb_(self, c: Tensor, delta: Tensor, memory: State) -> None:
        """As the rule inside."""
        self.rule.absorb_(c, delta, memory)

    def exchange_(
        self,
        x: Tensor,
        c: Tensor,
        state: State,
        out: Tensor | None,
        scratch: Tensor | None = None,
        memory: State = (),
    ) -> None:
        """As `Rule.exchange_`; a remembering worker starts from what it was told, not from c."""
        delta = self.delta(x, c, state)
        self.absorb_(c, delta, memory)
        correction = self.settle(x, delta, c, state)
        for vector in state:
            vector.copy_(told_of(self.rule, x, correction))
        (x if out is None else out).copy_(x - correction if out is None else correction)


def told_of(rule: Rule, x: Float[Tensor, " n"], correction: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What a worker at `x` knows of the center when it is told to subtract `correction`; elastic: where it goes itself.

    With mixing m a worker keeps that share of its own values, so the correction is (1 - m) (x - c).
    """
    within: Any = rule.rule if isinstance(rule, Averaged) else rule
    mixing = getattr(within, "mixing", 0.0)
    return x - (correction / (1 - mixing) if mixing else correction)
