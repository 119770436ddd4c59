"""Shamir's secret sharing: any `threshold` shares give the secret, fewer say nothing about it.

The secret is the constant term of a polynomial of degree `threshold - 1` whose other coefficients are uniform; a
share is its value at a point other than 0 (Shamir, Communications of the ACM 22, 1979). The field has
`2^256 + 297` elements, a prime, so a secret of 32 bytes is one element. Libraries at hand share 16 bytes and take
`O(threshold^2)` field operations in Python per secret; here those are done once for all secrets of a round.

Python's integers do not take constant time. Shares are computed where their secrets are held, and combined where
they may be known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedrot.errors import SecureAggregationError

PRIME = (1 << 256) + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, threshold: int, points: Sequence[int], entropy: Callable[[int], bytes]
) -> list[bytes]:
    """One share, 33 bytes, for each of `points`: distinct integers from 1.

    Args:
        secret: 32 bytes.
        threshold: how many shares give it back.
        points: where the polynomial is evaluated.
        entropy: as `os.urandom`.
    """
    if len(secret) != SECRET_BYTES:
        raise SecureAggregationError(f"a secret of {len(secret)} bytes: expected {SECRET_BYTES}")
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or min(points) < 1:
        raise SecureAggregationError(
            f"threshold = {threshold} for {len(points)} shares: expected 1 to their number, at distinct points"
        )
    # 48 bytes modulo a prime of 257 bits: off uniform by less than 2^-126.
    coefficients = [int.from_bytes(entropy(48), "big") % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return [_evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points]


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value


def at_zero(points: Sequence[int]) -> list[int]:
    """The factors by which shares at `points` are summed to the value at 0 (Lagrange)."""
    if len(set(points)) != len(points):
        raise SecureAggregationError(f"shares at points {sorted(points)}: expected distinct ones")
    factors: list[int] = []
    for mine in points:
        above = below = 1
        for other in points:
            if other != mine:
                above = above * other % PRIME
                below = below * (other - mine) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return factors


def combine(shares: Mapping[int, bytes], factors: Sequence[int] | None = None) -> bytes:
    """The secret that exactly `threshold` shares, by point, determine.

    Args:
        shares: by point.
        factors: `at_zero(list(shares))`, if known: it is the same for all secrets shared at these points.

    Raises:
        SecureAggregationError: something that is no share, or shares that do not belong together.
    """
    values = [int.from_bytes(share, "big") for share in shares.values()]
    if any(len(share) != SHARE_BYTES for share in shares.values()) or any(v >= PRIME for v in values):
        raise SecureAggregationError(f"a share is not a number below 2^256 + 297 in {SHARE_BYTES} bytes")
    factors = at_zero(list(shares)) if factors is None else factors
    secret = sum(f * v for f, v in zip(factors, values, strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise SecureAggregationError(
            f"{len(shares)} shares do not belong to one secret: one is wrong, or some are missing"
        )
    return secret.to_bytes(SECRET_BYTES, "big")
