"""A stranger gets nowhere: refused with a reason on both sides, counted, the center unchanged to the bit.

Whoever has no token gets no further than the token. Whoever has it, and means ill or errs, meets the rest.
"""

from __future__ import annotations

import gc
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy import Proxy
from pyarrow import flight
from torch import Tensor

import hooke
from hooke.certificate import Certificates, make_certificates
from hooke.remote import client, protocol, server, streams
from hooke.remote.desk import Desk
from hooke.remote.security import token_header

BLOCK, NUMEL = 160, 700
SPEC = hooke.CenterSpec((), NUMEL)
RULE = hooke.EASGD(moving_rate=0.5)
TOKEN = "a-token-that-nobody-guesses"
EXCHANGE = {"kind": "EASGD", "moving_rate": 0.5}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooke.center.BLOCK", BLOCK)
    monkeypatch.setattr(client, "BEAT_SECONDS", 1000.0)


def values(seed: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


class Attacked:
    """A center that is served, a good worker of it, and the means of a bad one."""

    def __init__(self, **settings: Any) -> None:
        self.center = hooke.LocalCenter()
        self.served = hooke.serve(self.center, token=TOKEN, max_requests=1e6, **settings)
        self.port = int(self.served.url.rsplit(":", 1)[1])
        self.good = self.connect(codec="int4", name="good")
        self.x = self.good.join(values(0), SPEC) + values(1)
        self.exchange()
        self.bad = self.connect(name="bad", timeout=5.0)
        self.bad.join(values(0), SPEC)
        self.flight = flight.FlightClient(self.served.url)
        self.before = self.center.pull()

    def connect(self, **settings: Any) -> hooke.RemoteCenter:
        return hooke.connect(self.served.url, token=TOKEN, **settings)

    def exchange(self) -> None:
        self.x -= self.good.exchange(self.x, RULE)

    def close(self) -> None:
        for link in (self.good, self.bad):
            link.close()
        self.served.close()
        self.center.close()

    @property
    def refused(self) -> dict[str, int]:
        return self.served.status()["refused"]

    def options(self, token: str | None = TOKEN, timeout: float = 5.0) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=timeout, headers=token_header(token))

    def stream(self, header: Any, token: str | None = TOKEN, timeout: float = 5.0) -> tuple[Any, Any]:
        command = header if isinstance(header, bytes) else protocol.pack(header)
        return self.flight.do_exchange(
            flight.FlightDescriptor.for_command(command), self.options(token, timeout=timeout)
        )

    def header(self, **changes: Any) -> dict[str, Any]:
        """Of an exchange that would be taken, but for the changes."""
        plain = {"verb": "exchange", "session": self.bad._session, "number": self.bad._number + 1}
        return {**plain, "numel": NUMEL, "start": 0, "rule": EXCHANGE, **changes}

    def send(
        self, header: Any, batches: Any = (), *, schema: pa.Schema = protocol.SCHEMA, token: str | None = TOKEN
    ) -> str:
        """Send all that; what the center said, or nothing if it did it."""
        try:
            writer, reader = self.stream(header, token)
        except flight.FlightError as error:
            return f"{type(error).__name__}: {error}"
        try:
            with suppress(OSError, pa.ArrowException, flight.FlightError):
                writer.begin(schema)
                for batch, place in batches:
                    if batch is None:
                        writer.write_metadata(pa.py_buffer(place))
                    else:
                        writer.write_with_metadata(batch, pa.py_buffer(place))
                writer.done_writing()
            while True:
                reader.read_chunk()
        except StopIteration:
            return ""
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            known = protocol.kind_of(error)
            return known[1] if known else f"{type(error).__name__}: {error}"
        finally:
            with suppress(OSError, pa.ArrowException, flight.FlightError):
                writer.close()

    def act(self, name: str, body: bytes, token: str | None = TOKEN) -> bytes:
        return next(iter(self.flight.do_action(flight.Action(name, body), self.options(token)))).body.to_pybytes()

    def check_unharmed(self) -> None:
        """The center is what it was, to the bit; and a good worker is served."""
        assert torch.equal(self.center.pull(), self.before)
        total = self.center.pull() + self.x
        self.exchange()
        torch.testing.assert_close(self.center.pull() + self.x, total, atol=1e-5, rtol=0)
        self.before = self.center.pull()


