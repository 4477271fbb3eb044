"""WHAT is exchanged: each method as pure, elementwise functions of flat vectors, one small class per method.

In the papers' letters: `x` is a worker's parameters, `c` the center (x~), `alpha` the moving rate. A rule says what the
center absorbs (`delta`) and what leaves the worker (`settle`). Being elementwise, it can be applied to any slice, so
that a center may work block by block. Rules know nothing of where the center lives or of when to exchange.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, sub

State = tuple[Float[Tensor, " n"], ...]
"""What a worker remembers between exchanges: flat vectors as long as x; nothing for EASGD."""

Order = Literal["jacobi", "gauss-seidel"]

DEFAULT_BETA = 0.9
"""beta = p * alpha of every EASGD experiment in arXiv 1412.6651, section 5."""


class Rule(ABC):
    """One method. `c' = c + delta(x, c, state)`, then `x' = x - settle(x, delta, c', state)`.

    A method whose center has vectors of its own beside c (an outer momentum, a running average) names them in
    `center_memory` and says in `absorb_` how c and they take in a delta; then `c' = absorb_(c, delta, memory)`. They
    live where c lives: under the same locks, in the same checkpoint, equal on every rank. Where all workers exchange at
    once, `absorb_` gets the sum of their deltas.

    Attributes:
        center_memory: Names of the vectors that the center keeps beside c, each as long as c; none for most rules.
        conserves: Whether what leaves x is what enters c (`settle` returns its delta), as with a spring.
        order: `"jacobi"`: the exchange reads x before the optimizer's step and is subtracted after it, so the gradient
            belongs to the point before the exchange. `"gauss-seidel"`: the exchange happens between two steps, so the
            next gradient belongs to the point after it.
        plain_point: Whether x is the point without Nesterov's look-ahead (see `EAMSGD`).
        follows_leader: Whether the center must know whose training loss is lowest (see `LSGD`).
    """

    center_memory: tuple[str, ...] = ()
    conserves: bool = False
    plain_point: bool = False
    follows_leader: bool = False
    order: Order = "gauss-seidel"

    @abstractmethod
    def bind(self, num_workers: int) -> Rule:
        """This rule for `num_workers` live workers: rates that depend on the number become plain numbers."""

    def leading(self, leads: bool) -> Rule:
        """This rule for the worker of the lowest recent training loss, or for another; the same for most rules."""
        return self

    @abstractmethod
    def delta(self, x: Float[Tensor, " n"], c: Float[Tensor, " n"], state: State) -> Float[Tensor, " n"]:
        """What the center absorbs (adds)."""

    @abstractmethod
    def settle(
        self, x: Float[Tensor, " n"], delta: Float[Tensor, " n"], c: Float[Tensor, " n"], state: State
    ) -> Float[Tensor, " n"]:
        """What leaves x, given the center `c` after it absorbed `delta`."""

    def init_center(self, c: Float[Tensor, " n"]) -> State:
        """The vectors of `center_memory` where the center begins at `c`."""
        return tuple(torch.zeros_like(c) for _ in self.center_memory)

    def absorb_(self, c: Float[Tensor, " n"], delta: Float[Tensor, " n"], memory: State) -> None:
        """Let the center take in `delta`, which stays: c and the vectors of `center_memory` change in place."""
        c.add_(delta)

    def init(self, x: Float[Tensor, " n"]) -> State:
        """What a worker at `x` remembers at the start, when the center is there too."""
        return ()

    def remembered(self, x: Float[Tensor, " n"], c: Float[Tensor, " n"]) -> State:
        """What a worker remembers that has settled at `x` while the center went to `c`."""
        return self.init(x)

    def buffer_rule(self) -> Rule:
        """The rule for averaged buffers (batch-norm statistics): summing changes of several workers would overshoot."""
        return Average()

    def exchange_(
        self,
        x: Float[Tensor, " n"],
        c: Float[Tensor, " n"],
        state: State,
        out: Float[Tensor, " n"] | None,
        scratch: Float[Tensor, " n"] | None = None,
        memory: State = (),
    ) -> None:
        """Let `c` absorb and x settle, in place.

        Args:
            x: The worker's values.
            c: The center's values, changed in place.
            state: What the worker remembers, changed in place.
            out: Where the correction goes (may be x itself); `None`: it is subtracted from x at once.
            scratch: Memory that may be overwritten; spares making some, which takes as long as the arithmetic.
            memory: The vectors of `center_memory`, changed in place.
        """
        delta = self.delta(x, c, state)
        self.absorb_(c, delta, memory)
        correction = self.settle(x, delta, c, state)
        for old, new in zip(state, self.remembered(x - correction, c), strict=True):
            old.copy_(new)
        if out is None:
            x.sub_(correction)
        else:
            out.copy_(correction)


@dataclass(frozen=True)
class EASGD(Rule):
    """Elastic averaging SGD: a spring between each worker and the center.

        d  = alpha * (x - c)         the elastic difference, computed once
        x' = x - eta * g(x) - d      c' = c + d

    What leaves x enters c, so `c + sum of x_i` never changes by an exchange.

    Args:
        beta: p * alpha; alpha = beta / num_workers follows the number of live workers. Default 0.9, from section 5 of
            the paper.
        moving_rate: alpha itself, dimensionless, in (0, 1]; give it or `beta`, not both.
        order: `"jacobi"` (default; Algorithm 1: the gradient is taken before the elastic move) or `"gauss-seidel"` (the
            center sees the worker that has just stepped, and the next gradient sees the pulled worker).

    Raises:
        ValueError: A rate outside its range, both rates given, or an unknown order.

    Example:
        >>> import torch
        >>> rule = EASGD(beta=0.9).bind(num_workers=4)
        >>> rule.delta(torch.tensor([1.0]), torch.tensor([0.0]), ())
        tensor([0.2250])

    Reference:
        Zhang, Choromanska, LeCun, "Deep learning with elastic averaging SGD", arXiv 1412.6651, eqs. 5, 6, Algorithm 1.
    """

    conserves = True

    beta: float | None = None
    moving_rate: float | None = None
    order: Order = "jacobi"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.beta is not None and self.moving_rate is not None:
            raise ValueError(
                f"{name}: give beta or moving_rate, not both. Got beta={self.beta} and moving_rate={self.moving_rate}. "
                "Drop one: moving_rate = beta / num_workers."
            )
        if self.beta is None and self.moving_rate is None:
            object.__setattr__(self, "beta", DEFAULT_BETA)
        if self.moving_rate is not None and not 0 < self.moving_rate <= 1:
            raise ValueError(
                f"{name}: moving_rate must be in (0, 1]. Got {self.moving_rate}. "
                "Use beta / num_workers, e.g. 0.9 / 4 = 0.225."
            )
        if self.beta is not None and not 0 < self.beta <= 2:
            raise ValueError(
                f"{name}: beta must be in (0, 2]. Got {self.beta}. Use the paper's beta=0.9; "
                "beyond 2 the synchronous form is unstable for any learning rate."
            )
        if self.order not in ("jacobi", "gauss-seidel"):
            raise ValueError(f"{name}: order must be 'jacobi' or 'gauss-seidel'. Got {self.order!r}. Use 'jacobi'.")

    def bind(self, num_workers: int) -> EASGD:
        """alpha = beta / num_workers, at most 1; a fixed moving_rate stays."""
        if self.moving_rate is not None:
            return self
        assert self.beta is not None
        return replace(self, beta=None, moving_rate=min(1.0, self.beta / max(1, num_workers)))

    def rho(self, lr: float, num_workers: int) -> float:
        """The penalty coefficient rho = alpha / lr of the paper's objective (eq. 2); small rho = more exploration."""
        return self.bind(num_workers)._alpha / lr

    @property
    def _alpha(self) -> float:
        assert self.moving_rate is not None, "bind(num_workers) comes before an exchange"
        return self.moving_rate

    def delta(self, x: Tensor, c: Tensor, state: State) -> Tensor:
        """alpha * (x - c)."""
        return sub(x, c).mul_(self._alpha)

    def settle(self, x: Tensor, delta: Tensor, c: Tensor, state: State) -> Tensor:
        """That same difference."""
        return delta

    def buffer_rule(self) -> Rule:
        """Buffers are pulled by the same moving rate."""
        return EASGD(beta=self.beta, moving_rate=self.moving_rate)

    def exchange_(
        self,
        x: Tensor,
        c: Tensor,
        state: State,
        out: Tensor | None,
        scratch: Tensor | None = None,
        memory: State = (),
    ) -> None:
        """As `Rule.exchange_`, with fewer passes over the block.

        c' = c + alpha * (x - c) lies between c and x, and x' = x - alpha * (x - c) lies between x and c': two
        interpolations are the whole exchange. Beyond alpha = 1/2 the second would leave its interval and lose digits.
        """
        if out is None and self._alpha <= 0.5:
            c.lerp_(x, self._alpha)
            x.lerp_(c, self._alpha / (1 - self._alpha))
        elif out is None:
            difference = sub(x, c, out=scratch)
            c.add_(difference, alpha=self._alpha)
            x.sub_(difference, alpha=self._alpha)
        else:
            sub(x, c, out=out).mul_(self._alpha)
            c.add_(out)


