"""A running average of the center, for evaluation: it never feeds back into training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from hooke.rule import Rule, State


@dataclass(frozen=True)
class Averaged(Rule):
    """Any rule, with a running average z of its center beside the center.

        z' = (1 - a) * z + a * c      just before c takes in a delta; z begins as c

    a is `rate`, or 1 / (t + 1) for `"uniform"`, t being the deltas that the center has taken in: then z is the mean of
    all values that the center has had. Evaluate with `worker.center_weights(average=True)`. Training is that of the
    rule inside, to the bit. The paper's ADOWNPOUR is `Averaged(Downpour())`, its MVADOWNPOUR
    `Averaged(Downpour(), rate=0.001)`; ASGD and MVASGD are the same with one worker and period 1.

    The average costs as much memory as the center once more; a uniform one, which counts its deltas element by element
    so that a block left out keeps its own count, twice.

    Args:
        rule: What is exchanged.
        rate: a, dimensionless, in (0, 1], or `"uniform"` (default). The paper has 0.001.

    Raises:
        ValueError: `rate` outside its range, or a rule that is averaged already.

    Example:
        >>> import torch
        >>> from hooke.rule import EASGD
        >>> rule = Averaged(EASGD(moving_rate=0.5), rate=0.25)
        >>> c = torch.tensor([4.0])
        >>> (average,) = rule.init_center(c)
        >>> for _ in range(2):
        ...     rule.exchange_(torch.tensor([12.0]), c, (), None, memory=(average,))
        ...     print(c.item(), average.item())
        8.0 4.0
        10.0 5.0

    Reference:
        arXiv 1412.6651, section 5 (ADOWNPOUR, MVADOWNPOUR); Polyak, Juditsky, "Acceleration of stochastic approximation
        by averaging", 1992.
    """

    rule: Rule
    rate: float | Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule) or isinstance(self.rule, Averaged):
            raise ValueError(
                f"Averaged: rule must be a hooke rule without an average. Got {self.rule!r}. Use e.g. "
                "hooke.Averaged(hooke.EASGD())."
            )
        if self.rate != "uniform" and not (isinstance(self.rate, float | int) and 0 < self.rate <= 1):
            raise ValueError(
                f"Averaged: rate must be in (0, 1] or 'uniform'. Got {self.rate!r}. Use the paper's rate=0.001."
            )
        own = ("average",) if self.rate != "uniform" else ("average", "averaged")
        for name in ("order", "conserves", "plain_point", "follows_leader"):
            object.__setattr__(self, name, getattr(self.rule, name))
        object.__setattr__(self, "center_memory", (*self.rule.center_memory, *own))

    def bind(self, num_workers: int) -> Averaged:
        """The same around the rule for `num_workers`."""
        return replace(self, rule=self.rule.bind(num_workers))

    def leading(self, leads: bool) -> Averaged:
        """The same around the rule for the leader, or for another worker."""
        return replace(self, rule=self.rule.leading(leads))

    def init_center(self, c: Tensor) -> State:
        """What the rule inside keeps, the average, and for a uniform one the count."""
        own = (c.clone(),) if self.rate != "uniform" else (c.clone(), c.new_zeros(c.shape))
        return (*self.rule.init_center(c), *own)

    def init(self, x: Tensor) -> State:
        """What the rule inside remembers."""
        return self.rule.init(x)

    def remembered(self, x: Tensor, c: Tensor) -> State:
        """What the rule inside remembers."""
        return self.rule.remembered(x, c)

    def delta(self, x: Tensor, c: Tensor, state: State) -> Tensor:
        """That of the rule inside."""
        return self.rule.delta(x, c, state)

    def settle(self, x: Tensor, delta: Tensor, c: Tensor, state: State) -> Tensor:
        """That of the rule inside."""
        return self.rule.settle(x, delta, c, state)

    def absorb_(self, c: Tensor, delta: Tensor, memory: State) -> None:
        """Average the center as it is, then let it absorb."""
        self.rule.absorb_(c, delta, self._average_(c, memory))

    def exchange_(
        self,
        x: Tensor,
        c: Tensor,
        state: State,
        out: Tensor | None,
        scratch: Tensor | None = None,
        memory: State = (),
    ) -> None:
        """Average the center as it is, then exchange as the rule inside does."""
        self.rule.exchange_(x, c, state, out, scratch, self._average_(c, memory))

    def buffer_rule(self) -> Rule:
        """Averaged buffers get an average of their own, which belongs to that of the parameters."""
        return Averaged(self.rule.buffer_rule(), self.rate)

    def _average_(self, c: Tensor, memory: State) -> State:
        """Move the average; the rest of the memory, which is the inner rule's."""
        if self.rate == "uniform":
            *rest, average, averaged = memory
            averaged.add_(1)
            average.addcdiv_(c - average, averaged)
        else:
            *rest, average = memory
            average.lerp_(c, self.rate)
        return tuple(rest)