@pytest.fixture
def attacked() -> Iterator[Attacked]:
    made = Attacked()
    yield made
    made.close()


def blocks(vector: Tensor) -> list[tuple[pa.RecordBatch, bytes]]:
    """As a worker sends them, every bit."""
    parts = [(start, vector[start : start + BLOCK]) for start in range(0, vector.numel(), BLOCK)]
    return [(batch(part.numpy().tobytes()), place(start)) for start, part in parts]


def batch(data: bytes) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(list(data), pa.uint8())], schema=protocol.SCHEMA)


def place(start: int, vector: int = 0) -> bytes:
    return struct.pack("<qq", vector, start)


# Without the token ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "brought"), [(None, "no token"), ("guessed", "another token")])
def test_without_the_token_nothing_is_answered(token: str | None, brought: str, attacked: Attacked) -> None:
    with pytest.raises(PermissionError, match=rf"wants its token. Got {brought}. Pass token=..., or set HOOKE_TOKEN"):
        hooke.connect(attacked.served.url, token=token)
    count = attacked.refused["token"]
    for name in ("hello", "beat", "leave", "status", "metrics", "nothing"):
        with pytest.raises(flight.FlightUnauthenticatedError):
            attacked.act(name, b"{}", token)
    for verb in ("join", "return", "exchange", "reply", "pull", "memory", "put"):
        assert "Unauthenticated" in attacked.send(attacked.header(verb=verb), blocks(values(7)), token=token)
    ticket, descriptor, options = flight.Ticket(b"x"), flight.FlightDescriptor.for_command(b""), attacked.options(token)
    for call in (
        lambda: attacked.flight.do_get(ticket, options).read_all(),
        lambda: list(attacked.flight.list_flights(options=options)),
        lambda: attacked.flight.get_flight_info(descriptor, options),
        lambda: attacked.flight.get_schema(descriptor, options),
        lambda: attacked.flight.list_actions(options),
    ):
        with pytest.raises((pa.ArrowException, OSError), match="token"):
            list(call() or ())
    assert attacked.refused["token"] >= count + 13
    attacked.check_unharmed()


def test_with_the_token_other_calls_of_flight_do_nothing(attacked: Attacked) -> None:
    descriptor, options = flight.FlightDescriptor.for_command(b""), attacked.options()
    for call in (
        lambda: attacked.flight.do_get(flight.Ticket(b"x"), options).read_all(),
        lambda: list(attacked.flight.list_flights(options=options)),
        lambda: attacked.flight.get_flight_info(descriptor, options),
        lambda: attacked.flight.get_schema(descriptor, options),
        lambda: attacked.flight.authenticate_basic_token("me", "secret"),
    ):
        with pytest.raises((pa.ArrowException, NotImplementedError)):
            call()
    attacked.check_unharmed()


