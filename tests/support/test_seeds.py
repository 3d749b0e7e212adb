"""Numbers by key: exact everywhere, by an independent computation in whole numbers."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import pytest
import torch

from ptmst.support.seeds import uniform

WORD = 2**64


def outputs(state: int, count: int) -> list[int]:
    """SplitMix64, one number after the other, as its authors define it."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
        found.append(z ^ (z >> 31))
    return found


def test_the_oracle_is_splitmix64() -> None:
    """Its published outputs from state 1234567."""
    assert outputs(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("key", [(0,), (3, "expert", 7, "text"), ("é", -1)])
def test_uniform_numbers_are_exact(key: tuple[int | str, ...]) -> None:
    state = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    expected = [Fraction(z >> 40, 2**23) - 1 for z in outputs(state, 50)]
    found = uniform(50, *key)
    assert found.dtype == torch.float64 and [Fraction(value) for value in found.tolist()] == expected
    assert torch.equal(uniform(20, *key), found[:20])


def test_uniform_numbers_are_spread() -> None:
    found = uniform(100_000, "spread")
    assert float(found.min()) >= -1 and float(found.max()) < 1
    counts = torch.histc(found, 10, -1, 1)
    # χ² of 9 degrees of freedom: above 27.9 once in a thousand.
    assert float(((counts - 10_000).square() / 10_000).sum()) < 27.9
    assert abs(float((found[:-1] * found[1:]).mean())) < 0.005
    assert not torch.equal(uniform(10, "a"), uniform(10, "b"))
