"""EASGD Tree: who is whose parent, links as queues, and the numbers against a literal loop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hooke.simulate import Bowl, Cluster, Message, Tree, TreeDescent, tree_timeline

MILLION = 1_000_000


def messages(cluster: Cluster, tree: Tree, **settings) -> list[Message]:
    return list(tree_timeline(cluster, tree, **{"values": MILLION, "seconds": 20.0, **settings}))


def test_levels_and_parents() -> None:
    tree = Tree(leaves=7, degree=3)
    assert tree.sizes == (7, 3, 1)
    assert tree.parents == [7, 7, 7, 8, 8, 8, 9, 10, 10, 10, -1]
    assert Tree(leaves=10_000, degree=16).sizes == (10_000, 625, 40, 3, 1)
    assert Counter(Tree(leaves=256, degree=16).parents[:-1]) == dict.fromkeys(range(256, 273), 16)


def test_the_two_schedules() -> None:
    both = Tree.multi_scale(256, degree=4, leaf_period=5, inner_period=50)
    assert both.up == both.down == (5, 50, 50, 50)
    apart = Tree.up_down(256, degree=4, up_period=8, down_period=80)
    assert (apart.up, apart.down) == ((8,) * 4, (80,) * 4)
    sent = Counter((m.source > m.target) for m in messages(Cluster(256, 0.1), apart, seconds=79.99) if m.kind == "sent")
    assert sent[False] == 100 * 340  # up, every 0.8 s
    assert sent[True] == 10 * 340  # down, every 8 s


def test_messages_wait_for_links_as_written_out() -> None:
    """Every message leaves when those before it have left, and comes in when those before it are in."""
    cluster, tree = Cluster(9, 0.1, jitter=0.3, bandwidth=1e9, latency=0.004), Tree(leaves=9, degree=3, down=(7,))
    run = messages(cluster, tree)
    out, into, arriving = [0.0] * 13, [0.0] * 13, []
    waited = 0
    for message in run:
        if message.kind == "sent":
            begins = max(message.at, out[message.source])
            out[message.source] = begins + 0.032
            arriving.append((begins + 0.004, message.source, message.target))
    there = {}
    for at, source, target in sorted(arriving):
        waited += into[target] > at
        into[target] = max(at, into[target]) + 0.032
        there.setdefault((source, target), []).append(into[target])
    for message in run:
        if message.kind == "received":
            assert message.at == pytest.approx(there[message.source, message.target].pop(0), abs=1e-6)
    assert waited > 50
    assert [m.at for m in run] == sorted(m.at for m in run)


def test_what_has_not_arrived_is_not_sent_again() -> None:
    run = messages(Cluster(4, 0.1, bandwidth=1e7), Tree(leaves=4, degree=4), seconds=200.0)
    under_way = set()
    for message in run:
        way = message.source, message.target
        if message.kind == "sent":
            assert way not in under_way
            under_way.add(way)
        elif message.kind == "missed":
            assert way in under_way
        else:
            under_way.remove(way)
    assert Counter(m.kind for m in run)["missed"] > 100


def literal(run: list[Message], bowl: Bowl, tree: Tree, beta: float) -> np.ndarray:
    """Every leaf a loop over its steps, every node a vector, every message a copy."""
    h, alpha = np.array(bowl.curvatures), beta / (tree.degree + 1)
    x = [np.ones(len(h)) for _ in tree.parents]
    v = [np.zeros(len(h)) for _ in tree.parents]
    steps = [0] * tree.leaves
    due: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(tree.leaves)]
    post = {}

    def go(leaf: int, until: int) -> None:
        while steps[leaf] < until:
            v[leaf] = bowl.momentum * v[leaf] - bowl.lr * h * (x[leaf] + bowl.momentum * v[leaf])
            x[leaf] = x[leaf] + v[leaf]
            steps[leaf] += 1
            for _, y in [each for each in due[leaf] if each[0] == steps[leaf]]:
                x[leaf] = x[leaf] + alpha * (y - x[leaf])

    for message in run:
        way = message.source, message.target
        if message.kind == "sent":
            if message.source < tree.leaves:
                go(message.source, message.step)
            post[way] = x[message.source].copy()
        elif message.kind == "received" and message.target < tree.leaves:
            due[message.target].append((message.step, post.pop(way)))
        elif message.kind == "received":
            x[message.target] = x[message.target] + alpha * (post.pop(way) - x[message.target])
    return x[-1]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "tree", [Tree.multi_scale(11, degree=3, leaf_period=3, inner_period=9), Tree.up_down(11, degree=3, down_period=5)]
)
def test_without_noise_it_is_the_loop_written_out(tree: Tree, momentum: float) -> None:
    bowl = Bowl((1.0, 0.3, 0.05), lr=0.02, momentum=momentum)
    run = messages(Cluster(11, 0.1, jitter=0.3, bandwidth=1e9, latency=0.01), tree)
    assert all(message.step >= 1 for message in run if message.kind == "received" and message.target < 11)
    descent = TreeDescent(bowl, tree)
    for message in run:
        descent.absorb(message)
    np.testing.assert_allclose(descent.center, literal(run, bowl, tree, 0.9), rtol=1e-9, atol=1e-12)
    assert descent.excess == float(bowl.excess(descent.center)) < 0.9 * float(bowl.excess(np.ones(3)))


def test_a_leaf_moves_after_the_first_step_that_ends_once_the_message_is_there() -> None:
    tree = Tree(leaves=2, degree=2, up=(10,), down=(4,))
    run = messages(Cluster(2, 0.1, bandwidth=1e9), tree, seconds=1.6)
    got = [(m.at, m.step) for m in run if m.kind == "received" and m.target == 0]
    assert got == [(0.032, 1), (0.432, 5), (0.832, 9), (1.232, 13)]


def test_trees_that_can_not_be_are_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^Tree: leaves and degree must be at least 2\. Got leaves=1"):
        Tree(leaves=1)
    with pytest.raises(ValueError, match=r"^Tree: up must be periods of at least 1, one for each of 2 levels"):
        Tree(leaves=20, up=(1, 2, 3))
    with pytest.raises(ValueError, match=r"^tree_timeline: the cluster must have 4 workers, shards=1, lost=0 and no"):
        messages(Cluster(5), Tree(leaves=4))
