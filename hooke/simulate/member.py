"""One worker of a simulated run: a real `hooke.Worker`, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hooke.exchange import Overlapped
from hooke.journal import Journal
from hooke.rule import Rule
from hooke.simulate.center import VirtualCenter
from hooke.worker import Worker

Scheduler = torch.optim.lr_scheduler.LRScheduler


class OnCall(Executor):
    """Holds one piece of work until it is told to do it, and the result until it is told to hand it over.

    In the place of an `Overlapped`'s thread it makes an exchange begin, reach the center and come back when the virtual
    clock says.
    """

    def __init__(self) -> None:
        self._work: Callable[[], Any] | None = None
        self._future: Future[Any] = Future()
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def has_work(self) -> bool:
        """Whether there is work that is not done."""
        return self._work is not None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take in the work."""
        self._work, self._future = lambda: fn(*args, **kwargs), Future()
        return self._future

    def do(self) -> None:
        """Do it."""
        assert self._work is not None
        self._result = self._error = None
        work, self._work = self._work, None
        try:
            self._result = work()
        except Exception as error:
            self._error = error

    def hand_over(self) -> None:
        """Let the result be seen."""
        if self._error is not None:
            self._future.set_exception(self._error)
        else:
            self._future.set_result(self._result)


class Heard(Journal):
    """Keeps what a worker says about its divergence, for the simulation to tell once."""

    said: tuple[float, str] | None = None

    def diverging(self, growth: float, step: int, said: str) -> None:
        """Keep it."""
        self.said = growth, said


class Member:
    """A worker and its place in the run.

    Args:
        number: The worker's number.
        model: Its own.
        optimizer: Of that model.
        scheduler: Of that optimizer; it steps with it.
        rule: What is exchanged.
        center: Its end of the center.
        options: Of the `hooke.Worker`.

    Attributes:
        calls: Calls of `optimizer.step()` so far.
        reached: Steps it had taken at its last event.
        seen: Exchanges of all workers at its last event.
        examples: Training examples used.
        has_gradient: Whether the gradient for the next call is there.
    """

    def __init__(
        self,
        number: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler | None,
        rule: Rule,
        center: VirtualCenter,
        options: dict[str, Any],
    ) -> None:
        self.number, self.center, self._scheduler = number, center, scheduler
        self.worker = Worker(model, optimizer, rule, center=center, **options)
        self.worker.run = None  # inside `hooke run`, too: a simulation leaves rows of its own, in virtual seconds
        self.worker.start()
        self.worker._journal = self._heard = Heard(None, center)
        self.worker._exchange.measure_always()  # else when it warns would depend on how fast this machine is
        self._beside = OnCall()
        if isinstance(self.worker._exchange, Overlapped):
            self.worker._exchange.run_by(self._beside)
        self._settles_at: int | None = None  # the step after which what the center has absorbed is subtracted
        self.calls = self.reached = self.examples = 0
        self.seen = center.exchanges
        self.has_gradient = False
        self._losses: list[float] = []

    @property
    def is_waiting(self) -> bool:
        """Whether an exchange beside the steps has begun and has not reached the center yet."""
        return self._beside.has_work

    def is_busy_after(self, step: int) -> bool:
        """Whether an exchange beside the steps is still under way when `step` steps are taken."""
        return self.is_waiting or (self._settles_at is not None and self._settles_at > step)

    def is_ready(self, call: int) -> bool:
        """Whether the next call of `optimizer.step()` is number `call`, and its gradient is there."""
        return self.calls > call or (self.calls == call and self.has_gradient)

    def computed(self, loss: float, batch: Any) -> None:
        """Its gradient is there."""
        self.has_gradient = True
        self._losses.append(loss)
        if self.worker.rule.follows_leader:
            self.worker.record(loss=loss)
        first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
        self.examples += 0 if first is None or first.dim() == 0 else first.shape[0]

    def step(self) -> None:
        """Call `optimizer.step()`; a correction that arrives before its end is subtracted after it."""
        if self._settles_at is not None and self._settles_at <= self.calls + 1:
            self._hand_over()
        self.worker.optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        self.calls += 1
        self.has_gradient = False

    def absorb(self, settled_step: int) -> None:
        """Let the exchange that waits reach the center; its correction is subtracted after `settled_step` steps."""
        self._beside.do()
        self._settles_at = settled_step
        if settled_step <= self.calls:
            self._hand_over()
            with torch.no_grad():
                self.worker._exchange.after_step()

    def _hand_over(self) -> None:
        self._beside.hand_over()
        self._settles_at = None

    def take_losses(self) -> list[float]:
        """The losses since the last call."""
        losses, self._losses = self._losses, []
        return losses

    def take_divergence(self) -> tuple[float, str] | None:
        """How much its distance from the center has grown, and what to do; said once, where it seems to diverge."""
        said, self._heard.said = self._heard.said, None
        return said

    def end(self) -> None:
        """The worker dies, or the simulation ends; an exchange that has not reached the center never does."""
        if self.is_waiting:
            self.center.lost = True
            self.absorb(self.calls)
        elif self._settles_at is not None:
            self._hand_over()
        self.worker.stop(finished=False)
