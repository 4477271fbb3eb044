"""Parts that keep deep nets stable, each usable in your own model. Names load when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooke.nn.self_normalizing.audit.report import AuditReport as AuditReport
    from hooke.nn.self_normalizing.audit.report import Finding as Finding
    from hooke.nn.self_normalizing.audit.report import LayerStatistics as LayerStatistics
    from hooke.nn.self_normalizing.audit.report import audit as audit
    from hooke.nn.self_normalizing.fixed_point import FixedPoint as FixedPoint
    from hooke.nn.self_normalizing.fixed_point import SeluParameters as SeluParameters
    from hooke.nn.self_normalizing.fixed_point import fixed_point as fixed_point
    from hooke.nn.self_normalizing.fixed_point import selu_parameters as selu_parameters
    from hooke.nn.self_normalizing.layers import SELU as SELU
    from hooke.nn.self_normalizing.layers import AlphaDropout as AlphaDropout
    from hooke.nn.self_normalizing.layers import FeatureAlphaDropout as FeatureAlphaDropout
    from hooke.nn.self_normalizing.layers import SelfNormalizingMLP as SelfNormalizingMLP
    from hooke.nn.self_normalizing.layers import lecun_normal_ as lecun_normal_
    from hooke.nn.self_normalizing.moments import moment_jacobian as moment_jacobian
    from hooke.nn.self_normalizing.moments import moment_map as moment_map
    from hooke.nn.self_normalizing.repair import Repairs as Repairs
    from hooke.nn.self_normalizing.repair import self_normalize_ as self_normalize_
    from hooke.nn.self_normalizing.theorem import THEOREMS as THEOREMS
    from hooke.nn.self_normalizing.theorem import TheoremDomain as TheoremDomain

_HOME = {
    # self-normalizing nets
    "SELU": "self_normalizing.layers",
    "AlphaDropout": "self_normalizing.layers",
    "FeatureAlphaDropout": "self_normalizing.layers",
    "SelfNormalizingMLP": "self_normalizing.layers",
    "lecun_normal_": "self_normalizing.layers",
    # does a net normalize itself, and how to make it
    "audit": "self_normalizing.audit.report",
    "AuditReport": "self_normalizing.audit.report",
    "LayerStatistics": "self_normalizing.audit.report",
    "Finding": "self_normalizing.audit.report",
    "self_normalize_": "self_normalizing.repair",
    "Repairs": "self_normalizing.repair",
    # the theory
    "moment_map": "self_normalizing.moments",
    "moment_jacobian": "self_normalizing.moments",
    "fixed_point": "self_normalizing.fixed_point",
    "FixedPoint": "self_normalizing.fixed_point",
    "selu_parameters": "self_normalizing.fixed_point",
    "SeluParameters": "self_normalizing.fixed_point",
    "THEOREMS": "self_normalizing.theorem",
    "TheoremDomain": "self_normalizing.theorem",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"hooke.nn.{_HOME[name]}"), name)
    raise AttributeError(f"module 'hooke.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
