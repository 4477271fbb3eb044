"""All links of one center that is served: who may come, who is known, and what `hooke status` says of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hooke.center import LocalCenter
from hooke.remote.link import Link
from hooke.remote.protocol import BUSY, UNKNOWN, VERSION, wire_error
from hooke.spec import CenterSpec

FORGET_SECONDS = 600.0
"""A worker that is silent for so long loses its place and its memory here; it may return all the same."""

MAX_PARAMETERS = 20_000_000_000


class Desk:
    """Keeps the links.

    Args:
        center: The center that is served.
        max_workers: Workers at most.
        max_requests: Requests a second and worker, at most.
    """

    def __init__(self, center: LocalCenter, *, max_workers: int, max_requests: float) -> None:
        self._center = center
        self._max_workers, self._max_requests = max_workers, max_requests
        self._links: dict[str, Link] = {}
        self._budgets: dict[str, tuple[float, float]] = {}
        self._refusals: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._began = time.monotonic()

    # Who comes and goes -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def joining(self, name: str) -> Iterator[LocalCenter]:
        """A handle for a worker that joins; whoever had its name goes, and whoever was silent for long."""
        with self._lock:
            self._forget(name)
            if len(self._links) >= self._max_workers:
                raise wire_error(
                    BUSY,
                    f"serve: at most {self._max_workers} workers may come. Got one more. Raise max_workers.",
                )
        handle = LocalCenter(self._center.path)
        try:
            yield handle
        except BaseException:
            handle.close()
            raise

    def add(self, link: Link) -> Link:
        """Know a worker that has joined."""
        with self._lock:
            self._drop(link.session)
            self._links[link.session] = link
        return link

    def link(self, session: str) -> Link:
        """The worker of that session, which asks for something.

        Raises:
            FlightServerError: It is not known here, or asks too often.
        """
        with self._lock:
            link = self._links.get(session)
            if link is None:
                raise wire_error(
                    UNKNOWN, "serve: this worker is not known here. Got a session of before. It may return."
                )
            self._spend(session)
        link.heard = time.monotonic()
        return link

    def leave(self, link: Link, *, finished: bool) -> None:
        """A worker goes."""
        with self._lock:
            link.center.leave(finished=finished)
            self._drop(link.session)

    def close(self) -> None:
        """All go; the center stays."""
        with self._lock:
            for session in list(self._links):
                self._drop(session)

    def _forget(self, name: str) -> None:
        now = time.monotonic()
        for session, link in list(self._links.items()):
            if (name and link.name == name) or now - link.heard > FORGET_SECONDS:
                self._drop(session)

    def _drop(self, session: str) -> None:
        link = self._links.pop(session, None)
        self._budgets.pop(session, None)
        if link is not None:
            link.center.close()

    def _spend(self, session: str) -> None:
        """One request of a worker's budget, which fills again with time; two seconds' worth at most."""
        now = time.monotonic()
        left, since = self._budgets.get(session, (2 * self._max_requests, now))
        left = min(2 * self._max_requests, left + (now - since) * self._max_requests)
        if left < 1:
            raise wire_error(
                BUSY, f"serve: a worker may ask {self._max_requests:g} times a second. Got more. Raise max_requests."
            )
        self._budgets[session] = (left - 1, now)

    # What is checked --------------------------------------------------------------------------------------------------

    def check_spec(self, spec: CenterSpec) -> None:
        """Refuse another model before anything of it is sent.

        Raises:
            ValueError: A sentence that names the first difference.
        """
        if self._center.ready:
            self._center.spec.check_same(spec)
        elif not 0 <= spec.parameters_end <= spec.numel <= MAX_PARAMETERS:
            raise ValueError(
                f"serve: a center holds at most {MAX_PARAMETERS:,} values. Got {spec.numel}, of which "
                f"{spec.parameters_end} are parameters. Split the model over several centers."
            )

    def turned_away(self) -> None:
        """Somebody came without the token."""
        self.refused("token")

    def refused(self, kind: str) -> None:
        """Something was refused."""
        with self._lock:
            self._refusals[kind] += 1

    # What is said -----------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Any]:
        """What every answer ends with."""
        center = self._center
        return {
            "ready": center.ready,
            "num_workers": center.num_workers,
            "counted_workers": center.counted_workers,
            "exchanges": center.exchanges,
        }

    def status(self) -> dict[str, Any]:
        """Plain data: the center, its workers, what was refused."""
        with self._lock:
            links, refusals = list(self._links.values()), dict(self._refusals)
        numbers = self.numbers()
        sizes = {"parameters": self._center.spec.numel} if self._center.ready else {}
        return {
            "protocol": VERSION,
            "seconds": round(time.monotonic() - self._began, 1),
            **sizes,
            **numbers,
            "local_workers": max(0, len(self._center.members()) - len(links)),
            "bytes_received": sum(link.traffic.bytes_received for link in links),
            "bytes_sent": sum(link.traffic.bytes_sent for link in links),
            "refused": refusals,
            "workers": [_line(link, numbers["exchanges"]) for link in links],
        }

    def metrics(self) -> str:
        """In Prometheus' text format."""
        status = self.status()
        lines = [
            f"# TYPE hooke_{name} {kind}\nhooke_{name} {status.get(name, 0)}"
            for name, kind in (("num_workers", "gauge"), ("parameters", "gauge"), ("exchanges", "counter"))
        ]
        lines += ["# TYPE hooke_refused counter"]
        lines += [f'hooke_refused{{kind="{kind}"}} {count}' for kind, count in sorted(status["refused"].items())]
        for name in ("step", "exchanges", "staleness", "bytes_received", "bytes_sent", "missed"):
            lines.append(f"# TYPE hooke_worker_{name} gauge")
            lines += [
                f'hooke_worker_{name}{{worker="{_escaped(worker["name"])}"}} {worker[name]}'
                for worker in status["workers"]
            ]
        return "\n".join(lines) + "\n"


def _line(link: Link, exchanges: int) -> dict[str, Any]:
    member = link.center.member
    return {
        "name": link.name,
        "peer": link.peer,
        "codec": link.codec.name,
        "alive": member is not None and member.alive,
        "step": 0 if member is None else member.step,
        "exchanges": 0 if member is None else member.exchanges,
        "missed": 0 if member is None else member.missed,
        "staleness": exchanges - link.seen,
        "silent_seconds": round(time.monotonic() - link.heard, 1),
        "bytes_received": link.traffic.bytes_received,
        "bytes_sent": link.traffic.bytes_sent,
    }


def _escaped(name: str) -> str:
    return name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
