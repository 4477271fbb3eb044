"""A center that is served: equal to one at hand, by every codec what a literal link gives, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import RULES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hooke
from hooke.codec import CODECS, codec_of
from hooke.remote import client
from hooke.remote.link import Link, Upload
from hooke.rule import Rule

BLOCK, NUMEL, BORDER = 160, 1000, 700
"""Several blocks, some of them cut by the border to the averaged buffers."""

LOSSY = [name for name, codec in CODECS.items() if not codec.is_exact]
MIXED = [hooke.DiLoCo(mixing=0.3), hooke.LocalSGD(mixing=0.5)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooke.center.BLOCK", BLOCK)


def values(seed: int, numel: int = NUMEL) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def spec_of(rule: Rule, numel: int = NUMEL, border: int = BORDER) -> hooke.CenterSpec:
    return hooke.CenterSpec((), numel, border, rule.center_memory)


@contextmanager
def served(
    workers: int, rule: Rule, codec: str = "float32", numel: int = NUMEL, border: int = BORDER
) -> Iterator[tuple[hooke.LocalCenter, list[hooke.RemoteCenter]]]:
    """A center at hand, and so many that have joined over a link."""
    with ExitStack() as stack:
        center = hooke.LocalCenter()
        stack.callback(center.close)
        server = stack.enter_context(hooke.serve(center))
        spec, initial = spec_of(rule, numel, border), values(0, numel)
        links = [hooke.connect(server.url, codec=codec, name=str(number)) for number in range(workers)]
        for link in links:
            stack.callback(link.close)
            assert torch.equal(link.join(initial, spec, rule.init_center(initial)), initial)
        yield center, links


@contextmanager
def at_hand(workers: int, rule: Rule) -> Iterator[list[hooke.LocalCenter]]:
    with ExitStack() as stack:
        first = hooke.LocalCenter()
        centers = [first, *(hooke.LocalCenter(first.path) for _ in range(workers - 1))]
        initial = values(0)
        for center in reversed(centers):
            stack.callback(center.close)
            center.join(initial, spec_of(rule), rule.init_center(initial))
        yield centers


# Every bit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*(case.rule for case in RULES), *MIXED, hooke.LSGD(0.3)], ids=repr)
def test_with_every_bit_it_equals_a_center_at_hand(rule: Rule) -> None:
    with served(2, rule) as (center, links), at_hand(2, rule) as locals_:
        xs, ys = ([values(number + 1) for number in range(2)] for _ in range(2))
        states, memories = ([rule.init(values(0)) for _ in range(2)] for _ in range(2))
        for turn in range(8):
            number = turn * 7 % 3 % 2
            for x in (xs[number], ys[number]):
                x.add_(values(10 + turn), alpha=0.1)
            for one in (links[number], locals_[number]):
                one.report(float(turn % 3))
            correction = links[number].exchange(xs[number], rule, states[number])
            expected = locals_[number].exchange(ys[number], rule, memories[number])
            assert torch.equal(correction, expected)
            for told, remembered in zip(states[number], memories[number], strict=True):
                torch.testing.assert_close(told[:BORDER], remembered[:BORDER], rtol=1e-5, atol=1e-6)
            xs[number] -= correction
            ys[number] -= expected
        assert torch.equal(center.pull(), locals_[0].pull())
        assert torch.equal(links[0].pull(), center.pull())
        for name, vector in locals_[0].pull_memory().items():
            assert torch.equal(links[1].pull_memory()[name], vector)
        assert (links[1].num_workers, links[1].counted_workers) == (2, 2)
        assert links[number].exchanges == center.exchanges == 8


@pytest.mark.parametrize("rule", [hooke.EASGD(moving_rate=0.3), hooke.LocalSGD()], ids=repr)
def test_fragments_equal_those_of_a_center_at_hand(rule: Rule) -> None:
    with served(1, rule) as (center, (link,)), at_hand(1, rule) as (local,):
        x, state, remembered = values(1), rule.init(values(0)), rule.init(values(0))
        for start, stop in pairwise([0, 90, 160, 650, 720, 1000]):
            part = x[start:stop].clone()
            out = torch.full_like(part, math.nan)
            given = link.exchange(part, rule, tuple(s[start:stop] for s in state), out, start=start)
            expected = local.exchange(part, rule, tuple(s[start:stop] for s in remembered), start=start)
            assert given is out and torch.equal(out, expected)
        assert torch.equal(center.pull(), local.pull())


# Fewer bits -----------------------------------------------------------------------------------------------------------


class Literal:
    """The link in the plainest words: what each side knows, block by block."""

    def __init__(self, rule: Rule, codec: str, workers: int) -> None:
        self.rule, self.codec = rule, codec_of(codec)
        self.c = values(0)
        self.memory = rule.init_center(self.c)
        self.base = [values(0) for _ in range(workers)]
        self.workers = workers
        starts = [*range(0, BORDER, BLOCK), *range(BORDER, NUMEL, BLOCK)]
        self.blocks = list(zip(starts, [*starts[1:], NUMEL], strict=True))

    def exchange(self, number: int, x: Tensor) -> Tensor:
        correction = torch.empty_like(x)
        for start, stop in self.blocks:
            here = slice(start, stop)
            rule = (self.rule if start < BORDER else self.rule.buffer_rule()).bind(self.workers)
            base, c = self.base[number][here], self.c[here]
            memory = tuple(vector[here] for vector in self.memory)
            arrived = base + self.codec.rounded(x[here] - base)
            state = (base,) if rule.init(base) else ()
            delta = rule.delta(arrived, c, state)
            if rule.conserves:
                delta = self.codec.rounded(delta)
            rule.absorb_(c, delta, memory)
            settled = rule.settle(arrived, delta, c, state)
            correction[here] = settled if rule.conserves else self.codec.rounded(settled)
            kept = getattr(rule, "mixing", 0.0) if state else 0.0
            self.base[number][here] = arrived - correction[here] / (1 - kept)
        return correction


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize(
    "rule",
    [hooke.EASGD(moving_rate=0.3), hooke.EASGD(0.9), hooke.Downpour(), hooke.LocalSGD(), hooke.DiLoCo(), *MIXED],
    ids=repr,
)
def test_with_fewer_bits_it_is_the_literal_link(rule: Rule, codec: str) -> None:
    with served(2, rule, codec) as (center, links):
        literal = Literal(rule, codec, 2)
        xs, states = [values(1), values(2)], [rule.init(values(0)) for _ in range(2)]
        for turn in range(6):
            number = turn * 7 % 3 % 2
            xs[number].add_(values(10 + turn), alpha=0.1)
            correction = links[number].exchange(xs[number], rule, states[number])
            torch.testing.assert_close(correction, literal.exchange(number, xs[number]), rtol=1e-6, atol=1e-7)
            for state in states[number]:
                torch.testing.assert_close(state, literal.base[number], rtol=1e-6, atol=1e-7)
            xs[number] -= correction
        torch.testing.assert_close(center.pull(), literal.c, rtol=1e-6, atol=1e-7)


moves = st.lists(st.tuples(st.integers(0, 1), st.floats(1e-3, 1.0), st.booleans()), max_size=8)


@given(moves=moves, codec=st.sampled_from(list(CODECS)), averaged=st.booleans())
@settings(deadline=None, max_examples=25)
def test_elastic_exchanges_keep_the_sum(moves: list[tuple[int, float, bool]], codec: str, averaged: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hooke.center.BLOCK", BLOCK)
        first: Rule = hooke.Averaged(hooke.EASGD(0.9)) if averaged else hooke.EASGD(0.9)
        with served(2, first, codec, 400, 300) as (center, links):
            xs = [values(1, 400), values(2, 400)]
            total = center.pull().double() + sum(x.double() for x in xs)
            for number, rate, in_place in moves:
                inner = hooke.EASGD(moving_rate=rate)
                rule = hooke.Averaged(inner) if averaged else inner
                if in_place:
                    links[number].exchange_(xs[number], rule)
                else:
                    xs[number] -= links[number].exchange(xs[number], rule)
                held = center.pull().double() + sum(x.double() for x in xs)
                torch.testing.assert_close(held, total, rtol=0, atol=2e-6)


# Memory ---------------------------------------------------------------------------------------------------------------


def upload_of(link: Link, x: Tensor) -> Upload:
    """x as it arrives at the center, whole."""
    upload = link.upload(None, x.numel())
    for _, start, end in link._blocks:
        base = 0 if upload._base is None else upload._base[start:end]
        upload.take(start, link.codec.encode(x[start:end] - base))
    return upload


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", [hooke.EASGD(moving_rate=0.3), hooke.LocalSGD()], ids=repr)
def test_a_reply_stays_while_the_next_upload_writes_into_memory_that_is_used_again(rule: Rule, codec: str) -> None:
    center = hooke.LocalCenter()
    base = center.join(values(0), spec_of(rule), ())
    link = Link("s", "n", "p", codec_of(codec), center, center.spec, base)
    for number in range(1, 7):
        upload = upload_of(link, values(number))
        link.exchange(upload, rule, number, 0.0, lambda block: None)
        owed = [(start, coded.clone()) for start, coded in link.reply(number) or ()]
        cut = link.upload(None, NUMEL)  # the next one begins and is cut off
        cut.x.fill_(math.nan)
        for (start, coded), (first, was) in zip(link.reply(number) or (), owed, strict=True):
            assert start == first and torch.equal(coded, was)
    center.close()


@pytest.mark.parametrize(("codec", "most"), [("float32", 2), ("int8", 1)])
def test_a_link_makes_no_memory_anew(codec: str, most: int) -> None:
    """Two vectors a link: a base and a place for x; without a base two places, for the last reply lies in one."""
    rule, center = hooke.EASGD(moving_rate=0.3), hooke.LocalCenter()
    base = center.join(values(0), spec_of(rule), ())
    link, alive = Link("s", "n", "p", codec_of(codec), center, center.spec, base), []
    for number in range(1, 9):
        upload = upload_of(link, values(number))
        alive.append(upload.x)
        link.exchange(upload, rule, number, 0.0, lambda block: None)
    assert len({x.data_ptr() for x in alive}) == most
    center.close()


@pytest.mark.parametrize("rule", [hooke.EASGD(0.9), hooke.LocalSGD(), hooke.DiLoCo(0.7, 0.5)], ids=repr)
def test_errors_never_accumulate(rule: Rule) -> None:
    """Without noise, 4 bits end where every bit ends: at the minimum, to the last digits."""
    target = values(5)
    with served(2, rule, "int4") as (center, links):
        xs, states = [values(1), values(2)], [rule.init(values(0)) for _ in range(2)]
        for x in xs if rule.init(xs[0]) else ():
            x.copy_(values(0))
        for turn in range(300):
            x, number = xs[turn % 2], turn % 2
            x.add_(target - x, alpha=0.3)
            x -= links[number].exchange(x, rule, states[number])
        assert float((center.pull() - target).abs().max()) < 1e-5
        assert float((xs[0] - target).abs().max()) < 1e-5


@pytest.mark.parametrize("codec", LOSSY)
def test_a_pull_is_as_near_as_the_codec_allows(codec: str) -> None:
    rule = hooke.EASGD(moving_rate=0.3)
    with served(1, rule, codec) as (center, (link,)):
        x = values(1)
        link.exchange_(x, rule)
        away = (x - center.pull()).abs().max()
        error = (link.pull() - center.pull()).abs().max()
        assert 0 < error <= away * {"bfloat16": 2**-8, "int8": 1 / 127, "int4": 1 / 7}[codec] * 1.3
        assert link.distance(x) == pytest.approx(float((x - center.pull()).norm()), rel=0.1)


def test_bytes_on_the_wire_are_the_codec_s() -> None:
    rule = hooke.EASGD(moving_rate=0.3)
    sent = {}
    for codec in CODECS:
        with served(1, rule, codec, 128 * 100, 128 * 100) as (_, (link,)):
            sent[codec] = (link.bytes_sent, link.bytes_received)
            link.exchange_(values(1, 128 * 100), rule)
            sent[codec] = (link.bytes_sent - sent[codec][0], link.bytes_received - sent[codec][1])
    sizes = {"float32": 51200, "bfloat16": 25600, "int8": 20800, "int4": 10560}  # blocks of 160, padded to 256
    assert sent == {codec: (size, size) for codec, size in sizes.items()}


def test_at_rest_a_link_holds_at_most_two_vectors_on_each_side() -> None:
    for rule, codec, vectors in (
        (hooke.EASGD(0.9), "float32", 1.0),
        (hooke.LocalSGD(), "float32", 2.0),
        (hooke.EASGD(0.9), "int4", 1.3),
        (hooke.LocalSGD(), "int8", 1.45),
        (hooke.DiLoCo(), "bfloat16", 1.6),
    ):
        with ExitStack() as stack:
            center = hooke.LocalCenter()
            stack.callback(center.close)
            server = stack.enter_context(hooke.serve(center))
            link = hooke.connect(server.url, codec=codec)
            stack.callback(link.close)
            x = values(0)
            link.join(x, spec_of(rule), rule.init_center(x))
            link.exchange_(x, rule, rule.init(x))
            (there,) = server._service.desk._links.values()
            kept = sum(coded.numel() for _, coded in there._owed or ()) + (0 if there.base is None else 4 * NUMEL)
            assert kept <= vectors * 4 * NUMEL
            assert (link._base is None) == (codec == "float32" and not rule.init(x)) and link._pending is None


# Under a worker -------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def trained(center: Any, rule: Rule, steps: int = 12, **options: Any) -> tuple[nn.Module, hooke.Worker]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hooke.Worker(model, optimizer, rule, center=center, communication_period=3, **options) as worker:
        for step in range(steps):
            x = values(step, 64).view(8, 8)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return model, worker


@pytest.mark.parametrize("rule", [hooke.EASGD(0.9), hooke.LocalSGD(), hooke.Averaged(hooke.DiLoCo())], ids=repr)
@pytest.mark.parametrize("options", [{}, {"fragments": 3}], ids=str)
def test_a_worker_trains_as_with_a_center_at_hand(rule: Rule, options: dict[str, Any]) -> None:
    ends = []
    for remote in (False, True):
        with ExitStack() as stack:
            center = hooke.LocalCenter()
            stack.callback(center.close)
            server = stack.enter_context(hooke.serve(center))
            model, _ = trained(hooke.connect(server.url) if remote else hooke.LocalCenter(center.path), rule, **options)
            ends.append([*model.state_dict().values(), center.pull()])
            assert center.exchanges == 4 * options.get("fragments", 1)
            assert center.num_workers == 0 and center.counted_workers == 1
    for at_hand, remote in zip(*ends, strict=True):
        torch.testing.assert_close(at_hand, remote, rtol=1e-5, atol=1e-6)


def test_every_worker_has_a_seed_of_its_own_and_keeps_it() -> None:
    with hooke.serve(hooke.LocalCenter()) as server:
        seeds = []
        for name in ("run-1-0", "run-1-1", "run-2-0", "run-1-0", None, None):
            seeds.append(trained(hooke.connect(server.url, name=name), hooke.EASGD(0.9), 1)[1].seed)
        assert seeds[0] == seeds[3] and len(set(seeds)) == 5
    with hooke.serve(hooke.LocalCenter()) as other:
        sharded = hooke.connect([other.url], name="run-1-0")
        assert trained(sharded, hooke.EASGD(0.9), 1)[1].seed == seeds[0]
    assert trained(hooke.LocalCenter(), hooke.EASGD(0.9), 1)[1].seed == 0


def test_overlapped_exchanges_over_a_link_train_too() -> None:
    with hooke.serve(hooke.LocalCenter()) as server:
        _, worker = trained(hooke.connect(server.url, codec="int8"), hooke.EASGD(0.9), 60, overlap=True)
        assert worker.steps == 60 and server.center.exchanges >= 1


def test_a_resumed_worker_says_where_it_starts_from() -> None:
    """Its own memory is older than what the center told it when it joined."""
    rule = hooke.Downpour()
    with served(1, rule) as (center, (link,)), at_hand(1, rule) as (local,):
        x, old = values(1), values(2)
        state, remembered = (old.clone(),), (old.clone(),)
        assert torch.equal(link.exchange(x, rule, state), local.exchange(x, rule, remembered))
        assert torch.equal(center.pull(), local.pull())
        torch.testing.assert_close(state[0][:BORDER], remembered[0][:BORDER], rtol=1e-5, atol=1e-6)


# What is refused ------------------------------------------------------------------------------------------------------


class Own(hooke.EASGD):
    """A rule of the user's own."""


