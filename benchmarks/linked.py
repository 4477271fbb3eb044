"""One worker over a slow link, by hooke or by one of its peers; started and told what to do by slow_link.py.

Commands come as lines of JSON on standard input, answers go out as lines that begin with "@ ". So that every figure
has its base within seconds, the worker also trains a second model of the same kind without any communication.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import learning
import torch
import torch.distributed as dist
from scaling import network
from torch import Tensor, nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel

import hooke

VOCABULARY, WIDTH, CONTEXT = 256, 384, 64
PORT, LIGHTHOUSE, CENTER = 29533, 29510, 29400
TOKEN = "the-token-of-a-benchmark"
PATIENCE = timedelta(minutes=10)
Pair = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """A transformer of 10.8 million parameters in two halves: 6 layers, width 384, bytes in and out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.lower = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.upper = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of what comes next, a row for each token."""
        x = self.token(tokens) + self.place.weight
        x = self.upper(self.lower(x, self.mask, is_causal=True), self.mask, is_causal=True)
        return self.head(x).flatten(0, 1)


def halves(model: nn.Module) -> list[nn.Module]:
    """Two fragments of a model, all parameters in one of them."""
    if isinstance(model, LanguageModel):
        return [nn.ModuleList([model.token, model.place, model.lower]), nn.ModuleList([model.upper, model.head])]
    assert isinstance(model, nn.Sequential)
    return [model[:7], model[7:]]


@dataclass(frozen=True)
class Model:
    """What is trained: how it is made, and examples a step."""

    make: Callable[[], nn.Module]
    batch: int
    pair: Callable[[int], Pair]


MODELS = {
    "convnet": Model(network, 64, lambda n: (torch.randn(n, 1, 28, 28), torch.randint(10, (n,)))),
    "transformer": Model(
        LanguageModel,
        8,
        lambda n: (torch.randint(VOCABULARY, (n, CONTEXT)), torch.randint(VOCABULARY, (n * CONTEXT,))),
    ),
}


@dataclass
class Job:
    """One model on its way to be trained.

    Attributes:
        asked: The command line.
        model: The model.
        optimizer: Its optimizer.
        pair: The next batch.
    """

    asked: argparse.Namespace
    model: nn.Module
    optimizer: torch.optim.SGD
    pair: Callable[[], Pair]

    @property
    def rank(self) -> int:
        """Which worker this is."""
        return self.asked.rank

    def step(self, model: nn.Module | None = None, backward: Callable[[Tensor], Any] = Tensor.backward) -> None:
        """One step of training."""
        inputs, targets = self.pair()
        self.optimizer.zero_grad()
        backward(nn.functional.cross_entropy((model or self.model)(inputs), targets))
        self.optimizer.step()


def job_of(asked: argparse.Namespace) -> Job:
    kind = MODELS[asked.model]
    model = kind.make()
    torch.manual_seed(1000 * asked.seed + asked.rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=asked.lr, momentum=0.9, nesterov=True)
    if asked.data is None:
        always = kind.pair(kind.batch)
        return Job(asked, model, optimizer, lambda: always)
    images, labels = learning.load(asked.data, "train")

    def pair() -> Pair:
        chosen = torch.randint(len(images), (kind.batch,))
        return images[chosen], labels[chosen]

    return Job(asked, model, optimizer, pair)


@dataclass
class Way:
    """A job that communicates: its step, and a block in which the model has the parameters to evaluate."""

    step: Callable[[], None]
    weights: Callable[[], AbstractContextManager[Any]] = nullcontext


# The peers, each as its own documentation has it --------------------------------------------------------------------


@contextmanager
def gloo(job: Job) -> Iterator[None]:
    dist.init_process_group("gloo", rank=job.rank, world_size=job.asked.workers, timeout=PATIENCE)
    yield
    dist.destroy_process_group()


@contextmanager
def alone(job: Job) -> Iterator[Way]:
    yield Way(job.step)


def _nothing(model: DistributedDataParallel, asked: argparse.Namespace) -> None:
    pass


def _fp16(model: DistributedDataParallel, asked: argparse.Namespace) -> None:
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)


def _powersgd(model: DistributedDataParallel, asked: argparse.Namespace) -> None:
    first = asked.powersgd_start
    state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=1, start_powerSGD_iter=first)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def ddp(
    hook: Callable[[DistributedDataParallel, argparse.Namespace], None], bucket: int | None = None
) -> Callable[[Job], Any]:
    @contextmanager
    def way(job: Job) -> Iterator[Way]:
        with gloo(job):
            model = DistributedDataParallel(job.model, bucket_cap_mb=bucket)
            hook(model, job.asked)
            yield Way(lambda: job.step(model))

    return way


@contextmanager
def averager(job: Job) -> Iterator[Way]:
    with gloo(job):
        periodic = PeriodicModelAverager(period=job.asked.period, warmup_steps=0)

        def step() -> None:
            job.step()
            periodic.average_parameters(job.model.parameters())

        step()  # it averages at its steps 0, 10, 20: let it do so at the end of a period, as all others do
        yield Way(step)


@contextmanager
def accelerated(job: Job) -> Iterator[Way]:
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.local_sgd import LocalSGD

    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo", timeout=PATIENCE)])
    torch.set_num_threads(1)
    model, optimizer = accelerator.prepare(job.model, job.optimizer)
    job.optimizer = optimizer
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=job.asked.period, enabled=True) as local:

        def step() -> None:
            job.step(model, accelerator.backward)
            local.step()

        yield Way(step)
    accelerator.end_training()
    dist.destroy_process_group()


@contextmanager
def torchft_manager(job: Job) -> Iterator[Any]:
    from torchft import Manager, ProcessGroupGloo  # pyright: ignore[reportMissingImports]

    store = TCPStore(job.asked.address, PORT + 1, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=PATIENCE),
        load_state_dict=lambda state: None,  # nobody joins late here
        state_dict=dict,
        min_replica_size=job.asked.workers,
        use_async_quorum=False,
        init_sync=False,  # all begin with the same parameters
        timeout=PATIENCE,
        quorum_timeout=PATIENCE,
        rank=0,
        world_size=1,
        store_addr=job.asked.address,
        store_port=store.port,
        lighthouse_addr=f"http://{job.asked.first}:{LIGHTHOUSE}",
        replica_id=f"worker_{job.rank}",
        hostname=job.asked.address,
    )
    yield manager
    manager.shutdown(wait=False)


@contextmanager
def torchft_local(job: Job) -> Iterator[Way]:
    from torchft.local_sgd import LocalSGD  # pyright: ignore[reportMissingImports]

    with torchft_manager(job) as manager, LocalSGD(manager, job.model, job.optimizer, sync_every=job.asked.period):
        yield Way(job.step)


def torchft_diloco(fragments: Callable[[nn.Module], list[nn.Module]], delay: int) -> Callable[[Job], Any]:
    @contextmanager
    def way(job: Job) -> Iterator[Way]:
        from torchft.local_sgd import DiLoCo  # pyright: ignore[reportMissingImports]

        parts = fragments(job.model)
        outer = [torch.optim.SGD(part.parameters(), lr=0.7, momentum=0.9, nesterov=True) for part in parts]
        with torchft_manager(job) as manager:
            known = {"sync_every": job.asked.period, "fragment_sync_delay": delay, "pin_memory": False}
            with DiLoCo(manager, parts, job.optimizer, outer, **known):
                yield Way(job.step)

    return way


@contextmanager
def hivemind_local(job: Job) -> Iterator[Way]:
    import hivemind  # pyright: ignore[reportMissingImports]

    first = job.rank == 0
    meeting = Path(job.asked.meeting)
    if not first:
        while not meeting.exists():
            time.sleep(0.1)
    listen = [f"/ip4/{job.asked.address}/tcp/{PORT}"]
    peers = [] if first else meeting.read_text().split()
    dht = hivemind.DHT(host_maddrs=listen, initial_peers=peers, start=True, use_ipfs=False)
    if first:
        made = meeting.with_suffix(".new")
        made.write_text("\n".join(map(str, dht.get_visible_maddrs())))
        made.rename(meeting)
    batch = MODELS[job.asked.model].batch
    made = hivemind.Optimizer(
        dht=dht,
        run_id="slow_link",
        params=job.model.parameters(),
        optimizer=job.optimizer,
        batch_size_per_step=batch,
        target_batch_size=batch * job.asked.workers * job.asked.period,
        use_local_updates=True,
        delay_state_averaging=True,
        matchmaking_time=3.0,
        averaging_timeout=20.0,
        averager_opts={"request_timeout": 0.5},  # must be below the time to find each other
        state_averaging_compression=hivemind.compression.Float16Compression(),
    )
    job.optimizer = made
    yield Way(job.step)
    made.shutdown()
    dht.shutdown()


# hooke --------------------------------------------------------------------------------------------------------------


@contextmanager
def remote(job: Job) -> Iterator[Way]:
    period: Any = job.asked.period or "auto"
    with ExitStack() as stack:
        url = f"grpc://{job.asked.center}:{CENTER}"
        # 10 million parameters take long at 10 Mbit/s when a worker joins, for then they travel as float32
        center = hooke.connect(url, token=TOKEN, codec=job.asked.codec, insecure=True, wait=30.0, timeout=300.0)
        stack.callback(center.close)
        worker = hooke.Worker(
            job.model, job.optimizer, hooke.EAMSGD(), center=center, communication_period=period, overlap=True
        )
        stack.enter_context(worker)
        yield Way(job.step, worker.center_weights)


def serve(asked: argparse.Namespace) -> None:
    """The center of hooke's workers, at a node of its own."""
    center = hooke.LocalCenter()
    with hooke.serve(center, f"{asked.address}:{CENTER}", token=TOKEN, insecure=True):
        say(ready=True)
        for _ in sys.stdin:
            say(exchanges=center.exchanges, moved=moved())
    center.close()


