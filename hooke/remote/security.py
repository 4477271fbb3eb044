"""Who may talk to a center, and over what: tokens, TLS, and no listening in the clear beyond this machine."""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import flight

_HEADER = "authorization"
_SCHEME = "Bearer "


class Guard(flight.ServerMiddlewareFactory):
    """Turns away every call without the token, before anything of it is looked at.

    A stream's blocks are not even received then. A request of one message is: gRPC takes all of it in before it
    asks anybody, and Flight offers no limit in Python. Mutual TLS turns away before that.

    Args:
        token: What a call must bring; `None`: nothing.
        turned_away: Is told that a call was.
    """

    def __init__(self, token: str | None, turned_away: Callable[[], None]) -> None:
        super().__init__()
        self._expected = None if token is None else bearer(token).encode()
        self._turned_away = turned_away

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        """Compare in constant time.

        Raises:
            FlightUnauthenticatedError: Another token, or none.
        """
        if self._expected is None:
            return
        brought = next(iter(headers.get(_HEADER, [])), "")
        got = brought if isinstance(brought, bytes) else str(brought).encode()
        if not hmac.compare_digest(got, self._expected):
            self._turned_away()
            raise flight.FlightUnauthenticatedError("another token" if got else "no token")


def bearer(token: str) -> str:
    """The value of the header that carries the token."""
    return _SCHEME + token


def token_header(token: str | None) -> list[tuple[bytes, bytes]]:
    """The headers that a call brings."""
    return [] if token is None else [(_HEADER.encode(), bearer(token).encode())]


def checked_token(token: str | None, who: str) -> str | None:
    """Refuse a token that a header can't carry.

    Raises:
        ValueError: It is empty, or has other than printable ASCII characters.
    """
    if token is None or (token and token.isascii() and token.isprintable() and " " not in token):
        return token
    raise ValueError(
        f"{who}: token must be printable ASCII without spaces, at least one character. Got {len(token)} characters "
        "that are not. Make one: python -c 'import secrets; print(secrets.token_urlsafe())'."
    )


def check_exposure(host: str, *, token: str | None, certificate: object, insecure: bool) -> None:
    """Refuse to listen beyond this machine without a token and TLS.

    Raises:
        ValueError: That.
    """
    if is_loopback(host) or insecure or (token is not None and certificate is not None):
        return
    lacks = " and ".join(
        [*(["token"] if token is None else []), *(["certificate and key"] if certificate is None else [])]
    )
    raise ValueError(
        f"serve: beyond this machine a token and TLS are needed. Got {host} without {lacks}. Give them (`hooke "
        "certificate DIR` makes them), listen on 127.0.0.1, or say insecure=True (--insecure)."
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_pem(path: str | Path | None, what: str) -> bytes | None:
    """The bytes of a PEM file; `None` where none is named.

    Raises:
        ValueError: It can't be read, or is none.
    """
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{what} must be a file that can be read. Got {path}: {error.strerror}. `hooke certificate DIR` makes one."
        ) from None
    if b"-----BEGIN" not in data:
        raise ValueError(f"{what} must be a PEM file. Got {path}, which is none. `hooke certificate DIR` makes one.")
    return data


def check_pair(certificate: str | Path, key: str | Path, authority: str | Path | None = None) -> None:
    """Refuse files that a server can't speak TLS with: gRPC itself does not say what is wrong with them.

    Raises:
        ValueError: That.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")  # or it would ask for one
    except (ssl.SSLError, ValueError):
        raise ValueError(
            f"serve: certificate and key must be a pair, the key without a password. Got {certificate} and {key}, "
            "which are none. Pass server.pem and server.key as `hooke certificate DIR` made them together."
        ) from None
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError:
            raise ValueError(
                f"serve: authority must hold a certificate. Got {authority}, which holds none. Pass the ca.pem that "
                "`hooke certificate DIR` made."
            ) from None
