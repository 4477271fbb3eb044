"""LSGD: workers are pulled toward the best of them instead of toward their mean."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from hooke.rule import EASGD, Rule, State


@dataclass(frozen=True)
class LSGD(Rule):
    """Leader SGD: the center is where the leader is, the worker of the lowest recent training loss.

        c' = x of the leader      x' = x - pull * (x - c')

    A worker's recent loss is the mean of what it has told `worker.record(loss=...)` since its last exchange. With
    `hooke.ReplicatedCenter` all exchange at once and c' is the present leader's x; with a `LocalCenter` it is where the
    leader was at its own last exchange. The leader itself goes on undisturbed.

    The paper's second level, a leader for each group of workers, is left out.

    Args:
        pull: Which part of the way to the leader a worker goes, dimensionless, in (0, 1]. Default 0.1, from the
            authors' own code.

    Raises:
        ValueError: `pull` outside its range.

    Example:
        >>> import torch
        >>> c, leader, other = torch.zeros(1), torch.tensor([3.0]), torch.tensor([1.0])
        >>> LSGD().leading(True).exchange_(leader, c, (), None)
        >>> LSGD().leading(False).exchange_(other, c, (), None)
        >>> leader, c, other
        (tensor([3.]), tensor([3.]), tensor([1.2000]))

    Reference:
        Teng, Gao, Chalus, Choromanska, Goldfarb, Weller, "Leader stochastic gradient descent for distributed training
        of deep learning models", arXiv 1905.10395; github.com/yunfei-teng/LSGD.
    """

    follows_leader = True

    pull: float = 0.1
    leads: bool | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.pull <= 1:
            raise ValueError(f"LSGD: pull must be in (0, 1]. Got {self.pull}. Use the authors' pull=0.1.")

    def bind(self, num_workers: int) -> LSGD:
        """The same for any number of workers."""
        return self

    def leading(self, leads: bool) -> LSGD:
        """This rule for the leader, or for another worker."""
        return replace(self, leads=leads)

    def delta(self, x: Tensor, c: Tensor, state: State) -> Tensor:
        """x - c from the leader, nothing from the others."""
        assert self.leads is not None, "leading(...) comes before an exchange"
        return x - c if self.leads else x.new_zeros(x.shape)

    def settle(self, x: Tensor, delta: Tensor, c: Tensor, state: State) -> Tensor:
        """pull * (x - c): nothing for the leader, where c is x now."""
        return x.new_zeros(x.shape) if self.leads else (x - c) * self.pull

    def buffer_rule(self) -> Rule:
        """Buffers are pulled toward their center by the same rate, whoever leads."""
        return EASGD(moving_rate=self.pull)
