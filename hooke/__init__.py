"""hooke: train on many workers over slow or unreliable links, tied to a shared center by a spring.

Names load when they are first used, so that the command, records and reports start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooke.averaged import Averaged as Averaged
    from hooke.center import Center as Center
    from hooke.center import LocalCenter as LocalCenter
    from hooke.flat import FlatParameters as FlatParameters
    from hooke.grouped import GroupedCenter as GroupedCenter
    from hooke.leader import LSGD as LSGD
    from hooke.outer import AsyncDiLoCo as AsyncDiLoCo
    from hooke.outer import DiLoCo as DiLoCo
    from hooke.outer import Lookahead as Lookahead
    from hooke.outer import MDownpour as MDownpour
    from hooke.outer import SlowMo as SlowMo
    from hooke.remote import CenterServer as CenterServer
    from hooke.remote import RemoteCenter as RemoteCenter
    from hooke.remote import connect as connect
    from hooke.remote import serve as serve
    from hooke.replicated import ReplicatedCenter as ReplicatedCenter
    from hooke.report import write_report as write_report
    from hooke.rule import EAMSGD as EAMSGD
    from hooke.rule import EASGD as EASGD
    from hooke.rule import Downpour as Downpour
    from hooke.rule import LocalSGD as LocalSGD
    from hooke.rule import Rule as Rule
    from hooke.run import Run as Run
    from hooke.sharded import ShardedCenter as ShardedCenter
    from hooke.simulate import Cluster as Cluster
    from hooke.simulate import Failure as Failure
    from hooke.simulate import Simulation as Simulation
    from hooke.spec import CenterSpec as CenterSpec
    from hooke.spec import Refused as Refused
    from hooke.stability import Stability as Stability
    from hooke.stability import stability_of as stability_of
    from hooke.worker import Worker as Worker

_HOME = {
    # the worker around your own loop
    "Worker": "worker",
    # what is exchanged
    "Rule": "rule",
    "EASGD": "rule",
    "EAMSGD": "rule",
    "Downpour": "rule",
    "LocalSGD": "rule",
    "Lookahead": "outer",
    "SlowMo": "outer",
    "DiLoCo": "outer",
    "AsyncDiLoCo": "outer",
    "MDownpour": "outer",
    "LSGD": "leader",
    "Averaged": "averaged",
    # whether it is stable
    "Stability": "stability",
    "stability_of": "stability",
    # many workers in one process
    "Simulation": "simulate",
    "Cluster": "simulate",
    "Failure": "simulate",
    # where the center lives
    "Center": "center",
    "CenterSpec": "spec",
    "LocalCenter": "center",
    "ReplicatedCenter": "replicated",
    "GroupedCenter": "grouped",
    "ShardedCenter": "sharded",
    "RemoteCenter": "remote",
    "CenterServer": "remote",
    "connect": "remote",
    "serve": "remote",
    "Refused": "spec",
    # parameters as one vector
    "FlatParameters": "flat",
    # runs and their reports
    "Run": "run",
    "write_report": "report",
}

_SHELVES = ("nn",)
"""Packages of parts that stand beside the spine: `hooke.nn.SELU` works after `import hooke`."""

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"hooke.{_HOME[name]}"), name)
    if name in _SHELVES:
        return import_module(f"hooke.{name}")
    if name == "__version__":
        return import_module("importlib.metadata").version("hooke")
    raise AttributeError(f"module 'hooke' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, *_SHELVES, "__version__"]
