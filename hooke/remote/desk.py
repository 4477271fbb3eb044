"""All links of one center that is served: who may come, who is known, and what `hooke status` says of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hooke.center import HEARTBEAT_SECONDS, LocalCenter
from hooke.remote.link import Link
from hooke.remote.protocol import BUSY, UNKNOWN, VERSION, wire_error
from hooke.remote.sound import check_sound
from hooke.spec import CenterSpec

FORGET_SECONDS = 600.0
"""A worker that is silent for so long loses its place and its memory here; it may return all the same."""


class Desk:
    """Keeps the links.

    Args:
        center: The center that is served.
        max_workers: Workers at most.
        max_requests: Requests a second and worker, at most.
    """

    def __init__(self, center: LocalCenter, *, max_workers: int, max_requests: float) -> None:
        self._center = center
        self.max_workers, self._max_requests = max_workers, max_requests
        self._links: dict[str, Link] = {}
        self._coming: set[str] = set()
        self._budgets: dict[str, tuple[float, float]] = {}
        self._refusals: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._began = time.monotonic()

    # Who comes and goes -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def joining(self, session: str) -> Iterator[LocalCenter]:
        """A handle for a worker that joins."""
        handle = LocalCenter(self._center.path)
        try:
            yield handle
        except BaseException:
            handle.close()
            raise
        finally:
            with self._lock:
                self._coming.discard(session)

    def make_room(self, session: str, name: str, *, is_new: bool) -> None:
        """Let go whoever was silent for long, and whoever had the name of a new worker.

        Raises:
            FlightServerError: There is no room, or a worker that returns finds another one with its name.
        """
        with self._lock:
            same = [link for link in self._links.values() if link.session != session and name and link.name == name]
            if same and not is_new and time.monotonic() - same[0].heard < HEARTBEAT_SECONDS:
                raise wire_error(
                    BUSY,
                    f"serve: each worker must have a name of its own. Got two called {name}; the other one came later, "
                    "and stays. Connect with another name.",
                )
            gone = {link.session for link in same} | {session} | self._silent()
            if len((self._links.keys() - gone) | self._coming) >= self.max_workers:
                raise wire_error(
                    BUSY,
                    f"serve: at most {self.max_workers} workers may come. Got one more. Serve it with "
                    "hooke.serve(max_workers=...), or split the vector over several centers.",
                )
            links = [self._links.pop(old) for old in gone & self._links.keys()]
            self._coming.add(session)
        for link in links:
            link.leave()

    def add(self, link: Link) -> Link:
        """Know a worker that has joined."""
        with self._lock:
            before = self._links.get(link.session)
            self._links[link.session] = link
        if before is not None:
            before.leave()
        return link

    def link(self, session: str) -> Link:
        """The worker of that session, which asks for something.

        Raises:
            FlightServerError: It is not known here.
        """
        with self._lock:
            link = self._links.get(session)
        if link is None:
            raise wire_error(UNKNOWN, "serve: this worker is not known here. Got a session of before. It may return.")
        link.heard = time.monotonic()
        return link

    def knows(self, session: str) -> bool:
        """Whether a worker of that session is here."""
        with self._lock:
            return session in self._links

    def leave(self, link: Link, *, finished: bool) -> None:
        """A worker goes."""
        with self._lock:
            if self._links.get(link.session) is link:
                del self._links[link.session]
        link.leave(finished=finished)

    def forget_silent(self) -> None:
        """Let go of the memory of workers that have been silent for long."""
        with self._lock:
            links = [self._links.pop(session) for session in self._silent()]
            self._budgets = {whose: budget for whose, budget in self._budgets.items() if not self._is_full(budget)}
        for link in links:
            link.leave()

    def close(self) -> None:
        """All go; the center stays."""
        with self._lock:
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.leave()

    def _silent(self) -> set[str]:
        before = time.monotonic() - FORGET_SECONDS
        return {session for session, link in self._links.items() if link.heard < before}

    def spend(self, whose: str) -> None:
        """One request of a worker's budget, which fills again with time; two seconds' worth at most.

        Raises:
            FlightServerError: It asks too often.
        """
        now = time.monotonic()
        with self._lock:
            left, since = self._budgets.get(whose, (2 * self._max_requests, now))
            left = min(2 * self._max_requests, left + (now - since) * self._max_requests)
            self._budgets[whose] = (max(0.0, left - 1), now)
        if left < 1:
            raise wire_error(
                BUSY,
                f"serve: a worker may ask {self._max_requests:g} times a second. Got more. Exchange less often, or "
                "serve it with hooke.serve(max_requests=...).",
            )

    def _is_full(self, budget: tuple[float, float]) -> bool:
        left, since = budget
        return left + (time.monotonic() - since) * self._max_requests >= 2 * self._max_requests

    # What is checked --------------------------------------------------------------------------------------------------

    def check_spec(self, spec: CenterSpec) -> None:
        """Refuse another model before anything of it is sent.

        Raises:
            ValueError: A sentence that names the first difference.
        """
        if self._center.ready:
            self._center.spec.check_same(spec)
        else:
            check_sound(spec)

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