# With the token -------------------------------------------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000
HEADERS = {
    "empty": b"",
    "no JSON": b"\xff\x00",
    "no object": b"[1]",
    "deep": DEEP,
    "deep inside": b'{"verb": "exchange", "rule": ' + DEEP + b"}",
    "huge": b'{"verb": "' + b"x" * (1 << 22) + b'"}',
    "not a number": b'{"verb": "exchange", "number": NaN}',
    "many digits": b'{"verb": "exchange", "number": ' + b"9" * 5000 + b"}",
    "no verb": b"{}",
    "a verb that is none": b'{"verb": "eval"}',
    "a verb of another kind": b'{"verb": {"verb": "join"}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none_is_refused(name: str, attacked: Attacked) -> None:
    count = sum(attacked.refused.values())
    said = attacked.send(HEADERS[name], blocks(values(7)))
    assert said.startswith("serve: "), said
    assert len(said) <= protocol.MAX_SENTENCE
    if name not in ("no verb", "a verb that is none", "a verb of another kind"):
        with pytest.raises(flight.FlightError, match="must"):
            attacked.act("beat", HEADERS[name])
    assert sum(attacked.refused.values()) > count
    attacked.check_unharmed()


ABSURD = [
    {"kind": "EASGD", "moving_rate": 1.5},
    {"kind": "EASGD", "moving_rate": 1e300},
    {"kind": "EASGD", "moving_rate": "0.5"},
    {"kind": "EASGD", "moving_rate": [0.5]},
    {"kind": "EASGD", "beta": -1},
    {"kind": "EASGD", "nothing": 1},
    {"kind": "Rule"},
    {"kind": "os.system", "beta": "true"},
    {"kind": ["EASGD"]},
    {"kind": "DiLoCo", "outer_lr": 1e30},
    {"kind": "LocalSGD", "num_workers": 0},
    {"kind": "LocalSGD", "num_workers": "2"},
    {"kind": "LocalSGD", "num_workers": 1e-9},
    {"kind": "LocalSGD", "mixing": 1.0},
    {"kind": "SlowMo"},
    {"kind": "Averaged", "rule": {"kind": "Averaged", "rule": EXCHANGE}},
    {"kind": "Averaged", "rule": None},
    "EASGD",
    None,
    7,
]
WRONG = {
    "session": [None, 3, "", "x" * 500, "unknown", "\ud800"],
    "number": [None, 0, -1, 1.0, 2, 1 << 70, True, "1"],
    "numel": [None, 0, 699, 701, 1 << 61, -1],
    "start": [-1, 1, 700, 1 << 61, "0", 0.0],
    "rule": ABSURD,
}


@pytest.mark.parametrize("name", WRONG)
def test_an_exchange_with_a_wrong_word_is_refused(name: str, attacked: Attacked) -> None:
    for wrong in WRONG[name]:
        count = sum(attacked.refused.values())
        said = attacked.send(attacked.header(**{name: wrong}), blocks(values(7)))
        assert said.startswith(("serve: ", "center: ", "EASGD: ", "LocalSGD: ", "DiLoCo: ", "Averaged: ")), (
            wrong,
            said,
        )
        assert sum(attacked.refused.values()) > count
        assert torch.equal(attacked.center.pull(), attacked.before), wrong
    attacked.check_unharmed()


def broken() -> dict[str, Any]:
    good, one = blocks(values(7)), blocks(values(7))[0][0]
    return {
        "nothing": [],
        "cut short": good[:-1],
        "one twice": [*good, good[0]],
        "one twice in place of another": [*good[:-1], good[0]],
        "out of range": [*good[:-1], (one, place(NUMEL))],
        "far out of range": [*good[:-1], (one, place(1 << 62))],
        "a negative place": [*good[:-1], (one, place(-BLOCK))],
        "between the blocks": [*good[:-1], (one, place(7))],
        "another vector": [*good[:-1], (good[-1][0], place(4 * BLOCK, 1))],
        "a negative vector": [*good[:-1], (good[-1][0], place(4 * BLOCK, -1))],
        "too long": [*good[:-1], (batch(bytes(4 * BLOCK)), place(4 * BLOCK))],
        "much too long": [*good[:-1], (batch(bytes(1 << 20)), place(4 * BLOCK))],
        "too short": [*good[:-1], (batch(bytes(3)), place(4 * BLOCK))],
        "empty": [*good[:-1], (batch(b""), place(4 * BLOCK))],
        "no place": [*good[:-1], (one, b"")],
        "half a place": [*good[:-1], (one, b"\0" * 9)],
        "a header in between": [good[0], (None, b"{}"), *good[1:]],
        "no header in between": [good[0], (None, b"\xff"), *good[1:]],
    }


@pytest.mark.parametrize("name", broken())
def test_a_vector_that_is_none_is_refused(name: str, attacked: Attacked) -> None:
    count = attacked.refused.get("protocol", 0)
    said = attacked.send(attacked.header(), broken()[name])
    assert said.startswith("serve: "), said
    assert attacked.refused["protocol"] == count + 1
    attacked.check_unharmed()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1] * 640, pa.int8()),
        pa.array([1.0] * 160, pa.float32()),
        pa.array([None, *[1] * 639], pa.uint8()),
        pa.array(["x"] * 640),
        pa.array([[1]] * 640),
        pa.array(["a"] * 640).dictionary_encode(),
        pa.nulls(640),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_of_another_kind_are_refused(column: pa.Array, attacked: Attacked) -> None:
    sent = pa.record_batch([column], names=["bytes"])
    said = attacked.send(attacked.header(), [(sent, place(0))], schema=sent.schema)
    assert said.startswith("serve: a block must be bytes with their place."), said
    attacked.check_unharmed()


