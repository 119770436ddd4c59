"""Standard normal numbers, from the operating system's secure source or, for simulations, from a seed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedrot.core.rng import generator

Noise = Callable[[Sequence[int]], Tensor]
"""Shape to independent standard normal numbers in float64, on the CPU; every call draws new ones."""


def system_noise(shape: Sequence[int]) -> Tensor:
    """Standard normal numbers from the operating system's random bytes (`os.urandom`).

    Box and Muller's transform of uniforms with 53 bits: `sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v)` with
    `u` in `(0, 1]`. No number exceeds 8.6 in size, which an exact one does with probability 1e-17. The time taken
    depends on the shape alone.
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    radius = (-2 * (_uniform(pairs) + 2.0**-53).log()).sqrt()
    angle = 2 * math.pi * _uniform(pairs)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].view(*shape)


def _uniform(count: int) -> Tensor:
    """Multiples of 2**-53 in `[0, 1)`."""
    if not count:
        return torch.zeros(0, dtype=torch.float64)
    words = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
    return (words & (2**53 - 1)).double() * 2.0**-53


def seeded_noise(seed: int, round: int, client: int | None = None) -> Noise:
    """The same numbers for the same seed, round and client (None: the server). Whoever knows the seed knows them."""
    purpose = "privacy/server" if client is None else "privacy/client"
    draws = generator(seed, purpose, round, client or 0)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    return draw


def make_noise(source: Literal["system", "seed"], seed: int, round: int, client: int | None = None) -> Noise:
    """The noise that `privacy.noise_source` names, for one client in one round; None is the server."""
    return system_noise if source == "system" else seeded_noise(seed, round, client)
