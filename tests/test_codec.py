"""Codecs against a literal reference in numpy, and the two properties that a link rests on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooke.codec import CODECS, SCALED, Codec, codec_of

SIZES = [1, 2, 64, SCALED - 1, SCALED, SCALED + 1, 5 * SCALED, 1000]


def values(numel: int, seed: int, spread: float = 3.0) -> Tensor:
    """Of many magnitudes, some of them zero."""
    random = np.random.default_rng(seed)
    made = random.normal(size=numel) * 10 ** random.uniform(-spread, spread, numel)
    return torch.tensor(np.where(random.random(numel) < 0.1, 0, made), dtype=torch.float32)


def nearest_bfloat16(value: float) -> float:
    """To 8 bits of precision, halves to even."""
    if value == 0:
        return 0.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def literal(name: str, x: np.ndarray) -> np.ndarray:
    """One value after the other."""
    if name == "float32":
        return x
    if name == "bfloat16":
        return np.array([nearest_bfloat16(float(value)) for value in x])
    top = {"int8": 127, "int4": 7}[name]
    out = []
    for start in range(0, len(x), SCALED):
        block = [float(value) for value in x[start : start + SCALED]]
        scale = nearest_bfloat16(float(np.float32(max(abs(value) for value in block)) / np.float32(top)))
        out += [round(value / scale) * scale if scale else 0.0 for value in block]
    return np.array(out)


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("codec", CODECS.values(), ids=str)
def test_what_arrives_is_the_literal_reference(codec: Codec, numel: int) -> None:
    x = values(numel, numel)
    coded = codec.encode(x)
    assert coded.dtype == torch.uint8 and coded.numel() == codec.size(numel)
    expected = literal(codec.name, x.double().numpy())
    torch.testing.assert_close(
        codec.decode(coded, torch.empty(numel)).double(), torch.tensor(expected), rtol=1e-6, atol=0
    )
    assert codec.is_exact == (codec.name == "float32")


@given(
    numel=st.integers(1, 3 * SCALED),
    seed=st.integers(0, 10**6),
    spread=st.floats(0, 30),
    name=st.sampled_from(list(CODECS)),
)
@settings(deadline=None, max_examples=200)
def test_what_was_read_is_written_as_the_same_bytes(numel: int, seed: int, spread: float, name: str) -> None:
    codec = codec_of(name)
    read = codec.rounded(values(numel, seed, spread))
    assert bool(read.isfinite().all())
    assert torch.equal(codec.rounded(read), read)
    assert torch.equal(codec.encode(codec.rounded(read)), codec.encode(read))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_an_error_is_at_most_half_a_scale_and_the_largest_value_is_kept(name: str) -> None:
    codec, top = codec_of(name), {"int8": 127, "int4": 7}[name]
    x = values(40 * SCALED, 7)
    error = (codec.rounded(x) - x).view(-1, SCALED).abs().amax(1)
    largest = x.view(-1, SCALED).abs().amax(1)
    assert bool((error <= (0.5 + top * 2**-8) * largest / top * (1 + 1e-5)).all())
    kept = codec.rounded(x).view(-1, SCALED).abs().amax(1)
    torch.testing.assert_close(kept, largest, rtol=2**-8, atol=0)


def test_bytes_of_a_large_vector() -> None:
    shares = {name: codec.size(10_000_000) / 40_000_000 for name, codec in CODECS.items()}
    assert shares == pytest.approx({"float32": 1, "bfloat16": 0.5, "int8": 0.2539, "int4": 0.1289}, abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", CODECS.values(), ids=str)
def test_what_is_not_finite_never_arrives_finite(codec: Codec, bad: float) -> None:
    """So that the center sees it, and refuses it."""
    x = values(2 * SCALED, 1)
    x[SCALED + 5] = bad
    arrived = codec.rounded(x)
    assert not bool(arrived[SCALED:].isfinite().all())
    if codec.name.startswith("int"):
        assert bool(arrived[:SCALED].isfinite().all())


def test_values_too_small_for_a_scale_become_zero() -> None:
    x = torch.full((SCALED,), 1e-38)
    assert not codec_of("int4").rounded(x).any() and not codec_of("int8").rounded(x).any()


def test_bytes_may_lie_anywhere() -> None:
    x = values(1000, 3)
    for codec in CODECS.values():
        coded = codec.encode(x)
        odd = torch.empty(coded.numel() + 1, dtype=torch.uint8)[1:].copy_(coded)
        assert torch.equal(codec.decode(odd, torch.empty(1000)), codec.rounded(x))


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(ValueError, match=r"codec must be one of float32, bfloat16, int8, int4\. Got 'zip'\. Use int8"):
        codec_of("zip")
