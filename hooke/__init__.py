"""hooke: train on many workers over slow or unreliable links, tied to a shared center by a spring."""

from importlib.metadata import version

from hooke.center import Center, CenterSpec, LocalCenter, Refused
from hooke.flat import FlatParameters
from hooke.replicated import ReplicatedCenter
from hooke.rule import EAMSGD, EASGD, Downpour, LocalSGD, Rule
from hooke.worker import Worker

__version__ = version("hooke")

__all__ = [
    # the worker around your own loop
    "Worker",
    # what is exchanged
    "Rule",
    "EASGD",
    "EAMSGD",
    "Downpour",
    "LocalSGD",
    # where the center lives
    "Center",
    "CenterSpec",
    "LocalCenter",
    "ReplicatedCenter",
    "Refused",
    # parameters as one vector
    "FlatParameters",
]