@dataclass(frozen=True)
class EAMSGD(EASGD):
    """Elastic averaging with Nesterov momentum: the paper's Algorithm 2 around torch's `SGD(nesterov=True)`.

        v' = delta * v - eta * g(x + delta * v)
        x' = x + v' - alpha * (x - c)           c' = c + alpha * (x - c)

    torch stores the look-ahead point p = x + delta * v, so the spring pulls on the plain point
    `x = p + lr * momentum * momentum_buffer`. The momentum buffer is never communicated and the spring never changes
    it. Momentum 0 gives `EASGD` back.

    Args:
        beta: As in `EASGD`.
        moving_rate: As in `EASGD`.
        order: As in `EASGD`.

    Example:
        >>> EAMSGD(beta=0.9).bind(num_workers=2).moving_rate
        0.45

    Reference:
        arXiv 1412.6651, eq. 7 and Algorithm 2.
    """

    plain_point = True


class FromCenter(Rule):
    """The center absorbs a share of the way gone since the last exchange, and the worker goes on from the center.

    Attributes:
        mixing: Which share of its own values the worker keeps.
    """

    mixing: float = 0.0

    @property
    @abstractmethod
    def _share(self) -> float:
        """Which share of its way the center absorbs."""

    def init(self, x: Tensor) -> State:
        """Where the worker starts from."""
        return (x.clone(),)

    def remembered(self, x: Tensor, c: Tensor) -> State:
        """The center, from which the next way is counted, also by a worker that kept a share of its own values."""
        return self.init(c)

    def delta(self, x: Tensor, c: Tensor, state: State) -> Tensor:
        """The share of the way gone since the last exchange."""
        return (x - state[0]) * self._share

    def settle(self, x: Tensor, delta: Tensor, c: Tensor, state: State) -> Tensor:
        """x - c: the worker goes on from the center; with `mixing`, a share of it."""
        return x - c if not self.mixing else (x - c) * (1 - self.mixing)

    def exchange_(
        self,
        x: Tensor,
        c: Tensor,
        state: State,
        out: Tensor | None,
        scratch: Tensor | None = None,
        memory: State = (),
    ) -> None:
        """As `Rule.exchange_`, without making memory."""
        way = sub(x, state[0], out=scratch)
        if self.center_memory:
            self.absorb_(c, way.mul_(self._share), memory)
        else:
            c.add_(way, alpha=self._share)  # the same in one pass
        state[0].copy_(c)
        if out is not None:
            sub(x, c, out=out)
            if self.mixing:
                out.mul_(1 - self.mixing)
        elif self.mixing:
            x.lerp_(c, 1 - self.mixing)
        else:
            x.copy_(c)


