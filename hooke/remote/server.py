"""Serves a `LocalCenter` to workers elsewhere: one port, calls only come in, many links at once."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import torch
from pyarrow import flight
from torch import Tensor

from hooke.center import LocalCenter, blocks_of
from hooke.codec import CODECS, codec_of
from hooke.remote import protocol
from hooke.remote.desk import Desk
from hooke.remote.link import Block, Link, Upload, loss_of
from hooke.remote.protocol import (
    ProtocolError,
    pack,
    received,
    send_block,
    send_header,
    text,
    unpack,
    whole,
    wire_error,
)
from hooke.remote.security import Guard, check_exposure, check_pair, checked_token, read_pem
from hooke.remote.streams import Streams, Watched, cut
from hooke.remote.wakeup import few_wakeups
from hooke.rule_json import rule_from_plain
from hooke.sentence import first_line
from hooke.shared_memory import MAX_WORKERS
from hooke.spec import CenterSpec, Refused

APPLYING = 4
"""Exchanges whose arithmetic runs at once; those that stream may be many more."""

WATCH_SECONDS = 5.0
"""Between two looks for streams that have stalled, and for workers that have fallen silent."""

CLOSE_SECONDS = 10.0
"""How long `close` waits for calls that it has cut."""


class CenterServer:
    """A center that listens; made by `serve`.

    Attributes:
        url: What `hooke.connect` takes.
        center: The center that is served.
    """

    def __init__(self, service: _Service, url: str, center: LocalCenter) -> None:
        self._service, self.url, self.center = service, url, center

    def status(self) -> dict[str, Any]:
        """What `hooke status` shows: workers, steps, staleness, bytes, refusals; plain data."""
        return self._service.desk.status()

    def metrics(self) -> str:
        """The same in Prometheus' text format."""
        return self._service.desk.metrics()

    def wait(self) -> None:
        """Wait until `close` is called."""
        self._service.wait()

    def close(self) -> None:
        """Stop listening, cut what is under way, let all links leave the center."""
        self._service.close()

    def __enter__(self) -> CenterServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(
    center: LocalCenter,
    listen: str = "127.0.0.1:0",
    *,
    token: str | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    authority: str | Path | None = None,
    insecure: bool = False,
    max_workers: int = MAX_WORKERS,
    max_requests: float = 200.0,
) -> CenterServer:
    """Serve a center to workers on other machines, which `hooke.connect` to it; a context manager.

    Workers of this machine go on using the same center through shared memory. Whoever serves need not train.

    Args:
        center: The center; it may be empty, then the first worker sets it.
        listen: HOST:PORT; port 0 takes a free one.
        token: What every worker must bring.
        certificate: PEM file of the server's certificate, for TLS.
        key: PEM file of its private key.
        authority: PEM file of the authority that workers' own certificates must come from (mutual TLS).
        insecure: Listen beyond this machine without a token or TLS.
        max_workers: Workers at most.
        max_requests: Requests a second and worker, at most.

    Raises:
        ValueError: A setting that can't be, or an address beyond this machine without token and TLS.
        OSError: The port can't be had.

    Example:
        ```python
        center = hooke.LocalCenter()
        with hooke.serve(center, "127.0.0.1:0") as server:
            print(server.url)
            ...
        ```
    """
    host, port = _address(listen)
    checked_token(token, "serve")
    check_exposure(host, token=token, certificate=certificate, insecure=insecure)
    tls = _tls(certificate, key, authority)
    desk = Desk(center, max_workers=max_workers, max_requests=max_requests)
    scheme = "grpc+tls" if tls else "grpc"
    try:
        service = _Service(desk, f"{scheme}://{host}:{port}", Guard(token, desk.turned_away), tls)
    except (OSError, pa.ArrowException) as error:
        raise OSError(
            f"serve: {listen} must be an address of this machine with a free port. Got: {_why_not(host, port, error)}. "
            "Use another port, or port 0."
        ) from None
    reached = _own_name() if host in ("0.0.0.0", "[::]") else host
    return CenterServer(service, f"{scheme}://{reached}:{service.port}", center)


