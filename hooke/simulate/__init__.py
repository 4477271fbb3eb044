"""Workers around a center on a virtual clock: who exchanges when, and what that does. Names load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hooke.simulate.timeline import timeline  # at once: its module has the same name, and would hide it

if TYPE_CHECKING:
    from hooke.simulate.bowl import Bowl as Bowl
    from hooke.simulate.bowl import stationary_variance as stationary_variance
    from hooke.simulate.cluster import Cluster as Cluster
    from hooke.simulate.cluster import Drift as Drift
    from hooke.simulate.cluster import Failure as Failure
    from hooke.simulate.descent import Descent as Descent
    from hooke.simulate.descent import TreeDescent as TreeDescent
    from hooke.simulate.event import Event as Event
    from hooke.simulate.simulation import Simulation as Simulation
    from hooke.simulate.tree import Message as Message
    from hooke.simulate.tree import Tree as Tree
    from hooke.simulate.tree import tree_timeline as tree_timeline

_HOME = {
    # a run with real gradients
    "Simulation": "simulation",
    # the machines, in numbers
    "Cluster": "cluster",
    "Drift": "cluster",
    "Failure": "cluster",
    # who exchanges when
    "Event": "event",
    "tree_timeline": "tree",
    "Tree": "tree",
    "Message": "tree",
    # and what that does on a noisy quadratic
    "Bowl": "bowl",
    "Descent": "descent",
    "TreeDescent": "descent",
    "stationary_variance": "bowl",
}

__all__ = ["timeline", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"hooke.simulate.{_HOME[name]}"), name)
    raise AttributeError(f"module 'hooke.simulate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