@dataclass(frozen=True)
class Downpour(FromCenter):
    """DOWNPOUR: the center adds up every worker's way since its last exchange, and the worker goes on from the center.

        delta = x - start      c' = c + delta      x' = c'      start' = c'

    Stable only while `num_workers * (1 - (1 - lr * curvature) ** communication_period)` is below 2 where all workers
    exchange at once, below about pi / 2 where they take turns; `hooke.stability_of` says exactly.

    Example:
        >>> import torch
        >>> x, c = torch.tensor([3.0]), torch.tensor([10.0])
        >>> Downpour().delta(x, c, (torch.tensor([2.0]),))
        tensor([1.])

    Reference:
        Dean et al., "Large scale distributed deep networks", 2012, as in arXiv 1412.6651, Algorithm 3.
    """

    def bind(self, num_workers: int) -> Downpour:
        """The same for any number of workers."""
        return self

    @property
    def _share(self) -> float:
        return 1.0


@dataclass(frozen=True)
class AroundMean(FromCenter):
    """The center absorbs the mean of the workers' ways: each brings one part in p.

    With `mixing` m a worker keeps that share of its own values, `x' = m x + (1 - m) c'`, and its next way is counted
    from c' all the same (Douillard et al., "Streaming DiLoCo with overlapping communication", arXiv 2501.18512,
    Algorithm 2).
    """

    num_workers: int | None = field(default=None, kw_only=True)
    mixing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.mixing < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: mixing must be in [0, 1). Got {self.mixing}. Leave it out, or use e.g. 0.5.")
        if self.num_workers is not None and self.num_workers < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: num_workers must be at least 1. Got {self.num_workers}. Leave it out.")

    def bind(self, num_workers: int) -> Self:
        """p = num_workers unless it was given."""
        return self if self.num_workers is not None else replace(self, num_workers=max(1, num_workers))

    @property
    def _share(self) -> float:
        assert self.num_workers is not None, "bind(num_workers) comes before an exchange"
        return 1 / self.num_workers


