"""What goes wrong between a worker and its center costs what the fault itself lost, and the tests say what that is.

Two sums tell whether anything is lost or doubled: `c + x` where what leaves x enters c (EASGD), and `p c + x - start`
where the center absorbs a share 1/p of the way since the start (LocalSGD). Only training changes them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import FORK
from proxy import Proxy
from torch import Tensor, nn

import hooke
from hooke import worker as worker_module
from hooke.remote import client, server
from hooke.remote.link import Link
from hooke.remote.wire import Wire
from hooke.rule import Rule

BLOCK, NUMEL = 160, 700
"""Five blocks, the last of them shorter."""

SPEC = hooke.CenterSpec((), NUMEL)
RULES = (hooke.EASGD(moving_rate=0.3), hooke.LocalSGD(num_workers=2))
CODECS = ("float32", "int4")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a vector, and nothing on the wire but what a test asks for."""
    monkeypatch.setattr("hooke.center.BLOCK", BLOCK)
    monkeypatch.setattr(client, "BEAT_SECONDS", 1000.0)


def values(seed: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


@dataclass
class Trainee:
    """A worker without a model: its x goes where a test says."""

    link: hooke.RemoteCenter
    rule: Rule
    x: Tensor
    state: tuple[Tensor, ...]
    trained: Tensor
    steps: int = 0

    @staticmethod
    def joined(link: hooke.RemoteCenter, rule: Rule) -> Trainee:
        x = link.join(values(0), hooke.CenterSpec((), NUMEL, memory=rule.center_memory), rule.init_center(values(0)))
        return Trainee(link, rule, x, rule.init(x), torch.zeros(NUMEL, dtype=torch.float64))

    def train(self) -> None:
        self.steps += 1
        step = values(100 + self.steps)
        self.trained += step
        self.x += step

    def exchange(self) -> None:
        self.link._next_try = 0.0  # a test does not wait
        self.x.sub_(self.link.exchange(self.x, self.rule, self.state))

    def fails_to_exchange(self) -> Exception | None:
        before = self.x.clone()
        try:
            self.exchange()
        except (OSError, hooke.Refused) as error:
            assert torch.equal(self.x, before)
            return error
        return None

    def total(self, c: Tensor) -> Tensor:
        """What only training changes, less the training."""
        x, c = self.x.double(), c.double()
        if self.rule.conserves:
            return c + x - self.trained
        return self.rule.num_workers * c + x - self.state[0].double() - self.trained  # type: ignore[attr-defined]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def linked(stack: ExitStack, rule: Rule, codec: str, **settings: Any) -> tuple[hooke.LocalCenter, Proxy, Trainee]:
    """A center, a proxy before it, and a worker behind that."""
    center = hooke.LocalCenter()
    stack.callback(center.close)
    served = stack.enter_context(hooke.serve(center))
    proxy = stack.enter_context(Proxy(int(served.url.rsplit(":", 1)[1])))
    link = hooke.connect(proxy.url, codec=codec, timeout=20.0, **settings)
    stack.callback(link.close)
    return center, proxy, Trainee.joined(link, rule)


def close_to(made: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(made, wanted, rtol=0, atol=2e-5)


# A stream that is cut ---------------------------------------------------------------------------------------------

PLACES = [*((up, None) for up in range(7)), *((None, down) for down in range(7))]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_stream_cut_after_every_block_loses_nothing_and_doubles_nothing(
    rule: Rule, codec: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up: cut before the k-th block is sent. Down: cut when the center has sent k blocks. Then the worker goes on."""
    center, proxy, worker = linked(stack, rule, codec)
    place: dict[str, int | None] = {}

    def cutting(module: Any, way: str) -> None:
        original = module.send_block

        def send_block(*args: Any) -> int:
            if place.get(way) == 0:
                proxy.cut()
            if place.get(way) is not None:
                place[way] -= 1  # type: ignore[operator]
            return original(*args)

        monkeypatch.setattr(module, "send_block", send_block)

    cutting(client, "up")
    cutting(server, "down")
    worker.train()
    worker.exchange()
    before, failed = worker.total(center.pull()), []
    for up, down in PLACES:
        worker.train()
        untouched = center.pull()
        place |= {"up": up, "down": down}
        error = worker.fails_to_exchange()
        place |= {"up": None, "down": None}
        failed.append(error is not None)
        if up is not None and error is not None:
            assert torch.equal(center.pull(), untouched), "half an upload was applied"
        worker.train()
        worker.exchange()
        assert close_to(worker.total(center.pull()), before), (up, down)
    assert failed == ([True] * 5 + [False] * 2) * 2


def test_a_stream_cut_after_every_byte_count_is_the_same(stack: ExitStack) -> None:
    """Wherever a real network cuts: in the middle of a frame, in the handshake, in the last byte of the status."""
    center, proxy, worker = linked(stack, RULES[1], "int4")
    worker.train()
    worker.exchange()
    up, down = proxy.bytes_up, proxy.bytes_down
    worker.train()
    worker.exchange()
    up, down = proxy.bytes_up - up, proxy.bytes_down - down
    before, failed = worker.total(center.pull()), 0
    for way, count in (("up", up), ("down", down)):
        for cut in (1, 9, count // 4, count // 2, 3 * count // 4, count - 9, count - 1):
            worker.train()
            proxy.cut_after(**{way: cut})
            failed += worker.fails_to_exchange() is not None
            proxy.cut_after()
            worker.train()
            worker.exchange()
            assert close_to(worker.total(center.pull()), before), (way, cut)
    assert failed >= 10


def test_cut_again_and_again_on_the_way_back_it_still_loses_nothing(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply, and the reply to the question for it, and that one's."""
    for rule, codec in ((RULES[0], "int4"), (RULES[1], "float32"), (RULES[1], "int4")):
        center, proxy, worker = linked(stack, rule, codec)
        before, original = worker.total(center.pull()), server.send_block
        left = [0]

        def send_block(*args: Any, left: list[int] = left, proxy: Proxy = proxy, original: Any = original) -> int:
            left[0] -= 1
            if left[0] == 0:
                proxy.cut()
            return original(*args)

        with monkeypatch.context() as patched:
            patched.setattr(server, "send_block", send_block)
            for blocks in (3, 2, 5, 1):
                worker.train()
                left[0] = blocks + 1
                assert worker.fails_to_exchange() is not None
        worker.train()
        worker.exchange()
        assert close_to(worker.total(center.pull()), before)
        worker.train()
        worker.exchange()
        assert close_to(worker.total(center.pull()), before)


def test_a_fragment_whose_reply_was_cut_is_owed_while_others_are_exchanged(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, proxy, worker = linked(stack, RULES[0], "int4")
    before, original = worker.total(center.pull()), server.send_block

    def part(first: int, end: int) -> None:
        worker.link._next_try = 0.0
        here = worker.x[first:end]
        here.sub_(worker.link.exchange(here.clone(), worker.rule, start=first))

    worker.train()
    with monkeypatch.context() as patched:
        patched.setattr(server, "send_block", lambda *args: (proxy.cut(), original(*args))[1])
        with pytest.raises(OSError, match=r"broke|cut"):
            part(100, 600)
    for first, end in ((600, 700), (0, 300), (300, 450)):
        worker.train()
        part(first, end)
    assert not close_to(worker.total(center.pull()), before), "the part from 450 on is still owed"
    part(450, 600)
    assert close_to(worker.total(center.pull()), before)


# Faults inside the center -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("blocks", [0, 3])
def test_memory_that_runs_out_half_way_through_an_exchange_loses_nothing(
    rule: Rule, codec: str, blocks: int, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, _, worker = linked(stack, rule, codec)
    before, original = worker.total(center.pull()), hooke.LocalCenter.exchanging

    def running_out(self: hooke.LocalCenter, *args: Any, **settings: Any) -> Iterator[slice]:
        for done, part in enumerate(original(self, *args, **settings)):
            yield part
            if done + 1 == blocks:
                break
        raise MemoryError

    worker.train()
    with monkeypatch.context() as patched:
        if blocks == 0:
            patched.setattr(hooke.LocalCenter, "exchanging", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
        else:
            patched.setattr(hooke.LocalCenter, "exchanging", running_out)
        assert "MemoryError" in str(worker.fails_to_exchange())
    for _ in range(2):
        worker.train()
        worker.exchange()
        assert close_to(worker.total(center.pull()), before)


def hold_a_block(path: Any, block: int, told: Any) -> None:
    """A local worker that was stopped inside an exchange."""
    center = hooke.LocalCenter(path)
    center._locks.take_block(block, 5.0)
    told.set()
    time.sleep(60)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_block_that_a_stopped_process_holds_is_left_out_and_its_way_goes_on(
    rule: Rule, codec: str, stack: ExitStack
) -> None:
    center, _, worker = linked(stack, rule, codec)
    before, told = worker.total(center.pull()), FORK.Event()
    holder = FORK.Process(target=hold_a_block, args=(center.path, 2, told), daemon=True)
    holder.start()
    assert told.wait(30)
    try:
        for _ in range(2):
            worker.train()
            untouched = center.pull()
            worker.exchange()
            changed = center.pull() != untouched
            assert not changed[2 * BLOCK : 3 * BLOCK].any()
            assert changed[: 2 * BLOCK].any()
            assert close_to(worker.total(center.pull()), before)
    finally:
        holder.kill()
        holder.join()
    worker.train()
    worker.exchange()
    assert close_to(worker.total(center.pull()), before)
    fresh = worker.state[0] if worker.state else center.pull()
    if worker.state and codec == "float32":
        assert close_to(fresh[2 * BLOCK : 3 * BLOCK], center.pull()[2 * BLOCK : 3 * BLOCK])


def test_an_upload_that_was_given_up_and_comes_late_is_not_applied(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, _, worker = linked(stack, RULES[0], "int4")
    before, original, late = worker.total(center.pull()), Link.exchange, []

    def later(self: Link, *args: Any) -> None:
        late.append((self, args))
        raise MemoryError

    worker.train()
    with monkeypatch.context() as patched:
        patched.setattr(Link, "exchange", later)
        assert worker.fails_to_exchange() is not None
    worker.train()
    worker.exchange()
    untouched = center.pull()
    link, args = late[0]
    with pytest.raises(ValueError, match=r"in order\. Got number 1 after 2"):
        original(link, *args)
    assert torch.equal(center.pull(), untouched)
    assert close_to(worker.total(center.pull()), before)
    worker.link._is_lost = True  # the same after the worker has come back: its first link here is gone
    worker.exchange()
    upload, rule, number, loss, emit = args
    with pytest.raises(Exception, match="come back anew"):
        original(link, upload, rule, number + 2, loss, emit)
    assert close_to(worker.total(center.pull()), before)


def test_leaving_while_an_exchange_is_applied_waits_for_it(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    center, _, worker = linked(stack, RULES[0], "float32")
    original = hooke.LocalCenter.exchanging
    begun, may_go_on = threading.Event(), threading.Event()

    def slowly(self: hooke.LocalCenter, *args: Any, **settings: Any) -> Iterator[slice]:
        for part in original(self, *args, **settings):
            yield part
            begun.set()
            may_go_on.wait(10)

    monkeypatch.setattr(hooke.LocalCenter, "exchanging", slowly)
    worker.train()
    wanted = 0.3 * (worker.x - values(0)) + values(0)
    exchanging = threading.Thread(target=worker.exchange)
    exchanging.start()
    assert begun.wait(10)
    leaving = threading.Thread(target=worker.link.leave)
    leaving.start()
    time.sleep(0.1)
    may_go_on.set()
    exchanging.join(10)
    leaving.join(10)
    torch.testing.assert_close(center.pull(), wanted)
    assert center.exchanges == 1
    assert center.num_workers == 0


# A center that dies -----------------------------------------------------------------------------------------------

POINTS = ("before the upload", "after the upload", "after 3 blocks", "before the reply", "in the reply")


def serve_and_die(path: Any, port: int, checkpoint: Any, point: str | None, told: Any) -> None:
    """A center process that is killed at `point` of its next exchange."""
    torch.set_num_threads(1)
    hooke.center.BLOCK = BLOCK

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(original: Callable[..., Any], *, first: bool) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if not first:
                original(*args)
            die()

        return call

    def dying_after(count: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Iterator[Any]:
            for done, item in enumerate(original(*args)):
                if done == count:
                    die()
                yield item

        return call

    if point == "before the upload":
        Link.upload = dying(Link.upload, first=True)  # type: ignore[method-assign]
    if point == "after the upload":
        Link.exchange = dying(Link.exchange, first=True)  # type: ignore[method-assign]
    if point == "after 3 blocks":
        Link._applied = dying_after(2, Link._applied)  # type: ignore[method-assign]
    if point == "before the reply":
        exchange = Link.exchange
        Link.exchange = lambda self, *args: (exchange(self, *args[:-1], lambda block: None), die())  # type: ignore
    if point == "in the reply":
        server._emitted = dying_after(3, server._emitted)
    center = hooke.LocalCenter(path)
    if checkpoint is not None and not center.ready:
        center.load(checkpoint)
    with hooke.serve(center, f"127.0.0.1:{port}") as served:
        told.send(served.url)
        served.wait()


class Centers:
    """One center process after the other, on one port."""

    def __init__(self, path: Any) -> None:
        self.path, self.port, self.checkpoint = path, 0, None
        self.process: Any = None

    def start(self, point: str | None) -> str:
        here, there = FORK.Pipe()
        self.process = FORK.Process(
            target=serve_and_die, args=(self.path, self.port, self.checkpoint, point, there), daemon=True
        )
        self.process.start()
        assert here.poll(60), "no center came up"
        url = here.recv()
        self.port = int(url.rsplit(":", 1)[1])
        return url

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()


@pytest.mark.parametrize(("rule", "codec"), [(RULES[0], "float32"), (RULES[0], "int4"), (RULES[1], "int4")])
def test_a_center_that_is_killed_loses_at_most_the_reply_that_it_owed(rule: Rule, codec: str, stack: ExitStack) -> None:
    """Killed at each point of an exchange and started again on the same memory: the worker goes on by itself.

    Lost is what the center took in and could not answer: nothing before the arithmetic has begun; then, with every
    block that had been absorbed and whose correction had not arrived, that correction.
    """
    center = hooke.LocalCenter()
    stack.callback(center.close)
    centers = Centers(center.path)
    stack.callback(centers.kill)
    link = hooke.connect(centers.start(None), codec=codec, timeout=20.0)
    stack.callback(link.close)
    worker = Trainee.joined(link, rule)
    worker.train()
    worker.exchange()
    for point in POINTS:
        centers.kill()
        centers.start(point)
        assert "not known here" in str(worker.fails_to_exchange())
        worker.train()
        before, untouched = worker.total(center.pull()), center.pull()
        assert worker.fails_to_exchange() is not None, point
        centers.process.join(10)
        absorbed = center.pull() - untouched
        blocks = [bool(part.any()) for part in absorbed.split(BLOCK)]
        centers.start(None)
        worker.train()
        worker.exchange()
        lost = worker.total(center.pull()) - before
        share = absorbed.double() * (1 if rule.conserves else rule.num_workers)  # type: ignore[attr-defined]
        if point in ("before the upload", "after the upload"):
            assert blocks == [False] * 5
            assert close_to(lost, torch.zeros(NUMEL).double())
        else:
            assert sum(blocks) in {"after 3 blocks": (3,), "before the reply": (5,), "in the reply": (3, 4, 5)}[point]
            heard = 0
            for part, its_share in zip(lost.split(BLOCK), share.split(BLOCK), strict=True):
                is_lost = close_to(part, its_share)
                assert is_lost or close_to(part, torch.zeros(()).double()), point
                heard += not is_lost
            assert heard <= {"after 3 blocks": 3, "before the reply": 0, "in the reply": 3}[point]
        again = worker.total(center.pull())
        worker.train()
        worker.exchange()
        assert close_to(worker.total(center.pull()), again)


def test_a_center_from_its_checkpoint_has_lost_what_came_after_it_and_no_more(stack: ExitStack, tmp_path: Any) -> None:
    center = hooke.LocalCenter(tmp_path / "first")
    centers = Centers(center.path)
    stack.callback(centers.kill)
    link = hooke.connect(centers.start(None), codec="int4", timeout=20.0)
    stack.callback(link.close)
    worker = Trainee.joined(link, RULES[0])
    for step in range(4):
        worker.train()
        worker.exchange()
        if step == 1:
            center.save(tmp_path / "center.safetensors")
    since = center.pull()
    centers.kill()
    center.close()
    centers.path, centers.checkpoint = tmp_path / "second", tmp_path / "center.safetensors"
    centers.start(None)
    after = hooke.LocalCenter(centers.path)
    stack.callback(after.close)
    lost = since - after.pull()
    assert lost.abs().max() > 0.01
    before = worker.total(since)
    assert worker.fails_to_exchange() is not None
    for _ in range(2):
        worker.train()
        worker.exchange()
        assert close_to(worker.total(after.pull()), before - lost)


# A worker that dies -----------------------------------------------------------------------------------------------


def exchange_and_die(url: str, codec: str, rule: Rule, point: str, told: Any) -> None:
    torch.set_num_threads(1)
    hooke.center.BLOCK = BLOCK
    original, sent = client.send_block, [0]

    def send_block(*args: Any) -> int:
        if point == f"after {sent[0]} blocks":
            os.kill(os.getpid(), signal.SIGKILL)
        sent[0] += 1
        return original(*args)

    def take_block(self: Any, *args: Any) -> None:
        if point == f"{len(args[0].done)} blocks of the reply":
            os.kill(os.getpid(), signal.SIGKILL)
        take(self, *args)

    take = client.RemoteCenter._take_block
    worker = Trainee.joined(hooke.connect(url, codec=codec, name="victim"), rule)
    client.send_block, client.RemoteCenter._take_block = send_block, take_block  # type: ignore[method-assign]
    worker.x += 4.0
    told.set()
    worker.exchange()
    time.sleep(60)


@pytest.mark.parametrize("codec", CODECS)
def test_a_worker_that_is_killed_takes_only_what_it_held(codec: str, stack: ExitStack) -> None:
    """At each point: the center has all of its last exchange or nothing of it; nobody else notices."""
    center, _, other = linked(stack, RULES[0], codec)
    url = other.link.url
    for point in ("after 0 blocks", "after 3 blocks", "0 blocks of the reply", "4 blocks of the reply"):
        told, before, untouched = FORK.Event(), other.total(center.pull()), center.pull()
        victim = FORK.Process(target=exchange_and_die, args=(url, codec, RULES[0], point, told), daemon=True)
        victim.start()
        victim.join(60)
        assert victim.exitcode == -signal.SIGKILL, point
        if "reply" in point:
            deadline = time.monotonic() + 10
            while center.exchanges % 2 == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            torch.testing.assert_close(center.pull(), untouched + 1.2, atol=1e-2, rtol=0)
        else:
            time.sleep(0.2)
            assert torch.equal(center.pull(), untouched)
        held = center.pull().double() - untouched.double()
        other.train()
        other.exchange()
        assert close_to(other.total(center.pull()), before + held)
        if center.exchanges % 2:
            other.exchange()


# Half-open links ------------------------------------------------------------------------------------------------------


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(NUMEL))

    def forward(self) -> Tensor:
        return (self.x - 1).square().mean()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_center_that_goes_silent_holds_up_training_for_one_timeout_and_no_more(
    overlap: bool, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BEAT_SECONDS", 0.2)
    center = hooke.LocalCenter()
    stack.callback(center.close)
    centers = Centers(center.path)
    stack.callback(centers.kill)
    link = hooke.connect(centers.start(None), codec="int8", timeout=1.0)
    stack.callback(link.close)
    model = Slope()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outcomes: list[Any] = []
    with hooke.Worker(model, optimizer, hooke.EASGD(), center=link, communication_period=1, overlap=overlap) as worker:
        exchanged = worker._exchanged
        worker._exchange._done = lambda outcome: (outcomes.append(outcome), exchanged(outcome))  # type: ignore

        def steps(seconds: float) -> tuple[int, float]:
            longest, count, end = 0.0, 0, time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                optimizer.zero_grad()
                model().backward()
                optimizer.step()
                longest, count = max(longest, time.monotonic() - began), count + 1
                time.sleep(0.005)
            return count, longest

        steps(0.5)
        assert any(outcome.failure is None for outcome in outcomes)
        os.kill(centers.process.pid, signal.SIGSTOP)
        try:
            outcomes.clear()
            count, longest = steps(3.0)
        finally:
            os.kill(centers.process.pid, signal.SIGCONT)
        assert longest < 1.9, "one timeout, and a slow machine"
        assert count > 20
        kinds = {type(outcome.failure) for outcome in outcomes}
        assert TimeoutError in kinds
        assert sum(isinstance(o.failure, TimeoutError) and "answer within" in str(o.failure) for o in outcomes) <= 1
        outcomes.clear()
        deadline = time.monotonic() + 15
        while all(outcome.failure for outcome in outcomes) and time.monotonic() < deadline:
            steps(0.2)
        assert any(outcome.failure is None for outcome in outcomes), (
            "heartbeats bring it back, long before the pause ends"
        )


def test_several_streams_of_one_exchange_share_one_timeout(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for a reply, to come back and to exchange may each take long; together they end in time."""
    _, proxy, worker = linked(stack, RULES[1], "int4")
    worker.train()
    proxy.is_down = True
    proxy.cut()
    assert worker.fails_to_exchange() is not None
    proxy.is_down, proxy.delay = False, 0.1  # each way, so that each stream takes 0.2 s or more
    worker.link._is_lost = True
    left, options = [], Wire._options
    monkeypatch.setattr(Wire, "_options", lambda self, seconds: (left.append(seconds), options(self, seconds))[1])
    worker.exchange()
    reply, come_back, exchange = left
    assert reply <= 20
    assert come_back <= reply - 0.2
    assert exchange <= come_back - 0.2
    proxy.is_silent, worker.link._wire.timeout = True, 0.5
    began = time.monotonic()
    assert isinstance(worker.fails_to_exchange(), TimeoutError)
    assert time.monotonic() - began < 2
    proxy.is_silent = False


# Who comes, who goes --------------------------------------------------------------------------------------------------


def test_a_worker_of_another_protocol_is_refused_with_a_sentence(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, worker = linked(stack, RULES[0], "float32")
    stranger = hooke.connect(worker.link.url)
    sentence = r"must speak the same protocol. Got a worker of version 2, the center has 1. Install the same hooke"
    introduction = client.RemoteCenter._introduction
    monkeypatch.setattr(
        client.RemoteCenter, "_introduction", lambda self, *args: {**introduction(self, *args), "version": 2}
    )
    with pytest.raises(ValueError, match=sentence):
        stranger.join(values(0), SPEC)
    worker.link._is_lost = True  # and one that finds a newer center when it comes back trains on
    with pytest.raises(OSError, match=sentence):
        worker.exchange()
    assert worker.link.status()["refused"] == {"version": 2}


def test_a_worker_takes_over_the_name_of_the_one_before_and_keeps_it(stack: ExitStack) -> None:
    center, _, before = linked(stack, RULES[0], "float32", name="alice")
    link = hooke.connect(before.link.url, name="alice")
    stack.callback(link.close)
    after = Trainee.joined(link, RULES[0])
    assert center.num_workers == 1
    assert [worker["name"] for worker in link.status()["workers"]] == ["alice"]
    assert "not known here" in str(before.fails_to_exchange())
    for _ in range(2):
        error = before.fails_to_exchange()
        assert "must have a name of its own. Got two called alice; the other one came later, and stays." in str(error)
        after.train()
        after.exchange()
    link.leave()
    before.exchange()  # now there is room
    assert center.num_workers == 1


def test_a_join_that_fails_leaves_the_one_before_where_it_is(stack: ExitStack) -> None:
    _, _, before = linked(stack, RULES[0], "float32", name="alice")
    link = hooke.connect(before.link.url, name="alice")
    with pytest.raises(ValueError, match="must bring the same model"):
        link.join(torch.zeros(3), hooke.CenterSpec((), 3))
    before.exchange()


def test_a_worker_that_waits_joins_again_where_joining_was_cut_off(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, proxy, _ = linked(stack, RULES[0], "float32")
    original, left = server.send_block, [4]

    def send_block(*args: Any) -> int:
        left[0] -= 1
        if left[0] in (0, 2):
            proxy.cut()
        return original(*args)

    monkeypatch.setattr(server, "send_block", send_block)
    hasty, patient = hooke.connect(proxy.url), hooke.connect(proxy.url, wait=20.0)
    with pytest.raises(OSError, match="broke"):
        hasty.join(values(1), SPEC)
    patient._wire.hang_up()
    assert torch.equal(patient.join(values(1), SPEC), center.pull())
    stack.callback(patient.close)
    assert left[0] < 0


def test_a_session_that_the_center_forgot_is_taken_back(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    for rule, codec in ((RULES[0], "int4"), (RULES[1], "float32"), (RULES[1], "int4")):
        center, _, worker = linked(stack, rule, codec)
        worker.train()
        worker.exchange()
        before = worker.total(center.pull())
        with monkeypatch.context() as patched:
            patched.setattr("hooke.remote.desk.FORGET_SECONDS", -1.0)
            other = hooke.connect(worker.link.url)
            other.join(values(0), SPEC)
        other.close()
        assert center.num_workers == 0
        assert "not known here" in str(worker.fails_to_exchange())
        worker.train()
        worker.exchange()
        assert close_to(worker.total(center.pull()), before)
        assert center.num_workers == 1


def test_a_heartbeat_notices_that_the_center_has_forgotten_the_worker(stack: ExitStack) -> None:
    center, _, worker = linked(stack, RULES[1], "int4")
    before = worker.total(center.pull())
    worker.link._wire.call("leave", session=worker.link._session)
    worker.link._beat_now()
    worker.train()
    worker.exchange()  # at once, without a failure
    assert close_to(worker.total(center.pull()), before)


@pytest.mark.parametrize("comes_back", [True, False])
def test_evaluating_the_center_waits_for_one_that_is_started_again(
    comes_back: bool, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "TRIES", 3)
    monkeypatch.setattr(worker_module, "PAUSE_SECONDS", 0.0)
    center = hooke.LocalCenter()
    stack.callback(center.close)
    served = hooke.serve(center)
    model, link, tries = nn.Linear(4, 1), hooke.connect(served.url), []
    stack.callback(link.close)
    optimizer, pull = torch.optim.SGD(model.parameters(), lr=0.1), link.pull
    worker = stack.enter_context(hooke.Worker(model, optimizer, hooke.EASGD(), center=link))
    served.close()

    def pulled() -> Tensor:
        tries.append(None)
        link._next_try = 0.0  # a test does not wait
        if comes_back and len(tries) == 2:
            stack.enter_context(hooke.serve(center, served.url.removeprefix("grpc://")))
        return pull()

    monkeypatch.setattr(link, "pull", pulled)
    with ExitStack() as expected:
        expected.enter_context(pytest.warns(RuntimeWarning, match="center_weights.* waits for the center. connect: "))
        if not comes_back:
            expected.enter_context(pytest.raises(OSError, match="the link to"))
        with worker.center_weights():
            assert torch.equal(model.weight.flatten(), center.pull()[:4])
    assert len(tries) == 3  # one that is started again does not know the worker yet


def test_no_clock_is_compared_between_machines() -> None:
    """Only `time.monotonic`, which is never sent."""
    folder = Path(hooke.remote.__file__).parent
    for path in folder.glob("*.py"):
        assert "time.time()" not in path.read_text(), path.name
        assert "datetime" not in path.read_text(), path.name
