"""Masks: the keystream of AES-256 in counter mode, read as ring elements."""

from __future__ import annotations

from functools import cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedrot.secagg import keys
from fedrot.secagg.fixed_point import Ring
from fedrot.secagg.session import Session

PAIR_MASK = "pair mask"
SELF_MASK = "self mask"

_BLOCK = 1 << 20


@cache
def _zeros() -> bytes:
    return bytes(_BLOCK)


def add_mask(total: Ring, key: bytes, sign: int) -> None:
    """Add `sign` times the mask of a key to `total`, in place and modulo its ring.

    A key is used for one mask only, so the counter starts at zero. Memory does not grow with the length.

    Args:
        total: `(n,)` of uint32 or uint64, little-endian.
        key: 32 bytes.
        sign: 1 or -1.
    """
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    buffer = bytearray(_BLOCK + 15)  # as much room as update_into asks for
    step = np.add if sign > 0 else np.subtract
    per_block = _BLOCK // total.itemsize
    for start in range(0, len(total), per_block):
        part = total[start : start + per_block]
        stream.update_into(memoryview(_zeros())[: part.nbytes], buffer)
        step(part, np.frombuffer(buffer, total.dtype, len(part)), out=part)


def sign(mine: int, other: int) -> int:
    """Of the mask that client `mine` shares with `other`: the lower number adds, the higher subtracts."""
    return 1 if mine < other else -1


def pair_mask_key(private: bytes, public: bytes, session: Session, first: int, second: int) -> bytes:
    """The key of the mask between two clients, from the private key of one and the public key of the other."""
    low, high = sorted((first, second))
    return keys.agree(private, public, session.digest, PAIR_MASK, low, high)


def self_mask_key(seed: bytes, session: Session, client: int) -> bytes:
    """The key of a client's self mask."""
    return keys.derive_key(seed, session.digest, SELF_MASK, client, client)
