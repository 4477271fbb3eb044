"""A rule whose correction travels over a link that rounds: both ends end with the same values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
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
        sent: Where the last correction's bytes are put, so that nobody has to round it again.
    """

    rule: Rule
    codec: Codec
    sent: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    def bind(self, num_workers: int) -> Coded:
        """The same around the rule for `num_workers`."""
        return replace(self, rule=self.rule.bind(num_workers))

    def leading(self, leads: bool) -> Coded:
        """The same around the rule for the leader, or for another worker."""
        return replace(self, rule=self.rule.leading(leads))

    def buffer_rule(self) -> Rule:
        """Averaged buffers travel by the same codec."""
        return replace(self, rule=self.rule.buffer_rule())

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
        return self._rounded(delta) if self.rule.conserves else delta

    def settle(self, x: Tensor, delta: Tensor, c: Tensor, state: State) -> Tensor:
        """That of the rule inside, rounded."""
        correction = self.rule.settle(x, delta, c, state)
        return correction if self.rule.conserves else self._rounded(correction)

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
        if out is None:
            x.sub_(correction)
        else:
            out.copy_(correction)

    def _rounded(self, correction: Tensor) -> Tensor:
        coded = self.codec.encode(correction)
        self.sent[:] = [coded]
        return self.codec.decode(coded, torch.empty_like(correction))


def told_of(rule: Rule, x: Float[Tensor, " n"], correction: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What a worker at `x` knows of the center when it is told to subtract `correction`; elastic: where it goes itself.

    With mixing m a worker keeps that share of its own values, so the correction is (1 - m) (x - c).
    """
    within: Any = rule.rule if isinstance(rule, Averaged) else rule
    mixing = getattr(within, "mixing", 0.0)
    return x - (correction / (1 - mixing) if mixing else correction)