def nothing(link: hooke.RemoteCenter) -> Tensor:
    return values(1)


def spoiled(link: hooke.RemoteCenter) -> Tensor:
    x = values(1)
    x[3] = math.nan
    return x


@pytest.mark.parametrize(
    ("x", "rule", "kind", "sentence"),
    [
        (spoiled, hooke.EASGD(0.9), hooke.Refused, "x must be finite and below 1e[+]30. Got 1[0-9]* of 1000"),
        (nothing, Own(), ValueError, "must be one of hooke's own"),
        (
            nothing,
            hooke.SlowMo(0.5),
            ValueError,
            "needs the rule that the center was made for|one rule serves for a worker",
        ),
        (lambda link: values(1, 900), hooke.EASGD(0.9), ValueError, "900"),
    ],
    ids=["nan", "own rule", "another memory", "another size"],
)
@pytest.mark.parametrize("codec", ["float32", "int4"])
def test_what_a_center_at_hand_refuses_is_refused(
    x: Callable[[Any], Tensor], rule: Rule, kind: type[Exception], sentence: str, codec: str
) -> None:
    good = hooke.EASGD(0.9)
    with served(1, good, codec) as (center, (link,)):
        link.exchange_(values(3), good)
        before = center.pull()
        with pytest.raises(kind, match=sentence):
            link.exchange(x(link), rule)
        assert torch.equal(center.pull(), before)
        y = values(3)
        total = before.double() + y.double()
        link.exchange_(y, good)  # and the link is as good as before
        torch.testing.assert_close(center.pull().double() + y.double(), total, rtol=0, atol=1e-6)
        assert center.exchanges == 2


