"""Rules whose center has an optimizer of its own: each takes the workers' way gone as a gradient.

`d = sum over p workers of (x_i - start_i) / p` is minus the papers' pseudo-gradient. Where all workers exchange at once
(`hooke.ReplicatedCenter`) the center takes one step with the whole of it, as the papers have it; with a `LocalCenter`
each worker's share arrives by itself. The workers' own optimizers stay the user's, and their state stays with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from hooke.rule import AroundMean, FromCenter, State


@dataclass(frozen=True)
class Lookahead(AroundMean):
    """Lookahead: after k steps the slow weights go a share of the way, and the fast weights begin again from there.

        delta = alpha * (x - start) / p      c' = c + sum of deltas      x' = c'

    k is the worker's `communication_period`; the paper has 5. With several workers it is Lookahead around their mean;
    alpha = 1 is `LocalSGD`.

    Args:
        alpha: The slow weights' step, dimensionless, in (0, 1]. Default 0.5, the paper's.
        num_workers: p; `None` (default) follows the number of live workers.
        mixing: Which share of its own values a worker keeps, in [0, 1); see `DiLoCo`.

    Raises:
        ValueError: `alpha` outside its range, or `num_workers` below 1.

    Example:
        >>> import torch
        >>> rule = Lookahead(alpha=0.5).bind(num_workers=1)
        >>> rule.delta(torch.tensor([3.0]), torch.tensor([2.0]), (torch.tensor([2.0]),))
        tensor([0.5000])

    Reference:
        Zhang, Lucas, Hinton, Ba, "Lookahead optimizer: k steps forward, 1 step back", arXiv 1907.08610, Algorithm 1.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"Lookahead: alpha must be in (0, 1]. Got {self.alpha}. Use the paper's alpha=0.5.")

    @property
    def _share(self) -> float:
        return self.alpha * super()._share


@dataclass(frozen=True)
class SlowMo(AroundMean):
    """Slow momentum, and with it block momentum (BMUF): heavy-ball steps along the mean of the workers' ways.

        d = sum of (x_i - start_i) / p      b' = slow_momentum * b + d      c' = c + slow_lr * b'      x' = c'

    The paper divides d by the workers' learning rate before the momentum takes it in and multiplies by it after; while
    that rate is constant it cancels, and u = -b / lr. Under a schedule the two differ: this momentum keeps the lengths
    that were gone. BMUF with block momentum eta and block learning rate zeta is `SlowMo(eta, slow_lr=zeta)`; its
    Nesterov form, whose workers begin at W + eta * Delta, is `DiLoCo(zeta, eta)`. `slow_momentum=0` and `slow_lr=1` is
    `LocalSGD`, and with another `slow_lr` `Lookahead`.

    With a `LocalCenter` the momentum fades with each worker's exchange; the papers' methods need
    `hooke.ReplicatedCenter`.

    Args:
        slow_momentum: beta, dimensionless, in [0, 1).
        slow_lr: alpha, dimensionless, above 0. Default 1, the paper's.
        num_workers: p; `None` (default) follows the number of live workers.
        mixing: Which share of its own values a worker keeps, in [0, 1); see `DiLoCo`.

    Raises:
        ValueError: A setting outside its range.

    Example:
        >>> import torch
        >>> c, momentum = torch.tensor([10.0]), torch.tensor([4.0])
        >>> SlowMo(slow_momentum=0.5).absorb_(c, torch.tensor([1.0]), (momentum,))
        >>> c, momentum
        (tensor([13.]), tensor([3.]))

    Reference:
        Wang, Tantia, Ballas, Rabbat, "SlowMo: improving communication-efficient distributed SGD with slow momentum",
        arXiv 1910.00643, Algorithm 1. Chen, Huo, "Scalable training of deep learning machines by incremental block
        training with intra-block parallel optimization and blockwise model-update filtering", ICASSP 2016.
    """

    center_memory = ("momentum",)

    slow_momentum: float
    slow_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum("SlowMo", "slow_momentum", self.slow_momentum, "e.g. slow_momentum=0.5")
        _check_rate("SlowMo", "slow_lr", self.slow_lr, "the paper's slow_lr=1.0")

    def absorb_(self, c: Tensor, delta: Tensor, memory: State) -> None:
        """b = slow_momentum * b + delta; c = c + slow_lr * b."""
        (momentum,) = memory
        momentum.mul_(self.slow_momentum).add_(delta)
        c.add_(momentum, alpha=self.slow_lr)