def _why_not(host: str, port: int, error: BaseException) -> str:
    """Why nothing can listen there: gRPC does not say."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as found:
        return found.strerror or str(found)
    return first_line(error)


def _own_name() -> str:
    """What other machines call this one; some call themselves localhost in full."""
    name = socket.getfqdn()
    return socket.gethostname() if name.startswith("localhost") else name


def _address(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"serve: listen must be HOST:PORT. Got {listen!r}. Use e.g. 0.0.0.0:29400.")
    return host, int(port)


def _tls(certificate: str | Path | None, key: str | Path | None, authority: str | Path | None) -> dict[str, Any]:
    if (certificate is None) != (key is None) or (authority is not None and certificate is None):
        raise ValueError(
            "serve: certificate and key belong together, and authority needs them. Got only some. Give all, or none."
        )
    if certificate is None or key is None:
        return {}
    pair = (read_pem(certificate, "serve: certificate"), read_pem(key, "serve: key"))
    made: dict[str, Any] = {"tls_certificates": [pair]}
    if authority is not None:
        made |= {"verify_client": True, "root_certificates": read_pem(authority, "serve: authority")}
    check_pair(certificate, key, authority)
    return made


class _Service(flight.FlightServerBase):
    """The verbs of the protocol, on Flight."""

    def __init__(self, desk: Desk, location: str, guard: Guard, tls: dict[str, Any]) -> None:
        with few_wakeups():
            super().__init__(location, middleware={"guard": guard}, **tls)
        self.desk = desk
        self._under_way = Streams(4 * desk.max_workers)
        self._applying = ThreadPoolExecutor(APPLYING, "hooke-apply")
        self._closed, self._ended = threading.Event(), threading.Event()
        self._process = os.getpid()
        self._streams: dict[str, Callable[..., None]] = {
            protocol.JOIN: self._join,
            protocol.RETURN: self._return,
            protocol.EXCHANGE: self._exchange,
            protocol.REPLY: self._reply,
            protocol.PULL: self._pull,
            protocol.MEMORY: self._memory,
            protocol.PUT: self._put,
        }
        threading.Thread(target=self._watch, name="hooke-watch", daemon=True).start()
        atexit.register(self.close)  # or a process that forgets to would wait for workers that say nothing more

    def wait(self) -> None:
        self._closed.wait()

    def close(self) -> None:
        if self._closed.is_set() or os.getpid() != self._process:  # a forked child has the same connections
            return
        self._closed.set()
        atexit.unregister(self.close)
        deadline = time.monotonic() + CLOSE_SECONDS
        while not self._ended.wait(0.05) and time.monotonic() < deadline:
            cut(self.port)  # it waits for every call, also for one whose worker says nothing more
        self._applying.shutdown()
        self.desk.close()

    def _watch(self) -> None:
        """Look for whatever has stalled, until the server closes; then end it."""
        while not self._closed.wait(WATCH_SECONDS):
            for peer in self._under_way.stalled():
                self.desk.refused("stalled")
                cut(self.port, peer)
            self.desk.forget_silent()
        self.shutdown()
        self._ended.set()

    # Flight -----------------------------------------------------------------------------------------------------------

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        with self._answering():
            header = unpack(descriptor.command or b"")
            verb, peer = text(header, "verb"), context.peer()
            if verb not in self._streams:
                raise ProtocolError(f"serve: verb must be one of {', '.join(self._streams)}. Got {verb!r}.")
            self._count(header, peer)
            with self._under_way.one(text(header, "session"), peer) as moved:
                reader, writer = Watched(reader, moved), Watched(writer, moved)
                writer.begin(protocol.SCHEMA)
                self._streams[verb](header, reader, writer, peer)

    def do_action(self, context: Any, action: Any) -> list[flight.Result]:
        with self._answering():
            header = unpack(action.body.to_pybytes() if action.body is not None else b"{}")
            self._count(header, context.peer())
            return [flight.Result(pa.py_buffer(self._acted(action.type, header)))]

    def _count(self, header: dict[str, Any], peer: str) -> None:
        """One request of the worker's budget; of its machine's, if it has none of its own."""
        session = header.get("session")
        known = isinstance(session, str) and self.desk.knows(session)
        self.desk.spend(session if known else peer.rpartition(":")[0])  # type: ignore[arg-type]

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        names = (protocol.HELLO, protocol.BEAT, protocol.LEAVE, protocol.STATUS, protocol.METRICS)
        return [(name, "see hooke.remote.protocol") for name in names]

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Whatever goes wrong is said to the caller, counted, and changes nothing."""
        try:
            with torch.no_grad():
                yield
        except flight.FlightError as error:
            known = protocol.kind_of(error)
            self.desk.refused(known[0] if known else "cut")
            raise
        except Refused as error:
            self.desk.refused(protocol.REFUSED)
            raise wire_error(protocol.REFUSED, str(error)) from None
        except ProtocolError as error:
            self.desk.refused(protocol.PROTOCOL)
            raise wire_error(protocol.PROTOCOL, str(error)) from None
        except (pa.ArrowException, OSError) as error:
            self.desk.refused("cut")
            raise wire_error(
                "cut", f"serve: a stream must arrive whole. Got one that broke: {first_line(error)}. Send it again."
            ) from None
        except ValueError as error:
            self.desk.refused("invalid")
            raise wire_error("invalid", str(error)) from None
        except Exception as error:
            self.desk.refused("failed")
            raise wire_error(
                "failed", f"serve: the center could not answer. Got {type(error).__name__}: {first_line(error)}."
            ) from error

    def _acted(self, name: str, header: dict[str, Any]) -> bytes:
        if name == protocol.HELLO:
            return pack({"version": protocol.VERSION, "codecs": list(CODECS), **self.desk.numbers()})
        if name == protocol.STATUS:
            return pack(self.desk.status())
        if name == protocol.METRICS:
            return self.desk.metrics().encode()
        link = self.desk.link(text(header, "session"))
        if name == protocol.BEAT:
            link.beat(whole(header, "step"))
        elif name == protocol.LEAVE:
            self.desk.leave(link, finished=header.get("finished") is True)
        else:
            raise ProtocolError(f"serve: no action is called {name[:40]!r}. Use hooke.connect.")
        return pack(self.desk.numbers())

    # Streams ----------------------------------------------------------------------------------------------------------

    def _join(self, header: dict[str, Any], reader: Any, writer: Any, peer: str) -> None:
        """A new worker: the first one sets the center, every one gets it."""
        spec = self._checked_spec(header)
        session, name = text(header, "session"), text(header, "name")
        with self.desk.joining(session) as handle:
            ready = handle.ready
            send_header(writer, {"ready": ready})
            initial, *memory = _vectors(reader, spec, 0 if ready else 1 + len(spec.memory)) or [torch.empty(0)]
            self.desk.make_room(session, name, is_new=True)
            values = handle.join(initial, spec, tuple(memory))
            link = self.desk.add(_link(header, peer, handle, values))
        self._send(link, writer, _whole(spec, values))

    def _return(self, header: dict[str, Any], reader: Any, writer: Any, peer: str) -> None:
        """A worker that this server does not know: it brings what it was told, and goes on."""
        spec = self._checked_spec(header)
        number, rule = whole(header, "number"), rule_from_plain(header.get("rule"))
        session, name = text(header, "session"), text(header, "name")
        with self.desk.joining(session) as handle:
            send_header(writer, {"ready": handle.ready})
            told = _vectors(reader, spec, 1)[0]
            self.desk.make_room(session, name, is_new=False)
            handle.join(told, spec, rule.init_center(told) if not handle.ready else ())
            link = _link(header, peer, handle, told)
            link.number = number
            self.desk.add(link)
        send_header(writer, self.desk.numbers())

    def _checked_spec(self, header: dict[str, Any]) -> CenterSpec:
        version = whole(header, "version")
        if version != protocol.VERSION:
            raise wire_error(
                "version",
                f"serve: worker and center must speak the same protocol. Got a worker of version {version}, the center "
                f"has {protocol.VERSION}. Install the same hooke on both.",
            )
        codec_of(text(header, "codec"))
        try:
            spec = CenterSpec.from_json(text(header, "spec", longest=protocol.MAX_HEADER))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ProtocolError(
                f"serve: spec must be a center's. Got {first_line(error)}. Use hooke.connect."
            ) from None
        self.desk.check_spec(spec)
        return spec

    def _exchange(self, header: dict[str, Any], reader: Any, writer: Any, peer: str) -> None:
        """The worker's x comes in; once all of it is there the rule acts, and the correction goes out."""
        link = self._known(header, peer)
        rule, number = rule_from_plain(header.get("rule")), whole(header, "number", least=1)
        start = None if header.get("start") is None else whole(header, "start")
        upload = link.upload(start, whole(header, "numel"))
        _fill(upload, reader, link)
        ready: queue.SimpleQueue[Block | BaseException | None] = queue.SimpleQueue()

        def apply() -> None:
            """In a thread of its own, so that no network holds up what must be done whole."""
            try:
                with torch.no_grad():
                    link.exchange(upload, rule, number, loss_of(header.get("loss")), ready.put)
                ready.put(None)
            except BaseException as error:
                ready.put(error)

        self._applying.submit(apply)
        self._send(link, writer, _emitted(ready))

    def _reply(self, header: dict[str, Any], reader: Any, writer: Any, peer: str) -> None:
        """The correction of the last exchange once more, for a worker that was cut off from it."""
        link = self._known(header, peer)
        _vectors(reader, link.spec, 0)
        owed = link.reply(whole(header, "number", least=1))
        send_header(writer, {"applied": owed is not None})
        self._send(link, writer, iter(owed or ()))

    def _pull(self, header: dict[str, Any], reader: Any, writer: Any, peer: str) -> None:
        link = self._known(header, peer)
        _vectors(reader, link.spec, 0)
        self._send(link, writer, link.pull())

    def _memory(self, header: dict[str, Any], reader: Any, writer: Any, peer: str) -> None:
        """The vectors beside the center, to the bit."""
        link = self._known(header, peer)
        _vectors(reader, link.spec, 0)
        for index, vector in enumerate(link.center.pull_memory().values()):
            for start, coded in _whole(link.spec, vector):
                link.traffic.bytes_sent += send_block(writer, start, coded, index)
        send_header(writer, self.desk.numbers())

    def _put(self, header: dict[str, Any], reader: Any, writer: Any, peer: str) -> None:
        link = self._known(header, peer)
        names = link.spec.memory if header.get("memory") is True else ()
        values, *memory = _vectors(reader, link.spec, 1 + len(names))
        link.center.put(values, dict(zip(names, memory, strict=True)) if names else None)
        send_header(writer, self.desk.numbers())

    def _known(self, header: dict[str, Any], peer: str) -> Link:
        link = self.desk.link(text(header, "session"))
        link.peer = peer
        return link

    def _send(self, link: Link, writer: Any, blocks: Iterator[Block]) -> None:
        for start, coded in blocks:
            link.traffic.bytes_sent += send_block(writer, start, coded)
        send_header(writer, self.desk.numbers())


