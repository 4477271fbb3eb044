"""What a timeline does to workers on a noisy quadratic: a leg at a time, so that thousands of workers are cheap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hooke.simulate.bowl import Bowl, Motion
from hooke.simulate.event import Event
from hooke.simulate.tree import Message, Tree

Method = Literal["easgd", "downpour", "local-sgd"]


class Descent:
    """Workers and their center on a `Bowl`, moved by the events of a `timeline`.

    Between two exchanges a worker's steps are one linear map and one normal draw, exact in distribution; without noise
    the numbers are those of `hooke.EASGD`, `hooke.EAMSGD`, `hooke.Downpour` and `hooke.LocalSGD`, up to rounding.

        easgd       d = alpha (x - c)          c' = c + d              the correction is d
        downpour    d = x - start              c' = c + d              x - c', start' = c'
        local-sgd   d = (x - start) / p        c' = c + d              x - c', start' = c'

    with alpha = beta / p for p live workers. With momentum, easgd is EAMSGD: the spring pulls on the plain point. As in
    hooke, the next gradient after an exchange is taken before the move in easgd ("jacobi"), after it in the others.

    Args:
        bowl: The loss and the optimizer.
        num_workers: All that ever live.
        method: `"easgd"`, `"downpour"` or `"local-sgd"`.
        start: Where the center and all workers begin; one number, or one for each direction.
        beta: Of easgd.
        moving_rate: alpha of easgd, instead of beta / p.
        synchronous: Whether the timeline was made so: the exchanges of one moment happen at once.
        seed: Of the gradient noise.

    Attributes:
        center: c, shape (directions,).

    Example:
        >>> from hooke.simulate import Cluster, timeline
        >>> run = Descent(Bowl(curvatures=(1.0,), lr=0.1), num_workers=4)
        >>> for event in timeline(Cluster(4), values=1, communication_period=1, steps=100):
        ...     run.absorb(event)
        >>> bool(run.excess < 1e-5)
        True

    Reference:
        Zhang, Choromanska, LeCun, arXiv 1412.6651, Algorithms 1 to 3.
    """

    def __init__(
        self,
        bowl: Bowl,
        num_workers: int,
        *,
        method: Method = "easgd",
        start: float | Sequence[float] = 1.0,
        beta: float = 0.9,
        moving_rate: float | None = None,
        synchronous: bool = False,
        seed: int = 0,
    ) -> None:
        if method not in ("easgd", "downpour", "local-sgd"):
            raise ValueError(f"Descent: method must be easgd, downpour or local-sgd. Got {method!r}. Use 'easgd'.")
        self.bowl, self.method, self.beta, self.moving_rate = bowl, method, beta, moving_rate
        self._motion = Motion(bowl, num_workers, start, seed)
        self.state = self._motion.state
        self.center = self.state[0, 0].copy()
        self._start = self.state[:, 0].copy()
        self._at = [0] * num_workers
        self._pending: list[tuple[np.ndarray, int] | None] = [None] * num_workers
        self._synchronous, self._round, self._moment = synchronous, [], 0.0

    @property
    def excess(self) -> float:
        """f(center) - f(0)."""
        self._finish_round()
        return float(self.bowl.excess(self.center))

    def absorb(self, event: Event) -> None:
        """Let the next event happen."""
        if self._round and event.absorbed != self._moment:
            self._finish_round()
        worker = event.worker
        if event.kind == "exchange":
            x = self._arrive(worker, event.step)[0]
            if self._synchronous:
                self._moment = event.absorbed
                self._round.append((event, x))
            else:
                delta = self._delta(x, worker, event.workers)
                self.center += delta
                self._settle(x, delta, event)
        elif event.kind in ("died", "joined"):
            self.state[worker] = 0
            self.state[worker, 0] = self._start[worker] = self.center
            self._at[worker], self._pending[worker] = 0, None

    def _finish_round(self) -> None:
        deltas = [self._delta(x, event.worker, event.workers) for event, x in self._round]
        for delta in deltas:
            self.center += delta
        for (event, x), delta in zip(self._round, deltas, strict=True):
            self._settle(x, delta, event)
        self._round = []

    def _delta(self, x: np.ndarray, worker: int, live: int) -> np.ndarray:
        if self.method == "easgd":
            alpha = min(1.0, self.beta / live) if self.moving_rate is None else self.moving_rate
            return alpha * (x - self.center)
        way = x - self._start[worker]
        return way if self.method == "downpour" else way / live

    def _settle(self, x: np.ndarray, delta: np.ndarray, event: Event) -> None:
        if self.method != "easgd":
            delta = x - self.center
            self._start[event.worker] = self.center
        # easgd is "jacobi": the gradient of the step after the exchange belongs to the point before it
        self._pending[event.worker] = delta, max(event.settled_step, event.step + (self.method == "easgd"))

    def _arrive(self, worker: int, step: int) -> np.ndarray:
        """The worker's state once it has taken `step` steps, with the correction that settled on the way."""
        self._motion.go_(worker, step - self._at[worker])
        self._at[worker] = step
        pending = self._pending[worker]
        if pending:
            correction, settled = pending
            self.state[worker] -= self._motion.leg(step - settled).power[:, 0] * correction
            self._pending[worker] = None
        return self.state[worker]


