"""From an address, or the environment, to a center that answers."""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack, overload

from hooke.codec import codec_of
from hooke.remote.client import RemoteCenter
from hooke.remote.protocol import MAX_TEXT
from hooke.remote.security import checked_token, is_loopback
from hooke.remote.trouble import Address, diagnosis
from hooke.remote.wire import Wire
from hooke.sharded import ShardedCenter


class Settings(TypedDict, total=False):
    """What `connect` takes beside the address."""

    token: str | None
    authority: str | Path | None
    certificate: str | Path | None
    key: str | Path | None
    codec: str | None
    timeout: float
    wait: float
    name: str | None
    insecure: bool | None


@overload
def connect(url: str | None = None, **settings: Unpack[Settings]) -> RemoteCenter: ...


@overload
def connect(url: Sequence[str], **settings: Unpack[Settings]) -> ShardedCenter: ...


def connect(
    url: str | Sequence[str] | None = None,
    *,
    token: str | None = None,
    authority: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    codec: str | None = None,
    timeout: float = 60.0,
    wait: float = 0.0,
    name: str | None = None,
    insecure: bool | None = None,
) -> RemoteCenter | ShardedCenter:
    """A center on another machine, for one worker.

    What is not given comes from the environment: HOOKE_CENTER, HOOKE_TOKEN, HOOKE_AUTHORITY, HOOKE_CERTIFICATE,
    HOOKE_KEY, HOOKE_CODEC.

    Args:
        url: `grpc+tls://HOST:PORT`, or `grpc://HOST:PORT` in the clear, as the center printed it. Several, in a list or
            with commas between them: the vector is split over these centers, see `ShardedCenter`.
        token: What the center was started with.
        authority: PEM file of the authority that the center's certificate comes from. Default: those the system knows.
        certificate: PEM file of this worker's own certificate, where the center asks for one.
        key: PEM file of its private key.
        codec: `float32` (default), `bfloat16`, `int8` or `int4`: bits of a value on the wire, in both directions.
        timeout: Seconds that one exchange may take; a longer one fails, and costs nothing but itself. Joining, which
            carries every bit whatever the codec, may take ten times as long.
        wait: Seconds to wait for a center that is not up yet, and to try again where joining is cut off.
        name: What the center calls this worker; a worker of the same name takes the place of the one before. Default:
            machine and process.
        insecure: Send a token in the clear beyond this machine. Default: whether HOOKE_INSECURE is 1.

    Raises:
        ValueError: A setting that can't be.
        OSError: The center can't be reached, or turns this worker away; `PermissionError` where waiting does not help.
            The message says what to do.

    Example:
        ```python
        center = hooke.connect("grpc+tls://center.example.org:29400", token=token, authority="ca.pem", codec="int8")
        with hooke.Worker(model, optimizer, hooke.EASGD(), center=center, overlap=True):
            ...
        ```
    """
    given = {"authority": authority, "certificate": certificate, "key": key}
    files = {name: path or os.environ.get(f"HOOKE_{name.upper()}") or None for name, path in given.items()}
    token = checked_token(token or os.environ.get("HOOKE_TOKEN", "").strip() or None, "connect")
    urls = _urls(url or os.environ.get("HOOKE_CENTER"))
    if not 0 < timeout < math.inf:
        raise ValueError(f"connect: timeout must be above 0 seconds, and finite. Got {timeout}. Use e.g. 60.")
    if not 0 <= wait < math.inf:
        raise ValueError(f"connect: wait must be 0 seconds or more, and finite. Got {wait}. Use e.g. 60.")
    if name is not None and not 0 < len(name) <= MAX_TEXT:
        raise ValueError(f"connect: name must have 1 to {MAX_TEXT} characters. Got {len(name)}. Use a shorter one.")
    addresses = [Address.of(one) for one in urls]
    insecure = os.environ.get("HOOKE_INSECURE") == "1" if insecure is None else insecure
    for address in addresses:
        if token is not None and not (address.tls or insecure or is_loopback(address.host)):
            raise ValueError(
                f"connect: a token must not travel in the clear. Got {address.url}. Use grpc+tls://, or say "
                "insecure=True (--insecure)."
            )
    made, name = codec_of(codec or os.environ.get("HOOKE_CODEC") or "float32"), name or _own_name()
    wires = [Wire(address, token=token, timeout=timeout, **files) for address in addresses]
    centers = [RemoteCenter(wire, made, name, wait=wait) for wire in wires]
    try:
        for center in centers:
            _greet(center, wait, files)
    except BaseException:
        for center in centers:
            center.close()
        raise
    return centers[0] if len(centers) == 1 else ShardedCenter(centers)


def _urls(given: str | Sequence[str] | None) -> list[str]:
    """One address or several.

    Raises:
        ValueError: None, or one twice.
    """
    listed = given.split(",") if isinstance(given, str) else given or ()
    urls = [url.strip() for url in listed if url.strip()]
    if not urls:
        raise ValueError("connect: needs the center's address. Got none. Pass url, or set HOOKE_CENTER.")
    if len(set(urls)) < len(urls):
        raise ValueError(
            f"connect: each part of the vector needs a center of its own. Got an address twice in {','.join(urls)}. "
            "Name each once."
        )
    return urls


def _own_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def _greet(center: RemoteCenter, wait: float, files: Mapping[str, str | Path | None]) -> None:
    """Make sure that a center of this protocol answers, and say what is wrong if none does."""
    deadline = time.monotonic() + wait
    while True:
        try:
            return center.greet()
        except (PermissionError, ValueError):
            raise
        except OSError as error:
            why = diagnosis(center.address, **files)
            if why is not None and not why.may_pass:
                raise PermissionError(why.sentence) from None
            if time.monotonic() >= deadline:
                raise type(error)(str(error) if why is None else why.sentence) from None
            time.sleep(0.5)
