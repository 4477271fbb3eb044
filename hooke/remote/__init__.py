"""A center across machines: `serve` it, `connect` to it. Needs the extra `remote` (pyarrow, cryptography)."""

from hooke.remote.client import RemoteCenter
from hooke.remote.connection import connect
from hooke.remote.server import CenterServer, serve

__all__ = ["CenterServer", "RemoteCenter", "connect", "serve"]