def test_two_columns_and_none_are_refused(attacked: Attacked) -> None:
    column = pa.array([1] * 640, pa.uint8())
    two = pa.record_batch([column, column], names=["bytes", "more"])
    none = pa.record_batch([], schema=pa.schema([]))
    for sent in (two, none):
        assert "must be bytes with their place" in attacked.send(
            attacked.header(), [(sent, place(0))], schema=sent.schema
        )
    attacked.check_unharmed()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e31, -3e38])
def test_values_that_are_no_parameters_are_refused(bad: float, attacked: Attacked) -> None:
    x = values(7)
    x[NUMEL - 3] = bad
    with pytest.raises(hooke.Refused, match=r"must be finite and below 1e\+30. Got 1 of 700"):
        attacked.bad.exchange(x, RULE)
    for verb in ("put", "return", "join"):
        other = attacked.connect(name="other", timeout=5.0)
        other._session, other._spec, other._blocks = "made up", SPEC, []
        header = {**other._introduction("made up", SPEC), "number": 3, "rule": EXCHANGE}
        said = attacked.send({"verb": verb, **header, "session": attacked.bad._session}, blocks(x))
        assert "must be finite" in said or verb == "join"
    assert attacked.refused["refused"] == 3
    attacked.check_unharmed()


def test_the_first_worker_of_an_empty_center_can_not_bring_just_anything() -> None:
    center = hooke.LocalCenter()
    with hooke.serve(center) as served:
        entry = {"name": "w", "shape": [10], "dtype": "float32", "offset": 0, "order": [0], "kind": "parameter"}
        good = {"entries": [], "numel": 10, "parameters_end": 10, "memory": [], "schedule": ""}
        for changes in (
            {"numel": 10_000_000_000_000},
            {"numel": 0, "parameters_end": 0},
            {"numel": -5},
            {"parameters_end": 11},
            {"numel": "ten"},
            {"numel": None},
            {"memory": ["m"] * 1000},
            {"memory": ["\ud800"]},
            {"memory": 7},
            {"entries": 5},
            {"entries": [5]},
            {"entries": [{}]},
            {"entries": [{**entry, "shape": [11]}]},
            {"entries": [{**entry, "offset": 5}]},
            {"entries": [{**entry, "offset": -1}]},
            {"entries": [{**entry, "shape": [-10]}]},
            {"entries": [{**entry, "shape": ["10"]}]},
            {"entries": [{**entry, "order": [0, 0]}]},
            {"entries": [{**entry, "order": [1]}]},
            {"entries": [{**entry, "name": "\ud800"}]},
            {"entries": [{**entry, "name": 3}]},
            {"entries": [{**entry, "kind": "other"}]},
            {"entries": [{**entry, "more": 1}]},
        ):
            link = hooke.connect(served.url)
            header = {"version": 1, "session": "s", "name": "n", "codec": "float32"}
            spec = json.dumps({**good, **changes})
            with (
                pytest.raises((ValueError, OSError)),
                link._wire.stream("join", **header, spec=spec) as (writer, reader),
            ):
                writer.done_writing()
                while True:
                    reader.read_chunk()
            link.close()
        huge = json.dumps({**good, "numel": 1}).replace('"numel": 1', '"numel": 1e999')
        with (
            pytest.raises((ValueError, OSError), match="spec must be"),
            hooke.connect(served.url)._wire.stream("join", **header, spec=huge) as (_, reader),
        ):
            reader.read_chunk()
        assert not center.ready
        assert served.status()["refused"].get("failed", 0) == 0
        link = hooke.connect(served.url)
        with pytest.raises(hooke.Refused, match="must be finite"):
            link.join(torch.full((10,), torch.nan), hooke.CenterSpec((), 10))
        assert not center.ready
        link.join(torch.ones(10), hooke.CenterSpec((), 10))
        link.close()
    center.close()