@dataclass(frozen=True)
class DiLoCo(AroundMean):
    """DiLoCo: an outer Nesterov step along the mean of the workers' ways, which inner AdamW steps have gone.

        d = sum of (x_i - start_i) / p      b' = outer_momentum * b + d
        c' = c + outer_lr * (d + outer_momentum * b')      x' = c'

    -d is the pseudo-gradient, and the step is that of `torch.optim.SGD(nesterov=True)`. `outer_momentum=0` and
    `outer_lr=1` is `LocalSGD`. The paper's period is 500 inner steps (`communication_period=500`).

    With a `LocalCenter` each worker's share makes a step of its own, and the momentum fades p times as fast; the
    paper's method needs `hooke.ReplicatedCenter`. Without a barrier use `AsyncDiLoCo`.

    Args:
        outer_lr: Dimensionless, above 0. Default 0.7, the paper's.
        outer_momentum: Dimensionless, in [0, 1). Default 0.9, the paper's.
        num_workers: p; `None` (default) follows the number of live workers.
        mixing: m, which share of its own values a worker keeps, dimensionless, in [0, 1): `x' = m x + (1 - m) c'`; the
            next way is counted from c' all the same. Default 0. With `Worker(fragments=F)` this is Streaming DiLoCo.

    Raises:
        ValueError: A setting outside its range.

    Example:
        >>> import torch
        >>> c, momentum = torch.tensor([10.0]), torch.tensor([0.0])
        >>> DiLoCo(outer_lr=1.0, outer_momentum=0.5).absorb_(c, torch.tensor([2.0]), (momentum,))
        >>> c, momentum
        (tensor([13.]), tensor([2.]))

    Reference:
        Douillard et al., "DiLoCo: distributed low-communication training of language models", arXiv 2311.08105,
        Algorithm 1. Mixing: Douillard et al., "Streaming DiLoCo with overlapping communication: towards a distributed
        free lunch", arXiv 2501.18512, Algorithm 2.
    """

    center_memory = ("momentum",)

    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum("DiLoCo", "outer_momentum", self.outer_momentum, "the paper's outer_momentum=0.9")
        _check_rate("DiLoCo", "outer_lr", self.outer_lr, "the paper's outer_lr=0.7")

    def absorb_(self, c: Tensor, delta: Tensor, memory: State) -> None:
        """b = outer_momentum * b + delta; c = c + outer_lr * (delta + outer_momentum * b)."""
        (momentum,) = memory
        momentum.mul_(self.outer_momentum).add_(delta)
        c.add_(delta, alpha=self.outer_lr).add_(momentum, alpha=self.outer_lr * self.outer_momentum)