@dataclass(frozen=True)
class LocalSGD(AroundMean):
    """Local SGD: the center is the mean of the workers, and each goes on from there.

        delta = (x - start) / p      c' = c + sum of deltas      x' = c'      start' = c'

    With `hooke.ReplicatedCenter` all workers exchange at once and c' is the exact mean of the x_i. With a `LocalCenter`
    each worker exchanges when it is ready (asynchronous local SGD): the center then moves by each worker's way / p.

    Args:
        num_workers: p; `None` (default) follows the number of live workers.
        mixing: Which share of its own values a worker keeps, in [0, 1); see `hooke.DiLoCo`.

    Raises:
        ValueError: `num_workers` below 1, or `mixing` outside its range.

    Example:
        >>> import torch
        >>> rule = LocalSGD().bind(num_workers=2)
        >>> rule.delta(torch.tensor([3.0]), torch.tensor([10.0]), (torch.tensor([2.0]),))
        tensor([0.5000])

    Reference:
        Stich, "Local SGD converges fast and communicates little", arXiv 1805.09767, Algorithm 1.
    """

    num_workers: int | None = None


@dataclass(frozen=True)
class Average(Rule):
    """The buffers' rule beside rules that go on from the center: the center takes in a share 1/p of x, x becomes it.

        delta = (x - c) / p      c' = c + delta      x' = c'

    Unlike a sum of ways gone it stays within the workers' values, so that an averaged variance is never negative.

    Args:
        num_workers: p; `None` (default) follows the number of live workers.
    """

    num_workers: int | None = None

    def bind(self, num_workers: int) -> Average:
        """p = num_workers."""
        return replace(self, num_workers=max(1, num_workers))

    def delta(self, x: Tensor, c: Tensor, state: State) -> Tensor:
        """The distance from the center, divided by p."""
        assert self.num_workers is not None, "bind(num_workers) comes before an exchange"
        return (x - c) / self.num_workers

    def settle(self, x: Tensor, delta: Tensor, c: Tensor, state: State) -> Tensor:
        """x - c: the worker takes the center's values."""
        return x - c
