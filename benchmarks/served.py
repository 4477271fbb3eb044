"""What an exchange with a served center costs: against a bare socket, in bytes on the wire, for many workers at once.

    python benchmarks/served.py [--speed] [--wire] [--many] [--numel 10000000] [--repeats 15]

speed   seconds of one exchange over loopback, in the clear and under TLS, by each codec, in alternation with a bare
        socket that carries as many float32 values there and back, and with a bare stream of Flight, which does so in
        blocks and copies each to its place at both ends; both ends are processes of their own.
wire    bytes that one exchange puts on a cable between two network namespaces, headers and acknowledgments included,
        as the interface counts them; needs root.
many    exchanges a second of 1 and 16 workers (processes) with one center process.

Without a word all three run. Each process has one thread of torch, and keeps free memory as those of `hooke run` do.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import machine
import network
import numpy as np
import pyarrow as pa
import torch
from pyarrow import flight

import hooke
from hooke.certificate import make_certificates

ROOT = Path(__file__).parent.parent
CODECS = ("float32", "bfloat16", "int8", "int4")
RULE = hooke.EASGD(moving_rate=0.225)
KNOWN = {**machine.KEPT, **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
MIB = 1 << 20
BYTES = pa.schema([("bytes", pa.uint8())])
FRAMES = [("grpc.http2.max_frame_size", (1 << 24) - 1), ("grpc.http2.write_buffer_size", 1 << 22)]
"""As hooke's own client asks for them."""
FAST = 10e9
"""Bit/s of a cable that holds nothing up."""


def command(*words: object) -> list[str]:
    return [sys.executable, __file__, *map(str, words)]


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process of this script, ended at the end."""
    process = subprocess.Popen(words, env=KNOWN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


# The other end --------------------------------------------------------------------------------------------------------


def serve(listen: str, numel: int, certificates: str) -> None:
    """A center, and beside it a bare stream of Flight and a bare socket that send back what they got."""
    tls = {"certificate": f"{certificates}/server.pem", "key": f"{certificates}/server.key"} if certificates else {}
    settings = {"token": "benchmark", "max_requests": 1e6, "insecure": True}
    listening = socket.create_server(("", 0))
    with hooke.serve(hooke.LocalCenter(), listen, **settings, **tls) as server, listening as bare:  # type: ignore[arg-type]
        print(server.url, bare.getsockname()[1], Echo("grpc://127.0.0.1:0").port, flush=True)
        buffer = memoryview(bytearray(4 * numel))
        while True:
            client = bare.accept()[0]
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                while receive(client, buffer):
                    client.sendall(buffer)


class Echo(flight.FlightServerBase):
    """Sends back what it got, once all of it is there."""

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Flight's call."""
        vector = np.empty(int(descriptor.command), np.uint8)
        writer.begin(BYTES)
        collect(reader, vector)
        send(writer, vector)


def send(writer: Any, vector: np.ndarray) -> None:
    for start in range(0, len(vector), MIB):
        part = vector[start : start + MIB]
        column = pa.Array.from_buffers(pa.uint8(), len(part), [None, pa.py_buffer(part)])
        writer.write_batch(pa.RecordBatch.from_arrays([column], schema=BYTES))


def collect(reader: Any, vector: np.ndarray) -> None:
    start = 0
    for chunk in reader:
        part = np.frombuffer(chunk.data.columns[0].buffers()[1], np.uint8, len(chunk.data))
        vector[start : start + len(part)] = part
        start += len(part)


def receive(stream: socket.socket, buffer: memoryview) -> bool:
    have = 0
    while have < len(buffer):
        got = stream.recv_into(buffer[have:])
        if not got:
            return False
        have += got
    return True


# Seconds --------------------------------------------------------------------------------------------------------------


