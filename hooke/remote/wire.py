"""One worker's line to its center: calls and streams of Flight, and their failures as sentences."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import flight

from hooke.remote import protocol
from hooke.remote.security import read_pem, token_header
from hooke.remote.trouble import Address, translated
from hooke.remote.wakeup import few_wakeups

_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),  # a new client tries at once, whatever an old one met
    ("grpc.http2.max_frame_size", (1 << 24) - 1),  # the three that follow save a third of the processor's time
    ("grpc.http2.lookahead_bytes", 1 << 24),
    ("grpc.http2.write_buffer_size", 1 << 22),
]

JOINING = 10
"""By so much longer than an exchange may joining take."""

_FAILURES = (pa.ArrowException, flight.FlightError, OSError)


class Wire:
    """Speaks to one center.

    Args:
        address: Where it listens.
        token: What it wants.
        authority: PEM file of the authority that its certificate comes from; `None`: those that the system knows.
        certificate: PEM file of this worker's own certificate, for mutual TLS.
        key: PEM file of its private key.
        timeout: Seconds that one call may take.
    """

    def __init__(
        self,
        address: Address,
        *,
        token: str | None,
        authority: str | Path | None,
        certificate: str | Path | None,
        key: str | Path | None,
        timeout: float,
    ) -> None:
        self.address, self.timeout = address, timeout
        self._headers = token_header(token)
        self._tls: dict[str, Any] = {}
        if address.tls:
            self._tls = {
                "tls_root_certs": read_pem(authority, "connect: authority"),
                "cert_chain": read_pem(certificate, "connect: certificate"),
                "private_key": read_pem(key, "connect: key"),
            }
        self._client: flight.FlightClient | None = None
        self._until = math.inf

    def call(self, verb: str, timeout: float | None = None, **header: Any) -> dict[str, Any]:
        """Ask something small.

        Raises:
            OSError: The center can't be reached, or turns this worker away.
        """
        return protocol.unpack(self.ask(verb, timeout, **header))

    def ask(self, verb: str, timeout: float | None = None, **header: Any) -> bytes:
        """As `call`; the answer as it comes."""
        with self._translating():
            action = flight.Action(verb, protocol.pack(header))
            for answer in self._connected().do_action(action, self._options(timeout)):
                return answer.body.to_pybytes()
            raise protocol.ProtocolError("no answer.")

    @contextlib.contextmanager
    def stream(self, verb: str, **header: Any) -> Iterator[tuple[Any, Any]]:
        """A stream in both directions: writer and reader; it is cut where the block raises.

        Raises:
            Refused: The center does not take what was sent.
            ValueError: The worker does not fit the center.
            OSError: The center can't be reached, or something was cut.
        """
        with self._translating():
            descriptor = flight.FlightDescriptor.for_command(protocol.pack({"verb": verb, **header}))
            writer, reader = self._connected().do_exchange(descriptor, self._options(self._left(verb)))
            try:
                writer.begin(protocol.SCHEMA)
                yield writer, reader
            except _FAILURES as error:
                raise _said_by_center(error, writer, reader) from None
            except BaseException:
                reader.cancel()
                with contextlib.suppress(*_FAILURES):
                    writer.close()
                raise
            with contextlib.suppress(*_FAILURES):  # all that was waited for has arrived
                writer.close()

    @contextlib.contextmanager
    def ending(self, until: float) -> Iterator[None]:
        """All streams within end by that time (`time.monotonic`), however many they are."""
        self._until = until
        try:
            yield
        finally:
            self._until = math.inf

    def hang_up(self) -> None:
        """Forget the connection; the next call makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(*_FAILURES):
                client.close()

    def _connected(self) -> flight.FlightClient:
        if self._client is None:
            with few_wakeups():
                self._client = flight.FlightClient(self.address.url, generic_options=_CHANNEL, **self._tls)
        return self._client

    def _left(self, verb: str) -> float:
        """Seconds for one stream. Joining is more patient: it carries every bit, and holds up no training yet."""
        longest = JOINING * self.timeout if verb == protocol.JOIN else self.timeout
        return max(0.001, min(longest, self._until - time.monotonic()))

    def _options(self, timeout: float | None) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=timeout or self.timeout, headers=self._headers)

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except protocol.ProtocolError as error:
            raise ConnectionError(f"connect: {self.address.url} must be a hooke center. Got: {error}") from None
        except _FAILURES as error:
            raise translated(error, self.address, self.timeout) from None


def _said_by_center(error: BaseException, writer: Any, reader: Any) -> BaseException:
    """Why the center broke a stream off, where it said so: a failed write alone does not tell."""
    if protocol.kind_of(error) is None:
        try:
            writer.close()
            reader.read_chunk()
        except flight.FlightError as said:
            error = said
        except (*_FAILURES, StopIteration):
            pass
    reader.cancel()
    with contextlib.suppress(*_FAILURES):
        writer.close()  # or Arrow prints the failure once more, when the writer goes
    return error
