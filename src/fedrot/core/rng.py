"""Randomness is derived from one seed, never taken from global state."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A seed of its own for every purpose, round and client.

    The same arguments give the same 63-bit non-negative integer on every machine, and neighbouring arguments
    unrelated ones, so that what one client draws never depends on which clients ran before it.

    >>> derive(11, "batches", round=3, client=7) == derive(11, "batches", round=3, client=7)
    True
    >>> derive(11, "batches", round=3, client=7) == derive(11, "batches", round=7, client=3)
    False
    """
    text = f"{int(seed)}/{int(round)}/{int(client)}/{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(
    seed: int, purpose: str, round: int = 0, client: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A fresh `torch.Generator` on `device`, seeded with `derive(seed, purpose, round, client)`."""
    return torch.Generator(device=device).manual_seed(derive(seed, purpose, round, client))