def speed(numel: int, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder), hosts=["127.0.0.1", "localhost"])
        with (
            started(command("--serve", "127.0.0.1:0", numel, "")) as plain,
            started(command("--serve", "127.0.0.1:0", numel, folder)) as secret,
        ):
            (url, port, flown), (safe, _, _) = said(plain), said(secret)
            return {"numel": numel, "rows": timed(numel, repeats, url, int(port), flown, safe, f"{folder}/ca.pem")}


def timed(numel: int, repeats: int, url: str, port: int, flown: str, safe: str, authority: str) -> list[dict[str, Any]]:
    x, out = torch.randn(numel), torch.empty(numel)
    there, back = (memoryview(vector.numpy().data).cast("B") for vector in (x, out))
    with closing(socket.create_connection(("127.0.0.1", port))) as bare:
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def echo() -> None:
            bare.sendall(there)
            receive(bare, back)

        client = flight.FlightClient(f"grpc://127.0.0.1:{flown}", generic_options=FRAMES)

        def stream() -> None:
            command = flight.FlightDescriptor.for_command(str(len(there)).encode())
            writer, reader = client.do_exchange(command)
            writer.begin(BYTES)
            send(writer, np.frombuffer(there, np.uint8))
            writer.done_writing()
            collect(reader, np.frombuffer(back, np.uint8))
            writer.close()

        functions: dict[str, Callable[[], object]] = {"bare socket": echo, "bare stream of Flight": stream}
        for where, address, trust in (("in the clear", url, None), ("under TLS", safe, authority)):
            for codec in CODECS:
                center = joined(address, codec, trust, x)
                functions[f"{codec}, {where}"] = lambda center=center: center.exchange(x, RULE, out=out)
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(repeats + 2):
            for name, function in functions.items():
                began = time.perf_counter()
                function()
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - began)
    return [row(name, mine, seconds["bare socket"]) for name, mine in seconds.items()]


def joined(url: str, codec: str, authority: str | None, x: torch.Tensor) -> hooke.RemoteCenter:
    center = hooke.connect(url, token="benchmark", codec=codec, authority=authority, insecure=True)
    center.join(x, hooke.CenterSpec((), x.numel()))
    return center