WAYS: dict[str, Callable[[Job], Any]] = {
    "alone": alone,
    "ddp": ddp(_nothing),
    "fp16": ddp(_fp16),
    "powersgd": ddp(_powersgd, 100),  # one bucket: gloo mixes up the hook's collectives where there are several
    "averager": averager,
    "accelerate": accelerated,
    "torchft-local": torchft_local,
    "torchft-diloco": torchft_diloco(lambda model: [model], 0),
    "torchft-streaming": torchft_diloco(halves, 4),
    "hivemind": hivemind_local,
    "hooke": remote,
}


# Commands -----------------------------------------------------------------------------------------------------------


def say(**answer: Any) -> None:
    print("@ " + json.dumps(answer), flush=True)


def moved() -> list[int]:
    """Bytes that this node's cable has sent and received since it was laid."""
    folder = Path("/sys/class/net/cable/statistics")
    return [int((folder / name).read_text()) for name in ("tx_bytes", "rx_bytes")] if folder.exists() else [0, 0]


def quiet() -> None:
    """Wait until the cable has been idle for a moment, so that an exchange under way does not disturb what follows."""
    before, deadline = sum(moved()), time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.4)
        if (now := sum(moved())) - before < 20_000:
            return
        before = now


def timed(step: Callable[[], None], steps: int | None, seconds: float) -> dict[str, Any]:
    """So many steps, or as many as end within so many seconds, by the clock and by the cable."""
    before, began = moved(), time.perf_counter()
    done, took, after = 0, 0.0, before
    while (done < steps) if steps is not None else (took < seconds):
        step()
        now = time.perf_counter() - began
        if steps is None and now > seconds and done:  # the last one may have waited for a worker that has ended
            break
        done, took = done + 1, now
    after = moved()
    return {"steps": done, "seconds": took, "sent": after[0] - before[0], "received": after[1] - before[1]}