class TreeDescent:
    """The nodes of a tree on a `Bowl`, moved by the messages of a `tree_timeline`.

    Args:
        bowl: The loss and the optimizer of the leaves.
        tree: Who is whose parent.
        start: Where all nodes begin; one number, or one for each direction.
        beta: alpha = beta / (degree + 1).
        seed: Of the gradient noise.

    Attributes:
        center: The root's x, shape (directions,).

    Example:
        >>> from hooke.simulate import Cluster, Tree, tree_timeline
        >>> tree = Tree(leaves=8, degree=2, up=(1,), down=(1,))
        >>> run = TreeDescent(Bowl(curvatures=(1.0,), lr=0.1), tree)
        >>> for message in tree_timeline(Cluster(8), tree, values=1, seconds=500):
        ...     run.absorb(message)
        >>> bool(run.excess < 1e-5)
        True
    """

    def __init__(
        self, bowl: Bowl, tree: Tree, *, start: float | Sequence[float] = 1.0, beta: float = 0.9, seed: int = 0
    ) -> None:
        self.bowl, self.leaves, self.alpha = bowl, tree.leaves, beta / (tree.degree + 1)
        self._motion = Motion(bowl, tree.leaves, start, seed)
        self.state = self._motion.state
        self.inner = np.tile(self.state[0, 0], (sum(tree.sizes) - tree.leaves, 1))
        self.center = self.inner[-1]
        self._at = [0] * tree.leaves
        self._under_way: dict[tuple[int, int], np.ndarray] = {}
        self._waiting: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(tree.leaves)]

    @property
    def excess(self) -> float:
        """f(root) - f(0)."""
        return float(self.bowl.excess(self.center))

    def absorb(self, message: Message) -> None:
        """Let the next message leave or arrive."""
        way = message.source, message.target
        if message.kind == "sent":
            self._under_way[way] = self._values(message.source, message.step).copy()
        elif message.kind == "received" and message.target < self.leaves:
            self._waiting[message.target].append((message.step, self._under_way.pop(way)))
        elif message.kind == "received":
            x = self.inner[message.target - self.leaves]
            x += self.alpha * (self._under_way.pop(way) - x)

    def _values(self, node: int, step: int) -> np.ndarray:
        if node >= self.leaves:
            return self.inner[node - self.leaves]
        x, waiting = self.state[node, 0], self._waiting[node]
        while waiting and waiting[0][0] <= step:
            settled, y = waiting.pop(0)
            self._go(node, settled)
            x += self.alpha * (y - x)
        self._go(node, step)
        return x

    def _go(self, leaf: int, step: int) -> None:
        self._motion.go_(leaf, step - self._at[leaf])
        self._at[leaf] = step
