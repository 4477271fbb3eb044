"""What travels between a worker elsewhere and the center: one JSON header, then blocks of bytes, each with its place.

A stream (Flight's `DoExchange`) begins with a header that names a verb. Nothing is pickled or evaluated, lengths are
bounded, and whatever does not fit is refused with a sentence.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch
from pyarrow import flight
from torch import Tensor

VERSION = 1
"""Of this protocol. A center refuses workers of another one."""

MAX_HEADER = 1 << 22
"""Bytes of a header, which names every tensor of the model."""

MAX_TEXT = 200
"""Characters of a name."""

MAX_SENTENCE = 1000
"""Characters of an error."""

SCHEMA = pa.schema([("bytes", pa.uint8())])

JOIN, RETURN, EXCHANGE, REPLY, PULL, MEMORY, PUT = "join", "return", "exchange", "reply", "pull", "memory", "put"
HELLO, BEAT, LEAVE, STATUS, METRICS = "hello", "beat", "leave", "status", "metrics"

REFUSED, UNKNOWN, PROTOCOL, BUSY = "refused", "unknown", "protocol", "busy"
"""Kinds of errors that a worker acts on: its values, its session, its order, its haste. All others are only said."""

_PLACE = struct.Struct("<qq")


class ProtocolError(ValueError):
    """The other side sent what the protocol does not know."""


def pack(header: dict[str, Any]) -> bytes:
    """A header as bytes."""
    return json.dumps(header).encode()


def unpack(data: bytes) -> dict[str, Any]:
    """Back from `pack`.

    Raises:
        ProtocolError: Anything else.
    """
    if len(data) > MAX_HEADER:
        raise ProtocolError(
            f"serve: a header must have at most {MAX_HEADER} bytes. Got {len(data)}. Use hooke.connect."
        )
    try:
        header = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ProtocolError("serve: a header must be a JSON object. Got something else. Use hooke.connect.")
    return header


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def whole(header: dict[str, Any], name: str, *, least: int = 0) -> int:
    """A whole number of the header.

    Raises:
        ProtocolError: It is none, or out of range.
    """
    value = header.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 62:
        return value
    raise ProtocolError(
        f"serve: {name} must be a whole number from {least} on. Got {_short(value)}. Use hooke.connect."
    )


def text(header: dict[str, Any], name: str, *, longest: int = MAX_TEXT) -> str:
    """A text of the header.

    Raises:
        ProtocolError: It is none, or too long.
    """
    value = header.get(name)
    if isinstance(value, str) and len(value) <= longest and value.isprintable():
        return value
    raise ProtocolError(
        f"serve: {name} must be a printable text of at most {longest} characters. Got {_short(value)}. "
        "Use hooke.connect."
    )


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# Blocks ---------------------------------------------------------------------------------------------------------------


def send_block(writer: Any, start: int, coded: Tensor, vector: int = 0) -> int:
    """Send one block of a vector that begins at element `start`; the bytes that it has."""
    column = pa.Array.from_buffers(pa.uint8(), coded.numel(), [None, pa.py_buffer(coded.numpy())])
    batch = pa.RecordBatch.from_arrays([column], schema=SCHEMA)
    writer.write_with_metadata(batch, pa.py_buffer(_PLACE.pack(vector, start)))
    return coded.numel()


def send_header(writer: Any, header: dict[str, Any]) -> None:
    """Send a header between blocks, or after them."""
    writer.write_metadata(pa.py_buffer(pack(header)))


def received(reader: Any) -> Iterator[tuple[int, int, Tensor] | dict[str, Any]]:
    """Blocks (vector, start, bytes) and headers, as they arrive.

    Raises:
        ProtocolError: The other side sent something else.
    """
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        if chunk.data is None:
            yield unpack(chunk.app_metadata.to_pybytes() if chunk.app_metadata is not None else b"")
        else:
            yield _block(chunk)


def _block(chunk: Any) -> tuple[int, int, Tensor]:
    place = chunk.app_metadata.to_pybytes() if chunk.app_metadata is not None else b""
    columns = chunk.data.columns
    if len(place) != _PLACE.size or len(columns) != 1 or not _is_bytes(columns[0]):
        raise ProtocolError("serve: a block must be bytes with their place. Got something else. Use hooke.connect.")
    vector, start = _PLACE.unpack(place)
    return vector, start, torch.from_dlpack(columns[0]) if len(columns[0]) else torch.empty(0, dtype=torch.uint8)


def _is_bytes(column: Any) -> bool:
    try:
        column.validate()  # or a length that is not that of its bytes would be read beyond them
    except pa.ArrowException:
        return False
    return column.type == pa.uint8() and not column.null_count


# Errors ---------------------------------------------------------------------------------------------------------------


def wire_error(kind: str, sentence: str) -> flight.FlightServerError:
    """An error that the other side can act on; short, or it would not fit where the network carries it."""
    sentence = sentence if len(sentence) <= MAX_SENTENCE else sentence[: MAX_SENTENCE - 3] + "..."
    return flight.FlightServerError(sentence, extra_info=pack({"kind": kind, "sentence": sentence}))


def kind_of(error: BaseException) -> tuple[str, str] | None:
    """Kind and sentence of a `wire_error`; `None` for any other."""
    info = getattr(error, "extra_info", b"")
    if not info:
        return None
    try:
        header = unpack(bytes(info))
    except ProtocolError:
        return None
    kind, sentence = header.get("kind"), header.get("sentence")
    return (kind, sentence) if isinstance(kind, str) and isinstance(sentence, str) else None
