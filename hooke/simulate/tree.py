"""A tree of centers on the virtual clock: workers are the leaves, nobody waits, and a link serves few neighbors."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hooke.simulate.cluster import Cluster
from hooke.simulate.pace import TICKS, Leg, Pace, ticks

_THERE, _ARRIVES, _TURN = 0, 1, 2  # at one moment: first what is there, then what may use the link, then new messages


@dataclass(frozen=True)
class Tree:
    """EASGD Tree: every node sends its values to its neighbors from time to time and moves toward what it receives.

        y from a neighbor:   x' = x + alpha (y - x)        alpha = beta / (d + 1)

    with d the degree; a leaf also takes gradient steps. The root is the center. Level 0 are the leaves; `up[i]` is the
    period at which nodes of level i send to their parents, `down[i]` that at which their parents send to them, in
    steps (for inner nodes, which take none, in mean step times).

    The algorithm is written after the thesis from memory and its abstract; its chapter could not be read here.

    Args:
        leaves: Workers, at least 2.
        degree: d, children of a node (of the last node of a level there may be fewer).
        up: Periods, one a level or one for all.
        down: Periods, one a level or one for all.

    Raises:
        ValueError: Numbers out of range, or periods that do not fit the levels.

    Example:
        >>> tree = Tree.multi_scale(256, degree=16, leaf_period=10, inner_period=100)
        >>> tree.sizes, tree.up, tree.down
        ((256, 16, 1), (10, 100), (10, 100))

    Reference:
        After S. Zhang, "Distributed stochastic optimization for deep learning", thesis, arXiv 1605.02216, chapter 6.
    """

    leaves: int
    degree: int = 16
    up: Sequence[int] = (10,)
    down: Sequence[int] = (10,)

    def __post_init__(self) -> None:
        if self.leaves < 2 or self.degree < 2:
            raise ValueError(
                f"Tree: leaves and degree must be at least 2. Got leaves={self.leaves}, degree={self.degree}. "
                "Use e.g. Tree(leaves=256, degree=16)."
            )
        for name in ("up", "down"):
            periods = tuple(getattr(self, name))
            levels = len(self.sizes) - 1
            periods = periods * levels if len(periods) == 1 else periods
            if len(periods) != levels or min(periods) < 1:
                raise ValueError(
                    f"Tree: {name} must be periods of at least 1, one for each of {levels} levels below the root. Got "
                    f"{periods}. Use one period for all, e.g. (10,)."
                )
            object.__setattr__(self, name, periods)

    @classmethod
    def multi_scale(cls, leaves: int, *, degree: int = 16, leaf_period: int = 10, inner_period: int = 100) -> Tree:
        """Both ways at `leaf_period` between leaves and their parents, at `inner_period` above (thesis: tau1, tau2)."""
        levels = len(_sizes(leaves, degree)) - 1
        periods = (leaf_period,) + (inner_period,) * (levels - 1)
        return cls(leaves, degree, periods, periods)

    @classmethod
    def up_down(cls, leaves: int, *, degree: int = 16, up_period: int = 8, down_period: int = 80) -> Tree:
        """Upward at `up_period`, downward at `down_period`, at every level (thesis: tau_up, tau_down)."""
        return cls(leaves, degree, (up_period,), (down_period,))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes of each level, from the leaves to the root."""
        return _sizes(self.leaves, self.degree)

    @property
    def parents(self) -> list[int]:
        """The parent of each node; -1 for the root. Nodes are numbered level by level, so leaves are 0 to p - 1."""
        parents, first = [], 0
        for size in self.sizes:
            first += size
            parents += [first + number // self.degree for number in range(size)]
        return [*parents[:-1], -1]


def _sizes(leaves: int, degree: int) -> tuple[int, ...]:
    sizes = [leaves]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // degree))
    return tuple(sizes)


class Message(NamedTuple):
    """One vector on its way from a node to a neighbor.

    Attributes:
        kind: `"sent"`: it holds the source's values of this moment; `"received"`: the target moves toward it;
            `"missed"`: not sent, because the last one on the same way had not arrived.
        at: Seconds of the virtual clock.
        source: Number of the node that sends.
        target: Number of the node that receives.
        step: For a leaf, sending: steps it has taken. For a leaf, receiving: steps after which it moves, the first that
            ends at `at` or later. 0 for inner nodes.
    """

    kind: Literal["sent", "received", "missed"]
    at: float
    source: int
    target: int
    step: int


class _Node:
    __slots__ = ("below", "first", "free_in", "free_out", "leg", "level", "parent")

    def __init__(self, parent: int, level: int) -> None:
        self.parent, self.level, self.below = parent, level, list[int]()
        self.free_in = self.free_out = 0
        self.leg, self.first = Leg(0, ()), 0  # of a leaf: its steps until it sends next, and those before


def tree_timeline(cluster: Cluster, tree: Tree, *, values: int, seconds: float, seed: int = 0) -> Iterator[Message]:
    """All messages of a run in order of time.

    Every node has one link of `cluster.bandwidth`, full duplex: what it sends goes out one after the other, and what
    arrives from several comes in one after the other, first come, first served. Inner nodes keep the mean step time of
    worker 0 and all start at 0.

    Args:
        cluster: `num_workers` are the leaves. No failures, no lost messages, no shards.
        tree: Who is whose parent, and how often each sends.
        values: In the vector.
        seconds: When the run ends.
        seed: Of the steps' jitter and drift.

    Raises:
        ValueError: A cluster that does not fit.

    Example:
        >>> pair = Cluster(num_workers=2, step_seconds=0.1, bandwidth=1e9)
        >>> tree = Tree(leaves=2, degree=2, up=(10,), down=(20,))
        >>> for message in tree_timeline(pair, tree, values=1_000_000, seconds=0.1):
        ...     print(*message)
        sent 0.0 0 2 0
        sent 0.0 1 2 0
        sent 0.0 2 0 0
        sent 0.0 2 1 0
        received 0.032 0 2 0
        received 0.032 2 0 1
        received 0.064 1 2 0
        received 0.064 2 1 1
    """
    if cluster.num_workers != tree.leaves or cluster.failures or cluster.lost or cluster.shards > 1:
        raise ValueError(
            f"tree_timeline: the cluster must have {tree.leaves} workers, shards=1, lost=0 and no failures. Got "
            f"{cluster.num_workers} workers, shards={cluster.shards}, lost={cluster.lost}, {len(cluster.failures)} "
            "failures. Simulate those with `timeline`."
        )
    return _Course(cluster, tree, ticks(values * 32 / cluster.bandwidth), ticks(seconds), seed).messages()


class _Course:
    """On the heap: (tick, what, source, target); target -1: all nodes below."""

    def __init__(self, cluster: Cluster, tree: Tree, transfer: int, horizon: int, seed: int) -> None:
        self.cluster, self.tree, self.transfer, self.horizon = cluster, tree, transfer, horizon
        self.latency = ticks(cluster.latency)
        levels = [level for level, size in enumerate(tree.sizes) for _ in range(size)]
        self.nodes = [_Node(parent, level) for parent, level in zip(tree.parents, levels, strict=True)]
        for number, node in enumerate(self.nodes[:-1]):
            self.nodes[node.parent].below.append(number)
        self.paces = [Pace(cluster, number, tree.up[0], seed) for number in range(tree.leaves)]
        self.beat = ticks(cluster.seconds_of(0))
        self.under_way: set[tuple[int, int]] = set()
        self.heap: list[tuple[int, int, int, int]] = []

    def messages(self) -> Iterator[Message]:
        heap = self.heap
        for number, node in enumerate(self.nodes):
            heap += [(0, _TURN, number, node.parent)] * (node.parent >= 0) + [(0, _TURN, number, -1)] * bool(node.below)
        heapq.heapify(heap)
        while heap and heap[0][0] <= self.horizon:
            now, what, source, target = heapq.heappop(heap)
            if what == _THERE:
                self.under_way.discard((source, target))
                yield Message("received", now / TICKS, source, target, self._step_after(target, now))
            elif what == _ARRIVES:
                node = self.nodes[target]
                node.free_in = max(now, node.free_in) + self.transfer
                heapq.heappush(heap, (node.free_in, _THERE, source, target))
            else:
                yield from self._send(now, source, target)

    def _send(self, now: int, source: int, target: int) -> Iterator[Message]:
        node = self.nodes[source]
        step = self._next_turn(now, source, target)
        for each in node.below if target < 0 else [target]:
            if (source, each) in self.under_way:
                yield Message("missed", now / TICKS, source, each, step)
                continue
            self.under_way.add((source, each))
            begins = max(now, node.free_out)
            node.free_out = begins + self.transfer
            heapq.heappush(self.heap, (begins + self.latency, _ARRIVES, source, each))
            yield Message("sent", now / TICKS, source, each, step)

    def _next_turn(self, now: int, source: int, target: int) -> int:
        """Put the source's next turn on the heap; the steps that it has taken now."""
        node = self.nodes[source]
        if node.level:
            period = self.tree.down[node.level - 1] if target < 0 else self.tree.up[node.level]
            heapq.heappush(self.heap, (now + period * self.beat, _TURN, source, target))
            return 0
        node.first += len(node.leg.ends)
        node.leg = self.paces[source].leg(now, self.tree.up[0])
        heapq.heappush(self.heap, (node.leg.end, _TURN, source, target))
        return node.first

    def _step_after(self, target: int, now: int) -> int:
        node = self.nodes[target]
        return 0 if node.level else node.first + 1 + bisect_left(node.leg.ends, now - node.leg.start)