@dataclass(frozen=True)
class AsyncDiLoCo(FromCenter):
    """DiLoCo without a barrier, with delayed Nesterov momentum: plain steps, and every `delay` of them a momentum step.

        d = (x - start) / delay      b' = b + d      c' = c + outer_lr * d      x' = the center after all that
        after every delay-th arrival:      c' += outer_lr * outer_momentum * b'      b' = outer_momentum * b'

    So `delay` arrivals together move the center as one step of `DiLoCo` with their mean, and the momentum fades once in
    a round, not with each worker. This is the paper's form with momentum activation 0, its default; b is the paper's
    momentum after it has faded, with what has arrived since. The center counts arrivals element by element (the second
    vector of its memory), so that a block left out because of a stopped process keeps its own count.

    Args:
        outer_lr: Dimensionless, above 0. Default 0.7, as in `DiLoCo`.
        outer_momentum: Dimensionless, in [0, 1). Default 0.9, as in `DiLoCo`.
        delay: N, arrivals in a round; `None` (default) follows the number of live workers.

    Raises:
        ValueError: A setting outside its range.

    Example:
        >>> import torch
        >>> c, momentum, arrivals = torch.tensor([10.0]), torch.tensor([0.0]), torch.tensor([0.0])
        >>> rule = AsyncDiLoCo(outer_lr=1.0, outer_momentum=0.5, delay=2)
        >>> for _ in range(2):
        ...     rule.absorb_(c, torch.tensor([1.0]), (momentum, arrivals))
        ...     print(c.item(), momentum.item())
        11.0 1.0
        13.0 1.0

    Reference:
        Liu et al., "Asynchronous Local-SGD training for language modeling", arXiv 2401.09135, the delayed Nesterov
        update; its dynamic local updates (a period that follows a worker's speed) are the user's to set.
    """

    center_memory = ("momentum", "arrivals")

    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    delay: int | None = None

    def __post_init__(self) -> None:
        _check_momentum("AsyncDiLoCo", "outer_momentum", self.outer_momentum, "DiLoCo's outer_momentum=0.9")
        _check_rate("AsyncDiLoCo", "outer_lr", self.outer_lr, "DiLoCo's outer_lr=0.7")
        if self.delay is not None and self.delay < 1:
            raise ValueError(f"AsyncDiLoCo: delay must be at least 1. Got {self.delay}. Leave it out.")

    def bind(self, num_workers: int) -> AsyncDiLoCo:
        """N = num_workers unless it was given."""
        return self if self.delay is not None else replace(self, delay=max(1, num_workers))

    @property
    def _share(self) -> float:
        assert self.delay is not None, "bind(num_workers) comes before an exchange"
        return 1 / self.delay

    def absorb_(self, c: Tensor, delta: Tensor, memory: State) -> None:
        """A plain step; where it is the round's last, a step along the momentum too."""
        assert self.delay is not None, "bind(num_workers) comes before an exchange"
        momentum, arrivals = memory
        momentum.add_(delta)
        c.add_(delta, alpha=self.outer_lr)
        fewest, most = arrivals.add_(1).aminmax() if arrivals.numel() else (0, 0)
        if fewest >= self.delay:  # the common case, in few passes
            c.add_(momentum.mul_(self.outer_momentum), alpha=self.outer_lr)
            arrivals.zero_()
        elif most >= self.delay:
            complete = arrivals >= self.delay
            momentum.mul_(complete.to(c.dtype).mul_(self.outer_momentum - 1).add_(1))
            c.addcmul_(momentum, complete.to(c.dtype), value=self.outer_lr)
            arrivals.masked_fill_(complete, 0)


@dataclass(frozen=True)
class MDownpour(FromCenter):
    """Momentum DOWNPOUR: the center takes Nesterov steps along every worker's way, and stands at the look-ahead point.

        d = x - start      v' = momentum * v + d      c' = c + d + momentum * v'      x' = c'

    The paper defines it for `communication_period=1` and plain SGD inside: then d = -lr * gradient(c), gradients are
    taken where Nesterov's method wants them, and one worker is Nesterov's SGD. With a longer period d is the sum of
    several steps. `momentum=0` is `Downpour`.

    Args:
        momentum: Dimensionless, in [0, 1). Default 0.99, from section 5 of the paper.

    Raises:
        ValueError: `momentum` outside its range.

    Example:
        >>> import torch
        >>> c, momentum = torch.tensor([10.0]), torch.tensor([0.0])
        >>> MDownpour(momentum=0.5).absorb_(c, torch.tensor([2.0]), (momentum,))
        >>> c, momentum
        (tensor([13.]), tensor([2.]))

    Reference:
        arXiv 1412.6651, Algorithms 4 and 5.
    """

    center_memory = ("momentum",)

    momentum: float = 0.99

    def __post_init__(self) -> None:
        _check_momentum("MDownpour", "momentum", self.momentum, "the paper's momentum=0.99")

    def bind(self, num_workers: int) -> MDownpour:
        """The same for any number of workers."""
        return self

    @property
    def _share(self) -> float:
        return 1.0

    def absorb_(self, c: Tensor, delta: Tensor, memory: State) -> None:
        """v = momentum * v + delta; c = c + delta + momentum * v."""
        (velocity,) = memory
        velocity.mul_(self.momentum).add_(delta)
        c.add_(delta).add_(velocity, alpha=self.momentum)


def _check_momentum(rule: str, name: str, value: float, repair: str) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{rule}: {name} must be in [0, 1). Got {value}. Use {repair}.")


def _check_rate(rule: str, name: str, value: float, repair: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{rule}: {name} must be finite and above 0. Got {value}. Use {repair}.")
