"""Borders of stability in closed form. `e` stands for lr * curvature."""

from __future__ import annotations

import math


def moving_rate_border(lr_curvature: float) -> float:
    """Largest stable alpha of EASGD where workers exchange one by one, in any order and at any period.

        alpha < (4 - 2 e) / (4 - e)

    At the border the map of one worker and the center, which is symmetric, gets the eigenvalue -1. Inside, it shortens
    every vector, hence so does any sequence of such maps. An odd number of workers in turn, at period 1, is unstable
    beyond it; an even number (whose reflections make a rotation) and longer periods may reach a little further.

    Args:
        lr_curvature: e = lr * curvature, in [0, 2].

    Example:
        >>> round(moving_rate_border(1.0), 4)
        0.6667

    Reference:
        Zhang, Choromanska, LeCun, "Deep learning with elastic averaging SGD", arXiv 1412.6651, section 4.
    """
    return (4 - 2 * lr_curvature) / (4 - lr_curvature)


def eamsgd_moving_rate_border(lr_curvature: float, momentum: float) -> float:
    """An alpha below which EAMSGD is stable in any order and at any period; sufficient, not necessary.

        alpha <= 2 / (2 + e + d^2 e (1 - e) / (1 - d^2 (1 - e)))        d: momentum

    A Nesterov step never lengthens `x^2 + v^2 (1 - e) / e`, and up to this alpha neither does an exchange lengthen that
    plus c^2. It is at least 2/3 whatever the momentum, so beta = 0.9 is safe for two workers and more while e < 1.

    Args:
        lr_curvature: e = lr * curvature, in (0, 1).
        momentum: In [0, 1).

    Example:
        >>> round(eamsgd_moving_rate_border(0.1, 0.99), 4)
        0.7022
    """
    e, squared = lr_curvature, momentum**2
    return 2 / (2 + e + squared * e * (1 - e) / (1 - squared * (1 - e)))


def beta_border(lr_curvature: float, num_workers: int) -> float:
    """Largest stable beta = p alpha of EASGD where all workers exchange at once, at period 1.

        beta < (4 - 2 e) / (2 + 2 / p - e)

    One worker gives `moving_rate_border`. The whole map is symmetric, so inside the border longer periods are stable.

    Example:
        >>> beta_border(1.0, num_workers=4)
        1.3333333333333333

    Reference:
        arXiv 1412.6651, section 3, eqs. 5 and 6.
    """
    return (4 - 2 * lr_curvature) / (2 + 2 / num_workers - lr_curvature)


def way_border(num_workers: int, *, synchronous: bool = False) -> float:
    """Largest stable part `1 - (1 - e) ** tau` of the way to the minimum that a DOWNPOUR worker may go in one period.

        at once:  2 / p              in turn:  2 sin(pi / (4 p - 2)), near pi / (2 p)

    In turn, the center moves by what each worker saw p - 1 exchanges ago: `c(n+1) = c(n) - g c(n-p+1)`. Random orders
    were stable somewhat beyond this border in every trial; orders made to disturb can fail a few percent below it.

    Example:
        >>> way_border(4, synchronous=True), round(way_border(4), 4)
        (0.5, 0.445)
    """
    return 2 / num_workers if synchronous else 2 * math.sin(math.pi / (4 * num_workers - 2))
