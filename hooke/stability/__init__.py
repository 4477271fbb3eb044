"""Which learning rates, moving rates, periods and numbers of workers are stable: closed forms and spectral radii.

On `f(x) = h x^2 / 2` every exchange is a linear map, so stability is a question of eigenvalues; near a minimum every
smooth loss is such a bowl along each direction of its Hessian. Everything here is judged for the top curvature `h` and
all flatter directions, without gradient noise. No torch: numbers in, numbers out.
"""

from hooke.stability.admm import admm_path, admm_radius
from hooke.stability.answer import (
    BETA,
    PERIOD,
    Stability,
    elastic_stability,
    outer_stability,
    stability_of,
    way_stability,
)
from hooke.stability.border import beta_border, eamsgd_moving_rate_border, moving_rate_border, way_border
from hooke.stability.setting import rounded_down

__all__ = [
    "BETA",
    "PERIOD",
    "Stability",
    "admm_path",
    "admm_radius",
    "beta_border",
    "eamsgd_moving_rate_border",
    "elastic_stability",
    "moving_rate_border",
    "outer_stability",
    "rounded_down",
    "stability_of",
    "way_border",
    "way_stability",
]
