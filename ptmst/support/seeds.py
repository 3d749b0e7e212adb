"""Counter-based randomness: every draw is a pure function of (seed, what it is for, its number).

No generator lives across steps, so a resumed run needs no generator state to continue with the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64 (Steele, Lea, Flood 2014)."""


def generator(*key: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose, such as `generator(seed, "expert", 3, 7)`."""
    return torch.Generator().manual_seed(_mix(*key))


@contextmanager
def seeded(*key: str | int) -> Iterator[None]:
    """Run module constructors, which draw from torch's global generator, without touching its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_mix(*key))
        yield


def uniform(count: int, *key: str | int) -> Tensor:
    """`count` numbers in [-1, 1), float64: the same bits for a key on every machine and with every release of torch.

    Number i is 2u - 1 with u = ⌊z / 2⁴⁰⌋ / 2²⁴, where z is the i-th output of SplitMix64 that starts at the key's hash.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(_mix(*key) % 2**64) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
        z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0)


def _mix(*key: str | int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little", signed=True)