def _link(header: dict[str, Any], peer: str, handle: LocalCenter, base: Tensor) -> Link:
    codec = codec_of(text(header, "codec"))
    return Link(text(header, "session"), text(header, "name"), peer, codec, handle, handle.spec, base)


def _whole(spec: CenterSpec, values: Tensor) -> Iterator[Block]:
    """Every bit of a vector, block by block."""
    exact = codec_of("float32")
    for _, start, end in blocks_of(spec):
        yield start, exact.encode(values[start:end])


def _vectors(reader: Any, spec: CenterSpec, count: int) -> list[Tensor]:
    """So many whole vectors, to the bit."""
    blocks, exact = blocks_of(spec), codec_of("float32")
    uploads = [Upload(blocks, slice(0, spec.numel), exact) for _ in range(count)]
    for item in received(reader):  # to its end, or the client would write to a stream that is over
        if isinstance(item, dict) or not 0 <= item[0] < count:
            raise ProtocolError(f"serve: only blocks of {count} vectors may come here. Got others. Use hooke.connect.")
        uploads[item[0]].take(item[1], item[2])
    for upload in uploads:
        upload.check()
    return [upload.x for upload in uploads]


def _fill(upload: Upload, reader: Any, link: Link) -> None:
    for item in received(reader):
        if isinstance(item, dict) or item[0] != 0:
            raise ProtocolError("serve: only blocks of one vector may come here. Got others. Use hooke.connect.")
        upload.take(item[1], item[2])
        link.traffic.bytes_received += item[2].numel()


def _emitted(ready: queue.SimpleQueue[Block | BaseException | None]) -> Iterator[Block]:
    while (item := ready.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
