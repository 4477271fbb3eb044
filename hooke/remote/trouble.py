"""What went wrong between a worker and its center, in one sentence that says what to do."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import flight

from hooke.remote.protocol import BUSY, PROTOCOL, REFUSED, UNKNOWN, kind_of
from hooke.sentence import first_line
from hooke.spec import Refused

PROBE_SECONDS = 3.0


class SessionUnknown(ConnectionError):
    """The center and this worker disagree on where they are: the worker must come back as if it were new."""


@dataclass(frozen=True)
class Address:
    """Where a center listens, taken apart.

    Attributes:
        url: As the user wrote it.
        host: Name or number.
        port: Of TCP.
        tls: Whether it is spoken over TLS.
    """

    url: str
    host: str
    port: int
    tls: bool

    @staticmethod
    def of(url: str) -> Address:
        """Take `grpc://HOST:PORT` or `grpc+tls://HOST:PORT` apart.

        Raises:
            ValueError: It is neither.
        """
        scheme, separator, rest = url.partition("://")
        host, colon, port = rest.rstrip("/").rpartition(":")
        if not separator or scheme not in ("grpc", "grpc+tls") or not (colon and host and port.isdecimal()):
            raise ValueError(
                f"connect: a center's address must be grpc://HOST:PORT or grpc+tls://HOST:PORT. Got {url!r}. Take it "
                "from what the center printed."
            )
        return Address(url, host.strip("[]"), int(port), scheme == "grpc+tls")


def translated(error: BaseException, address: Address, timeout: float) -> Exception:
    """What Flight raised, as what a worker acts on: `Refused`, `ValueError`, or an `OSError`."""
    known = kind_of(error)
    if known is not None:
        kind, sentence = known
        if kind == REFUSED:
            return Refused(sentence)
        if kind in (UNKNOWN, PROTOCOL):
            return SessionUnknown(sentence)
        return ValueError(sentence) if kind in ("invalid", "version") else ConnectionError(_busy(kind, sentence))
    if isinstance(error, flight.FlightUnauthenticatedError):
        brought = "another token" if "another" in str(error) else "no token"
        return PermissionError(
            f"connect: {address.url} wants its token. Got {brought}. Pass token=..., or set HOOKE_TOKEN, to what the "
            "center was started with; for a command, --token-file."
        )
    if isinstance(error, flight.FlightTimedOutError) or (
        isinstance(error, flight.FlightCancelledError) and "deadline" in str(error).lower()
    ):
        return TimeoutError(
            f"connect: {address.url} must answer within {timeout:g} seconds. Got none. Look at the center, or raise "
            "timeout: a large model takes long over a slow link."
        )
    if isinstance(error, pa.ArrowException | flight.FlightError | OSError):
        return ConnectionError(f"connect: the link to {address.url} broke. Got: {first_line(error, 300)}.")
    raise error


def _busy(kind: str, sentence: str) -> str:
    return sentence if kind == BUSY else f"{sentence} The center said so."


@dataclass(frozen=True)
class Diagnosis:
    """Why nobody answers.

    Attributes:
        sentence: For people.
        may_pass: Whether waiting may help; a certificate that can't be trusted stays so.
    """

    sentence: str
    may_pass: bool


def diagnosis(
    address: Address,
    authority: str | Path | None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
) -> Diagnosis | None:
    """Why nobody answers there, as far as can be seen from here; `None` if a center seems to listen."""
    where = f"connect: {address.url}"
    try:
        with socket.create_connection((address.host, address.port), PROBE_SECONDS) as plain:
            said = _greeted(plain, address, authority, certificate, key)
            return None if said is None else Diagnosis(f"{where} {said}", False)
    except socket.gaierror:
        said = f"must name a machine. Got {address.host}, which no name server knows. Check the spelling."
    except ConnectionRefusedError:
        said = (
            f"must be where a center listens. Got a machine where nobody listens on port {address.port}. Start the "
            "center first (hooke center, or hooke run --listen), and check the port that it printed."
        )
    except TimeoutError:
        said = (
            f"must be reachable. Got no answer within {PROBE_SECONDS:g} seconds. Check the address, and that the "
            f"firewall lets TCP port {address.port} in."
        )
    except OSError as error:
        said = f"must be reachable. Got: {error.strerror or error}. Check the network."
    return Diagnosis(f"{where} {said}", True)


def _greeted(
    plain: socket.socket,
    address: Address,
    authority: str | Path | None,
    certificate: str | Path | None,
    key: str | Path | None,
) -> str | None:
    """Try to speak TLS."""
    try:
        context = ssl.create_default_context(cafile=None if authority is None else str(authority))
    except ssl.SSLError:
        return f"needs an authority to be trusted by. Got {authority}, which holds no certificate. Pass its ca.pem."
    context.set_alpn_protocols(["h2"])
    if not address.tls:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password="")  # or it would ask for one
        except (ssl.SSLError, OSError):
            return "wants to know this worker. Got a certificate and a key that don't belong together. Pass a pair."
    try:
        with context.wrap_socket(plain, server_hostname=address.host) as secure:
            if address.tls:
                return _let_in(secure, certificate)
            return "must speak in the clear. Got a center that speaks TLS. Use grpc+tls:// and authority=..."
    except ssl.SSLCertVerificationError as error:
        return f"must show a certificate that can be trusted. Got one that can't: {_verdict(error, address)}"
    except (ssl.SSLError, ConnectionError, TimeoutError):
        if not address.tls:
            return None
        return "must speak TLS. Got a center that does not. Use grpc://, or start it with a certificate."


def _let_in(secure: ssl.SSLSocket, certificate: str | Path | None) -> str | None:
    """Whether the center goes on after the handshake: it speaks first, unless it misses the worker's certificate."""
    try:
        if secure.recv(1):
            return None
    except TimeoutError:
        return None
    except (ssl.SSLError, ConnectionError):
        pass
    brought = "none" if certificate is None else f"{certificate}, which it does not trust"
    return (
        f"asks workers for a certificate of their own. Got {brought}. Pass certificate= and key=: the client.pem and "
        "client.key that `hooke certificate DIR` made together with its own."
    )


def _verdict(error: ssl.SSLCertVerificationError, address: Address) -> str:
    said = error.verify_message.lower()
    if "expired" in said:
        return "it has expired. Make a new one on the center's machine: hooke certificate DIR."
    if "not yet valid" in said:
        return "it is not valid yet. Set the clocks of both machines."
    if "hostname" in said or "ip address" in said:
        return f"it is for another name than {address.host}. Make one: hooke certificate DIR --host {address.host}."
    return f"{error.verify_message}. Pass authority=, the ca.pem that was made together with it."
