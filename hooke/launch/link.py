"""How the workers of a machine reach a center elsewhere, or let others reach theirs. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooke.launch.request import LaunchError

_NEAR = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Link:
    """One of `--listen` and `--join`, or neither, with the options that belong to it.

    Args:
        listen: HOST:PORT where the center of this machine is served to others.
        join: URL of a center elsewhere; several, comma separated, hold it in parts.
        token_file: File with the token. Default: `HOOKE_TOKEN`.
        authority: PEM of the authority that the other side's certificate comes from.
        certificate: PEM of one's own certificate.
        key: PEM of its private key.
        codec: Bits of a value on the wire.
        insecure: Allow listening without token and TLS, and a token in the clear.
        wait: Seconds to wait for a center that is not up yet.

    Raises:
        LaunchError: Options that don't go together.
    """

    listen: str = ""
    join: str = ""
    token_file: Path | None = None
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    codec: str | None = None
    insecure: bool = False
    wait: float = 60.0

    def __post_init__(self) -> None:
        if self.listen and self.join:
            raise LaunchError(
                "--listen and --join exclude each other: workers use the center of their machine, or one elsewhere. "
                "Got both. Drop one."
            )
        if self.codec is not None and not self.join:
            raise LaunchError("--codec needs --join. Got none: nothing travels. Drop it, or join a center.")
        if not self.listen and not self.join and self.words():
            raise LaunchError(
                f"{self.words()[0]} needs --listen or --join. Got neither. Drop it, or say where the center is."
            )
        if not self.wait >= 0:
            raise LaunchError(f"--wait must be 0 seconds or more. Got {self.wait:g}. Use e.g. 60.")

    @property
    def urls(self) -> list[str]:
        """The centers to join."""
        return [url.strip() for url in self.join.split(",") if url.strip()]

    def token(self) -> str | None:
        """The token; `None` where there is none.

        Raises:
            LaunchError: The file can't be read, or is empty.
        """
        if self.token_file is None:
            return os.environ.get("HOOKE_TOKEN", "").strip() or None
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise LaunchError(
                f"--token-file must be a file that can be read. Got {self.token_file}: "
                f"{getattr(error, 'strerror', None) or 'no text'}. `hooke certificate DIR` makes one."
            ) from None
        if not token:
            raise LaunchError(
                f"--token-file must hold a token. Got {self.token_file}, which is empty. Write one there."
            )
        return token

    def serving(self) -> dict[str, Any]:
        """For `hooke.serve`, all but the center and the token; plain data."""
        return {"listen": self.listen, **self._files(), "insecure": self.insecure}

    def connecting(self) -> dict[str, Any]:
        """For `hooke.connect`, all but the address."""
        return {"token": self.token(), **self._files(), "codec": self.codec, "insecure": self.insecure}

    def environment(self) -> dict[str, str]:
        """What a worker finds its center by; `HOOKE_RUN` says the rest."""
        given = {"center": self.join or None, **self.connecting(), "insecure": "1" if self.insecure else None}
        return {f"HOOKE_{name.upper()}": value for name, value in given.items() if value is not None and self.join}

    def words(self) -> list[str]:
        """The options of the command line that say this."""
        options = {"listen": self.listen, "join": self.join, "token-file": self.token_file}
        options |= {"authority": self.authority, "certificate": self.certificate, "key": self.key, "codec": self.codec}
        made = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
        made += ["--insecure"] if self.insecure else []
        return made + (["--wait", f"{self.wait:g}"] if self.wait != Link.wait else [])

    def advertised(self, url: str) -> str:
        """Where others reach what listens at `url`: on every address, by the first name of its certificate."""
        scheme, _, where = url.partition("://")
        if self.certificate is None or self.listen.rpartition(":")[0] not in ("0.0.0.0", "[::]"):
            return url
        from hooke.certificate import hosts_of

        far = [host for host in hosts_of(self.certificate) if host not in _NEAR and "*" not in host]
        host = f"[{far[0]}]" if far and ":" in far[0] else far[0] if far else where.rpartition(":")[0]
        return f"{scheme}://{host}:{where.rpartition(':')[2]}"

    def invitation(self, url: str) -> str:
        """The command that starts workers elsewhere, and what they need beside it."""
        options = ["--join", url]
        options += ["--token-file", str(self.token_file)] if self.token_file is not None else []
        beside = None if self.certificate is None else Path(self.certificate).parent
        if beside is not None and (beside / "ca.pem").exists():
            options += ["--authority", str(beside / "ca.pem")]
        if beside is not None and self.authority is not None:
            options += ["--certificate", str(beside / "client.pem"), "--key", str(beside / "client.key")]
        by_word = self.token_file is None and self.token() is not None
        return f"hooke run {' '.join(options)} train.py" + ("   (with the same HOOKE_TOKEN)" if by_word else "")

    def _files(self) -> dict[str, str | None]:
        named = {"authority": self.authority, "certificate": self.certificate, "key": self.key}
        return {name: None if path is None else str(Path(path).absolute()) for name, path in named.items()}


def check_reached(link: Link, say: Callable[[str], None], given_up: Callable[[], bool] = lambda: False) -> None:
    """Make sure that every center to join answers; wait for one that is not up yet.

    Args:
        link: What to join.
        say: Takes a sentence, once, where it waits.
        given_up: Whether to wait no longer.

    Raises:
        LaunchError: None does, or one turns this machine away.
    """
    from hooke.remote import connect

    deadline = time.monotonic() + link.wait
    for url in link.urls:
        waits = False
        while True:
            try:
                connect(url, timeout=10.0, **link.connecting()).close()
                break
            except (PermissionError, ValueError) as error:
                raise LaunchError(str(error)) from None
            except OSError as error:
                if given_up():
                    return
                if time.monotonic() >= deadline:
                    raise LaunchError(str(error)) from None
                if not waits:
                    say(f"{error} Waiting up to {link.wait:g} seconds for it.")
                waits = True
                time.sleep(0.5)


def quiet() -> None:
    """Keep gRPC's own log lines from between the sentences, unless the user wants them; before it is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