def test_two_first_workers_at_once_make_one_center() -> None:
    rule = hooke.DiLoCo()
    for turn in range(5):
        center = hooke.LocalCenter()
        with hooke.serve(center) as served:
            links = [hooke.connect(served.url) for _ in range(4)]
            told: dict[int, Tensor] = {}
            spec = hooke.CenterSpec((), NUMEL, memory=rule.center_memory)

            def join(number: int, links: Any = links, told: Any = told, spec: Any = spec, turn: int = turn) -> None:
                initial = values(10 * turn + number)
                told[number] = links[number].join(initial, spec, rule.init_center(initial))

            threads = [threading.Thread(target=join, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert all(torch.equal(told[number], center.pull()) for number in range(4))
            assert any(torch.equal(center.pull(), values(10 * turn + number)) for number in range(4))
            assert center.num_workers == 4
            for link in links:
                link.close()
        center.close()


def test_another_model_is_refused_before_it_is_sent(attacked: Attacked, capfd: pytest.CaptureFixture[str]) -> None:
    link = attacked.connect()
    with pytest.raises(ValueError, match=r"every worker must bring the same model. Got 0 tensors \(701 elements"):
        link.join(torch.zeros(701), hooke.CenterSpec((), 701))
    long = hooke.CenterSpec.of([hooke.flat.Entry("n" * 100_000, (NUMEL,), "float32", 0, (0,))])
    with pytest.raises((ValueError, OSError), match="must"):
        link.join(torch.zeros(long.numel), long)
    assert link.bytes_sent == 0
    attacked.check_unharmed()
    gc.collect()
    assert "Close() failed" not in capfd.readouterr().err  # one sentence is enough


def test_lengths_that_are_lies_read_no_memory_of_the_center(attacked: Attacked) -> None:
    """A batch that says it is longer than its bytes are: its frame is changed on the way, in every combination."""
    true, lie = struct.pack("<q", 37), struct.pack("<q", 4 * BLOCK)
    with Proxy(attacked.port) as proxy:
        attacked.flight, lies = flight.FlightClient(proxy.url), []
        for places in range(1, 8):

            def lying(piece: bytes, places: int = places) -> bytes:
                parts = piece.split(true)
                if len(parts) > 1:
                    lies.append(len(parts) - 1)
                between = [lie if places >> index & 1 else true for index in range(len(parts) - 1)]
                return b"".join(part + number for part, number in zip(parts, [*between, b""], strict=True))

            proxy.rewritten = lying
            header = attacked.header()
            said = attacked.send(header, [(batch(b"x" * 37), place(0)), *blocks(values(7))[1:]])
            wanted = "must be bytes with their place" if places == 0b101 else "must arrive whole"
            assert wanted in said, f"{places:03b}: {said}"
            assert torch.equal(attacked.center.pull(), attacked.before)
        assert lies == [3] * 7
    attacked.check_unharmed()


def test_names_that_can_not_be_printed_are_refused_and_metrics_go_on(attacked: Attacked) -> None:
    for name in ("\ud800", "a\nhooke_exchanges 7", "x" * 201):
        link = attacked.connect(name="as it should be")
        link._name = name  # past what `connect` itself refuses
        with pytest.raises(OSError, match="name must be a printable text of at most 200 characters"):
            link.join(values(0), SPEC)
        link.close()
    quoted = attacked.connect(name='a"b\\')
    quoted.join(values(0), SPEC)
    assert r'hooke_worker_step{worker="a\"b\\"} 0' in quoted.metrics()
    quoted.close()
    attacked.check_unharmed()


# Who asks too much ----------------------------------------------------------------------------------------------------


def test_a_worker_that_asks_too_often_is_refused_and_others_are_not() -> None:
    attacked = Attacked()
    attacked.served._service.desk._max_requests = 5.0
    said = [attacked.send(attacked.header(number=99), blocks(values(7))) for _ in range(20)]
    assert (
        sum(
            "may ask 5 times a second. Got more. Exchange less often, or serve it with hooke.serve(max_req" in each
            for each in said
        )
        >= 5
    )
    assert attacked.refused["busy"] >= 5
    attacked.check_unharmed()
    attacked.close()


def test_whoever_only_says_hello_may_not_do_so_for_ever() -> None:
    attacked = Attacked()
    attacked.served._service.desk._max_requests = 5.0
    refused = 0
    for _ in range(30):
        try:
            attacked.act("status", b"{}")
        except flight.FlightError as error:
            refused += "times a second" in str(error)
    assert refused >= 10
    attacked.check_unharmed()
    attacked.close()


def test_at_most_so_many_workers_come_also_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attacked = Attacked(max_workers=3)
    add = Desk.add
    monkeypatch.setattr(Desk, "add", lambda self, link: (time.sleep(0.1), add(self, link))[1])
    links, said = [attacked.connect(name=f"w{i}") for i in range(6)], []

    def join(link: hooke.RemoteCenter) -> None:
        try:
            link.join(values(0), SPEC)
        except OSError as error:
            said.append(str(error))

    threads = [threading.Thread(target=join, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    full = "serve: at most 3 workers may come. Got one more. Serve it with hooke.serve(max_workers=...), or split "
    assert said == [f"{full}the vector over several centers."] * 5
    assert len(attacked.served.status()["workers"]) == 3
    for link in links:
        link.close()
    attacked.check_unharmed()
    attacked.close()


def test_uploads_that_never_end_are_counted_and_cut(attacked: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(server, "WATCH_SECONDS", 0.1)
    fresh = Attacked()
    stalled = []
    first, where = blocks(values(7))[0]
    for _ in range(streams.MAX_STREAMS):
        writer, reader = fresh.stream(fresh.header(), timeout=60)
        writer.begin(protocol.SCHEMA)
        writer.write_with_metadata(first, pa.py_buffer(where))
        stalled.append((writer, reader))
    time.sleep(0.1)
    assert "at most 8 streams of a worker" in fresh.send(fresh.header(), blocks(values(7)))
    fresh.check_unharmed()
    deadline = time.monotonic() + 20
    while fresh.served._service._under_way._moved and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not fresh.served._service._under_way._moved
    assert fresh.refused["stalled"] >= 1
    assert fresh.send(fresh.header(), blocks(values(0))) == ""
    fresh.before = fresh.center.pull()
    fresh.exchange()
    fresh.close()


def test_closing_does_not_wait_for_anybody(attacked: Attacked) -> None:
    """Streams that stall either way, and a peer that has gone without a word."""
    fresh = Attacked()
    with Proxy(fresh.port) as proxy:
        fresh.flight = flight.FlightClient(proxy.url)
        open_streams = []
        for verb in ("exchange", "pull", "put", "join"):
            writer, reader = fresh.stream(fresh.header(verb=verb, version=1), timeout=60)
            writer.begin(protocol.SCHEMA)
            open_streams.append((writer, reader))
        time.sleep(0.2)
        proxy.is_silent = True
        began = time.monotonic()
        fresh.served.close()
        assert time.monotonic() - began < 5
        assert not fresh.served._service._under_way._moved
        assert fresh.center.num_workers == 0
        proxy.is_silent = False
        for writer, reader in open_streams:
            reader.cancel()
            with suppress(OSError, pa.ArrowException, flight.FlightError):
                writer.close()
    fresh.center.close()


FORGETFUL = """
import os
import hooke, torch
from hooke.remote import protocol
from pyarrow import flight

center = hooke.LocalCenter()
served = hooke.serve(center)
link = hooke.connect(served.url)
link.join(torch.zeros(700), hooke.CenterSpec((), 700))
header = {"verb": "put", "session": link._session}
writer, reader = flight.FlightClient(served.url).do_exchange(
    flight.FlightDescriptor.for_command(protocol.pack(header))
)
writer.begin(protocol.SCHEMA)
if not os.fork():
    served.close()
    os._exit(0)
os.wait()
assert link.status()["num_workers"] == 1
try:
    writer.done_writing()
    reader.read_chunk()
except flight.FlightError as error:
    assert "all blocks must arrive" in str(error), error
print("the child has closed nothing", flush=True)
"""


def test_a_process_that_forgets_to_close_ends_and_its_child_closes_nothing() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORGETFUL]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "the child has closed nothing\n"


def test_a_worker_that_takes_no_reply_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply larger than all buffers on the way waits for a reader; the lock of its link and the center do not."""
    monkeypatch.setattr("hooke.center.BLOCK", 1 << 18)
    numel = 4_000_000
    center = hooke.LocalCenter()
    with hooke.serve(center) as served:
        good, bad = (hooke.connect(served.url, name=name, timeout=20.0) for name in ("good", "bad"))
        spec, x = hooke.CenterSpec((), numel), torch.zeros(numel)
        good.join(x, spec)
        bad.join(x, spec)
        header = {"session": bad._session, "number": 1, "numel": numel, "start": 0, "rule": EXCHANGE}
        with pytest.raises(OSError, match="must answer within 3"):
            bad._wire.timeout = 3.0
            with bad._wire.stream("exchange", **header) as (writer, reader):
                for _, first, end in bad._blocks:
                    protocol.send_block(writer, first, x[first:end].view(torch.uint8))
                writer.done_writing()
                time.sleep(0.5)
                for _ in range(3):
                    began = time.monotonic()
                    good.exchange(x, RULE)
                    assert good.status()["num_workers"] == 2
                    assert time.monotonic() - began < 2
                time.sleep(3)
                for _ in range(100):
                    reader.read_chunk()
        good.exchange(x, RULE)
        for link in (good, bad):
            link.close()
    center.close()


def test_two_exchanges_of_one_session_at_once_are_one(attacked: Attacked) -> None:
    said: list[str] = []
    sends = [
        threading.Thread(target=lambda: said.append(attacked.send(attacked.header(), blocks(values(7)))))
        for _ in range(4)
    ]
    for thread in sends:
        thread.start()
    for thread in sends:
        thread.join(20)
    assert sorted(map(bool, said)) == [False, True, True, True]
    assert all("exchanges must come in order" in each for each in said if each)
    torch.testing.assert_close(attacked.center.pull(), (attacked.before + values(7)) / 2)


# TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("ours"), ["127.0.0.1"])


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("theirs"), ["127.0.0.1"])


def check_served(served: hooke.CenterServer, **settings: Any) -> None:
    """A good worker is served, and only it has done anything."""
    assert not served.center.ready
    link = hooke.connect(served.url, token=TOKEN, codec="int8", **settings)
    x = link.join(values(0), SPEC) + 1
    x -= link.exchange(x, RULE)
    torch.testing.assert_close(served.center.pull(), values(0) + 0.5, atol=1e-2, rtol=0)
    link.close()


def test_over_tls_whoever_trusts_another_authority_or_speaks_in_the_clear_is_told_so(
    ours: Certificates, theirs: Certificates
) -> None:
    center = hooke.LocalCenter()
    with hooke.serve(center, token=TOKEN, certificate=ours.certificate, key=ours.key) as served:
        assert served.url.startswith("grpc+tls://")
        plain = served.url.replace("grpc+tls", "grpc")
        for authority in (theirs.authority, None):
            with pytest.raises(OSError, match=r"must show a certificate that can be trusted. Got one that can't"):
                hooke.connect(served.url, token=TOKEN, authority=authority)
        with pytest.raises(OSError, match=r"must speak in the clear. Got a center that speaks TLS. Use grpc\+tls://"):
            hooke.connect(plain, token=TOKEN)
        with pytest.raises(PermissionError, match="Got another token"):
            hooke.connect(served.url, token="guessed", authority=ours.authority)
        for data in (PREFACE, b"GET / HTTP/1.1\r\n\r\n", bytes(1 << 16), b"\x16\x03\x01\x02\x00" + bytes(512)):
            raw(int(served.url.rsplit(":", 1)[1]), data)
        check_served(served, authority=ours.authority)
    center.close()


def test_tls_to_a_port_in_the_clear_is_told_so(attacked: Attacked, ours: Certificates) -> None:
    with pytest.raises(OSError, match=r"must speak TLS. Got a center that does not. Use grpc://"):
        hooke.connect(attacked.served.url.replace("grpc", "grpc+tls"), token=TOKEN, authority=ours.authority)
    attacked.check_unharmed()


def test_mutual_tls_takes_only_workers_of_its_own_authority(ours: Certificates, theirs: Certificates) -> None:
    center = hooke.LocalCenter()
    files: dict[str, Any] = {"certificate": ours.certificate, "key": ours.key, "authority": ours.authority}
    with hooke.serve(center, token=TOKEN, **files) as served:
        for made in (None, theirs):
            own: dict[str, Any] = (
                {} if made is None else {"certificate": made.client_certificate, "key": made.client_key}
            )
            with pytest.raises(OSError, match="connect: "):
                hooke.connect(served.url, token=TOKEN, authority=ours.authority, timeout=3.0, **own)
        own = {"certificate": ours.client_certificate, "key": ours.client_key}
        check_served(served, authority=ours.authority, **own)
    center.close()


# Not even Flight ------------------------------------------------------------------------------------------------------


def raw(port: int, data: bytes) -> None:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as plain:
        plain.sendall(data)
        plain.settimeout(0.2)
        plain.recv(1 << 16)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def test_bytes_that_are_no_call_do_no_harm(attacked: Attacked) -> None:
    for data in (
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        PREFACE,
        PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x00" + bytes(1 << 16),
        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 1000,
        bytes(1 << 20),
    ):
        raw(attacked.port, data)
    attacked.check_unharmed()


# Chance ---------------------------------------------------------------------------------------------------------------

_WORDS = st.sampled_from(
    ["join", "return", "exchange", "reply", "pull", "memory", "put", "hello", "EASGD", "float32", "int4", "", "x"]
)
_NUMBERS = st.one_of(st.integers(-2, 3), st.integers(), st.floats(), st.sampled_from([NUMEL, BLOCK, 1 << 62, 1e308]))
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _WORDS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)
_KEYS = ("version", "session", "number", "numel", "start", "rule", "loss", "name", "codec", "spec", "memory", "step")
_BATCHES = st.lists(st.tuples(st.binary(max_size=700), st.binary(max_size=20) | st.builds(place, st.integers(-5, 705))))


@pytest.fixture(scope="module")
def long_attacked() -> Iterator[Attacked]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hooke.center.BLOCK", BLOCK)
        patched.setattr(client, "BEAT_SECONDS", 1000.0)
        made = Attacked()
        yield made
        made.close()


_ANY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_ANY
@given(
    verb=st.sampled_from(("join", "return", "exchange", "reply", "memory")),
    changes=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=5),
    batches=_BATCHES,
)
def test_whatever_comes_over_a_stream_the_center_stays_what_it_is(
    verb: str, changes: dict[str, Any], batches: list[Any], long_attacked: Attacked
) -> None:
    """A random vector is never whole; a random header may well be right (a reply, a name)."""
    plain = {**long_attacked.bad._introduction(long_attacked.bad._session, SPEC), "number": 1, "numel": NUMEL}
    header = {**plain, "start": 0, "rule": EXCHANGE, "verb": verb, **changes}
    long_attacked.send(json.dumps(header).encode(), [(batch(data), where) for data, where in batches])
    assert torch.equal(long_attacked.center.pull(), long_attacked.before)


@_ANY
@given(
    name=st.sampled_from(("hello", "beat", "leave", "status", "metrics")) | st.text(max_size=20),
    body=st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(_KEYS), _JSON).map(lambda it: json.dumps(it).encode()),
)
def test_whatever_is_asked_the_center_answers(name: str, body: bytes, long_attacked: Attacked) -> None:
    with suppress(pa.ArrowException, flight.FlightError, UnicodeError):
        long_attacked.act(name, body)
    assert torch.equal(long_attacked.center.pull(), long_attacked.before)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=400), greets=st.booleans())
def test_whatever_bytes_come_the_center_lives(data: bytes, greets: bool, long_attacked: Attacked) -> None:
    with suppress(OSError), socket.create_connection(("127.0.0.1", long_attacked.port), 2) as plain:
        plain.sendall((PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" if greets else b"") + data)
    assert torch.equal(long_attacked.center.pull(), long_attacked.before)


def test_after_all_that_good_workers_are_served(long_attacked: Attacked) -> None:
    long_attacked.check_unharmed()
    assert long_attacked.refused.get("failed", 0) == 0, "each refusal is one that was thought of"