@torch.no_grad()
def accuracy(model: nn.Module, root: Path) -> float:
    images, labels = learning.load(root, "t10k")
    right = [
        (model(part).argmax(1) == own).sum() for part, own in zip(images.split(500), labels.split(500), strict=True)
    ]
    return int(torch.stack(right).sum()) / len(labels)


def obey(job: Job, way: Way, base: Job, command: dict[str, Any]) -> dict[str, Any]:
    verb = command["do"]
    if verb == "alone":
        quiet()
        return timed(base.step, None, command["seconds"])
    if verb == "train":
        lead = timed(way.step, command["lead"], command["seconds"])["steps"]
        return {"lead": lead, **timed(way.step, command["steps"], command["seconds"])}
    if verb == "evaluate":
        with way.weights():
            return {"accuracy": accuracy(job.model, job.asked.data)}
    raise ValueError(f"linked: a command must be alone, train or evaluate. Got {verb}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--how", choices=[*WAYS, "center"], required=True)
    parser.add_argument("--model", choices=MODELS, default="convnet")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--address", help="of this node")
    parser.add_argument("--first", help="address of worker 0's node")
    parser.add_argument("--center", help="address of the center's node")
    parser.add_argument("--meeting", help="file by which hivemind's first peer tells the others where it is")
    parser.add_argument("--period", type=int, default=10, help="0: hooke chooses")
    parser.add_argument("--codec", default="float32")
    parser.add_argument("--powersgd-start", type=int, default=2, help="step at which PowerSGD begins")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with the four Fashion-MNIST idx.gz files; default: noise")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.how == "center":
        serve(asked)
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[asked.rank % len(cores)]})
    job, base = job_of(asked), job_of(asked)
    with WAYS[asked.how](job) as way:
        say(ready=True, parameters=sum(p.numel() for p in base.model.parameters()), batch=MODELS[asked.model].batch)
        for line in sys.stdin:
            say(**obey(job, way, base, json.loads(line)))


if __name__ == "__main__":
    main()