def test_another_model_is_refused_with_the_first_difference() -> None:
    with served(1, hooke.EASGD(0.9)) as (_, (link,)):
        other = hooke.connect(link.url)
        with pytest.raises(ValueError, match=r"every worker must bring the same model\. Got .*999"):
            other.join(values(1, 999), hooke.CenterSpec((), 999))
        with pytest.raises(ValueError, match="a second join"):
            link.join(values(0), spec_of(hooke.EASGD(0.9)))
        assert link.status()["num_workers"] == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("center:29400", r"address must be grpc://HOST:PORT or grpc\+tls://HOST:PORT\. Got 'center:29400'"),
        ("http://a:1", "address must be grpc"),
        ("grpc://a", "address must be grpc"),
        ("grpc://192.0.2.1:1", "a token must not travel in the clear"),
    ],
)
def test_an_address_that_can_not_be_is_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        hooke.connect(url, token="secret")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"timeout": 0.0}, r"timeout must be above 0 seconds, and finite\. Got 0\.0"),
        ({"timeout": math.inf}, r"timeout must be above 0 seconds, and finite\. Got inf"),
        ({"wait": math.nan}, r"wait must be 0 seconds or more, and finite\. Got nan"),
        ({"wait": -1.0}, r"wait must be 0 seconds or more, and finite\. Got -1\.0"),
        ({"name": "x" * 201}, r"name must have 1 to 200 characters\. Got 201"),
        ({"codec": "zip"}, r"codec must be one of"),
    ],
    ids=str,
)
def test_a_setting_that_can_not_be_is_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        hooke.connect("grpc://127.0.0.1:1", **settings)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOKE_CENTER", raising=False)
    with pytest.raises(ValueError, match=r"needs the center's address\. Got none\. Pass url, or set HOOKE_CENTER"):
        hooke.connect()
    with hooke.serve(hooke.LocalCenter(), token="secret") as server:
        monkeypatch.setenv("HOOKE_CENTER", server.url)
        with pytest.raises(
            PermissionError, match=r"wants its token\. Got no token\. Pass token=\.\.\., or set HOOKE_TOKEN"
        ):
            hooke.connect()
        monkeypatch.setenv("HOOKE_TOKEN", "secret")
        monkeypatch.setenv("HOOKE_CODEC", "int4")
        assert hooke.connect()._codec.name == "int4"