def row(name: str, mine: list[float], bare: list[float]) -> dict[str, Any]:
    """Share: the bare socket's seconds over these, so 1 is as fast."""
    shares = sorted(other / one for one, other in zip(mine, bare, strict=True))
    quartiles = [shares[len(shares) // 4], shares[-1 - len(shares) // 4]]
    made = {
        "what": name,
        "milliseconds": 1e3 * statistics.median(mine),
        "share_of_bare_socket": statistics.median(shares),
    }
    print(
        f"{name:24} {made['milliseconds']:8.1f} ms   {made['share_of_bare_socket']:.2f} of a bare socket's speed",
        flush=True,
    )
    return {**made, "quartiles": quartiles}


# Bytes ----------------------------------------------------------------------------------------------------------------


def counters(node: int) -> tuple[int, int]:
    """Bytes out of and into a namespace, since it was made."""
    files = [f"/sys/class/net/cable/statistics/{way}_bytes" for way in ("tx", "rx")]
    shown = subprocess.run(network.inside(node, ["cat", *files]), capture_output=True, text=True, check=True).stdout
    out, into = map(int, shown.split())
    return out, into


def wire(numel: int) -> dict[str, Any]:
    rows = []
    with (
        network.cables(2, FAST),
        started(network.inside(0, command("--serve", f"{network.address(0)}:0", numel, ""))) as server,
    ):
        url, *_ = said(server)
        for codec in CODECS:
            with started(network.inside(1, command("--ask", url, numel, codec))) as client:
                said(client)  # it has joined
                before, exchanges = counters(1), 5
                for _ in range(exchanges):
                    assert client.stdin is not None
                    print("go", file=client.stdin, flush=True)
                    said(client)
                out, into = ((now - then) / exchanges for now, then in zip(counters(1), before, strict=True))
            rows.append({"codec": codec, "bytes_out": out, "bytes_in": into})
            base = rows[0]
            shares = [out / base["bytes_out"], into / base["bytes_in"]]
            rows[-1]["shares_of_float32"] = shares
            shown = f"{out / numel:.3f} bytes a value out, {into / numel:.3f} in: {shares[0]:.3f}, {shares[1]:.3f}"
            print(f"{codec:10} {shown} of float32's", flush=True)
    return {"numel": numel, "rows": rows}


def ask(url: str, numel: int, codec: str) -> None:
    """One exchange for each line."""
    center, x = joined(url, codec, None, torch.randn(numel)), torch.randn(numel)
    print("joined", flush=True)
    for _ in sys.stdin:
        center.exchange_(x, RULE)
        print("exchanged", flush=True)


# Many -----------------------------------------------------------------------------------------------------------------


def many(numel: int, seconds: float, rounds: int) -> dict[str, Any]:
    rates: dict[int, list[float]] = {1: [], 16: []}
    with started(command("--serve", "127.0.0.1:0", numel, "")) as server:
        url, *_ = said(server)
        for _ in range(rounds):
            for workers, found in rates.items():
                found.append(rate(url, numel, workers, seconds))
    rows = []
    for workers, found in rates.items():
        shares = [one / alone for one, alone in zip(found, rates[1], strict=True)]
        rows.append({"workers": workers, "exchanges_per_second": statistics.median(found)})
        rows[-1] |= {"share_of_one_worker": statistics.median(shares), "range": [min(shares), max(shares)]}
        shown = f"{rows[-1]['exchanges_per_second']:7.1f} exchanges/s, {rows[-1]['share_of_one_worker']:.2f} of one's"
        print(f"{workers:3} workers: {shown}", flush=True)
    return {"numel": numel, "seconds": seconds, "rounds": rounds, "rows": rows}


def rate(url: str, numel: int, workers: int, seconds: float) -> float:
    """Exchanges a second of all, while all are at it."""
    begin = time.time() + 3 + 2.5 * workers  # they start, one thread each, on few cores
    words = command("--loop", url, numel, begin, seconds)
    loops = [subprocess.Popen(words, env=KNOWN, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    return sum(int(loop.communicate()[0]) for loop in loops) / seconds


def loop(url: str, numel: int, begin: float, seconds: float) -> None:
    center, x = joined(url, "float32", None, torch.randn(numel)), torch.randn(numel)
    center.exchange_(x, RULE)
    time.sleep(max(0.0, begin - time.time()))
    count = 0
    while time.time() < begin + seconds:
        center.exchange_(x, RULE)
        count += 1
    print(count)
    center.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for section in ("speed", "wire", "many"):
        parser.add_argument(f"--{section}", action="store_true")
    parser.add_argument("--numel", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    for hidden, count in (("serve", 3), ("ask", 3), ("loop", 4)):
        parser.add_argument(f"--{hidden}", nargs=count, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the namespaces go
    torch.set_num_threads(1)
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]), arguments.serve[2])
    elif arguments.ask:
        ask(arguments.ask[0], int(arguments.ask[1]), arguments.ask[2])
    elif arguments.loop:
        url, numel, begin, seconds = arguments.loop
        loop(url, int(numel), float(begin), float(seconds))
    elif not machine.KEPT.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**machine.KEPT, **os.environ})  # glibc reads them once
    else:
        sections: dict[str, Callable[[], dict[str, Any]]] = {
            "speed": lambda: speed(arguments.numel, arguments.repeats),
            "wire": lambda: wire(arguments.numel),
            "many": lambda: many(1_000_000, 5.0, 3),
        }
        asked = [name for name in sections if getattr(arguments, name)] or list(sections)
        for name in asked:
            load = os.getloadavg()[0]
            machine.append("served", {"section": name, "load": load, **sections[name]()})


if __name__ == "__main__":
    main()
