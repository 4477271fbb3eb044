"""One finding of an audit, the limits beyond which something is one, and how numbers and errors are said."""

from __future__ import annotations

from dataclasses import dataclass

from hooke.nn.self_normalizing.theorem import THEOREMS

_DOMAIN = THEOREMS["theorem 1"]
MEAN, VARIANCE, OMEGA, TAU = _DOMAIN.mean, _DOMAIN.variance, _DOMAIN.omega, _DOMAIN.tau
"""Theorem 1's domain: inside it one layer always leads back toward the fixed point."""

SPREAD = 4.0
"""Standard errors granted to what is a mean over few units or few examples: beyond them chance is 1 in 16,000."""

WANDER_MEAN, WANDER_VARIANCE = 1.0, 2.0
"""Standard deviation over inits of a layer's mean and variance, times sqrt(width), at worst (all examples alike).

One layer adds sd(selu(z)) = 1 and sd(selu(z)^2) = 1.23; the map takes 0.783 of a deviation of the variance along, so
that it wanders by 1.23 / sqrt(1 - 0.783^2) = 1.97 in deep nets.
"""

BACKWARD_FACTOR = 1.071571
"""chi = E[selu'(z)^2] at (0, 1): what one SELU layer multiplies the variance of gradients by."""

GRADIENT_GROWTH = 1000.0
"""chi^depth beyond which depth is a finding: 100 layers; 64 layers have 84, 128 layers 7,000."""

FADING = 1e4
"""Factor between the first and the last third of the layers, of activation or gradient variance, in any net: 100 times
in standard deviations. Asked of nets with `DEEP` hidden layers or more."""
DEEP = 6

CORNER = 0.5
"""Variance at the corners of an image against its middle. One 3x3 convolution with zeros around leaves about 0.5."""

BIAS_MEAN, BIAS_SQUARE = 0.05, 0.05
"""Mean of a layer's biases and mean of their squares that matter: half of theorem 1's room for the mean; its room for
tau."""

NARROW, NARROW_LAYERS = 16, 4
"""Inputs of a hidden unit below which its tau spreads by more than a third (sqrt(2 / 16)), and how many such layers it
takes: a conic net may end in a few."""

TAPER = 3
"""Layers of one width at most, on average, where a net still counts as one that grows ever narrower."""

RATE = 0.2
"""Alpha-dropout rates above it are a finding: twice the larger of the paper's 0.05 and 0.1."""

RECIPES = (
    ("he-init", 2.0, "He init"),
    ("default-init", 1 / 3, "torch's default init"),
    ("gain-init", 9 / 16, "Init with gain 3/4, torch's for nonlinearity='selu',"),
    ("truncated-init", 0.7737, "A normal truncated at 2 standard deviations without correction"),
)
"""Inits known by tau = n * Var(w) of the weights they draw."""
RECIPE_WIDTH = 0.04
"""Relative distance of tau from a recipe's that still is that recipe, beside sampling."""

SELF_NORMALIZE = "hooke.nn.self_normalize_(model) does this."
"""How findings name who repairs them, where that is so."""


@dataclass(frozen=True)
class Finding:
    """Something that keeps the net from normalizing itself, or from training at all.

    Attributes:
        kind: A short name for programs: `"plain-dropout"`, `"he-init"`, `"depth"`...
        layer: Name of the module where it is first seen; `"inputs"` for what comes from outside.
        sentence: What is wrong, with the measured numbers.
        repair: What to do about it.

    Example:
        >>> Finding("inputs", "inputs", "Inputs have mean 0 and variance 14.", "Standardize them.").kind
        'inputs'
    """

    kind: str
    layer: str
    sentence: str
    repair: str

    def __str__(self) -> str:
        place = self.kind if self.layer == "inputs" else f"{self.kind} at {self.layer}"
        return f"{place}: {self.sentence} {self.repair}"


def said(value: float) -> str:
    """A number in a sentence: 3 digits, thousands with commas."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value + 0:.3g}"


def words_of(error: BaseException) -> str:
    """An exception in a sentence: its kind and its first line."""
    first = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