def test_the_status_says_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = hooke.EASGD(0.9)
    with served(2, rule) as (center, links):
        local = hooke.LocalCenter(center.path)
        local.join(values(0), spec_of(rule))
        links[0].exchange_(values(1), rule)
        links[0].beat(17)
        links[0]._beat_now()
        local.exchange_(values(2), rule)
        status = links[1].status()
        assert (status["parameters"], status["num_workers"], status["local_workers"]) == (NUMEL, 3, 1)
        first, second = status["workers"]
        assert (first["name"], first["step"], first["exchanges"], first["staleness"]) == ("0", 17, 1, 1)
        assert (second["name"], second["exchanges"], second["alive"], second["codec"]) == ("1", 0, True, "float32")
        text = links[1].metrics()
        assert 'hooke_worker_step{worker="0"} 17\n' in text and "hooke_num_workers 3\n" in text
        local.close()


def test_a_worker_that_finished_goes_on_counting() -> None:
    with served(2, hooke.EASGD(0.9)) as (center, links):
        links[0].leave(finished=True)
        assert (center.num_workers, center.counted_workers) == (1, 2)
        links[0].join(values(0), spec_of(hooke.EASGD(0.9)))
        assert (center.num_workers, center.counted_workers) == (2, 2)


def test_a_worker_that_is_started_again_takes_its_own_place() -> None:
    with served(2, hooke.EASGD(0.9)) as (center, links):
        again = hooke.connect(links[0].url, name="1")
        again.join(values(0), spec_of(hooke.EASGD(0.9)))
        assert center.num_workers == 2
        again.close()


def test_beats_are_far_more_frequent_than_a_center_needs() -> None:
    assert 3 * client.BEAT_SECONDS < hooke.center.HEARTBEAT_SECONDS
