"""Weighted vectors as integers of a ring, so that sums modulo `2^bits` are sums of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedrot.errors import SecureAggregationError

Ring: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""A vector of residues modulo 2^32 or 2^64; numpy's arithmetic on it wraps, as it should."""

MAX_WEIGHT = 1 << 29
"""With smaller weights the product of a weight and a float32 is exact in float64: 29 + 24 = 53 bits."""
EXTRAS = 2
"""Ring elements after the vector: the weight, and a one that counts the summands."""


@dataclass(frozen=True)
class FixedPoint:
    r"""How a client's vector `x`, times its integer weight `w`, becomes ring elements, and how their sum is read.

    With `n` summands, `|x| <= C` (`clip`), `1 <= w <= W` (`max_weight`) and `k` bits the step is `2^-e` with the
    largest integer `e` such that

        n (W C 2^e + 1/2) <= 2^(k-1) - 1.                                       (1)

    A client sends `q = rint(w x 2^e)` modulo `2^k`, then `w`, then 1.

    *No sum overflows.* `|q| <= W C 2^e + 1/2`, so by (1) a sum of at most `n` of them lies strictly between
    `-2^(k-1)` and `2^(k-1)`, where an integer is determined by its residue: the signed reading of the ring sum
    is the sum. `n W <= 2^(k-1) - 1` is required, so the same holds for the weights and the count.

    *Error.* `x` is float32 and `w <= 2^29`, so `w x` is exact in float64, and so is its product with a power of
    two: `q` is the integer nearest to `w x 2^e`, off by at most 1/2. (Rounding to nearest: half the worst error
    of stochastic rounding, and the result does not depend on a draw.) For `m` clients with total weight `T`

        |mean read - sum w x / T| <= m 2^-(e+1) / T + 2^-52 |sum w x / T|,      (2)

    the last term for turning an integer into a float64 and dividing it. Nothing is clipped: a value beyond `C`
    is refused, because a sum that silently holds another number than the client's is no mean of theirs.

    Attributes:
        clients: `n`, the most summands there can be.
        clip: `C`, the largest magnitude of a value.
        max_weight: `W`, the largest weight, such as a number of examples.
        bits: `k`; 32 is as long as the float32 it stands for, 64 is finer than float32.

    Raises:
        SecureAggregationError: numbers out of range, or so large that a sum of unit weights would be left with a
            worst error above `clip / 1024`.
    """

    clients: int
    clip: float
    max_weight: int = 1
    bits: Literal[32, 64] = 32

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise SecureAggregationError(f"bits = {self.bits!r}: expected 32 or 64")
        if self.clients < 1:
            raise SecureAggregationError(f"clients = {self.clients!r}: expected at least 1")
        if not (math.isfinite(self.clip) and 2.0**-64 <= self.clip <= 2.0**64):
            raise SecureAggregationError(
                f"clip = {self.clip!r}: expected a bound on the values, between 2^-64 and 2^64"
            )
        if not 1 <= self.max_weight <= MAX_WEIGHT:
            raise SecureAggregationError(f"max_weight = {self.max_weight!r}: expected 1 to {MAX_WEIGHT}")
        if self.step > self.clip / 512 or self.clients * self.max_weight > self._largest:
            raise SecureAggregationError(
                f"{self.clients} clients of weight up to {self.max_weight} in {self.bits} bits: a single client's "
                f"values would be rounded by up to {self.step / 2:g} with clip = {self.clip:g}; "
                + ("expected 64 bits" if self.bits == 32 else "expected smaller weights")
            )

    @property
    def _largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @cached_property
    def exponent(self) -> int:
        """`e` of (1)."""
        room = (Fraction(self._largest) / self.clients - Fraction(1, 2)) / (
            self.max_weight * Fraction(self.clip)
        )
        if room <= 0:
            raise SecureAggregationError(f"{self.clients} clients: too many for {self.bits} bits")
        exponent = room.numerator.bit_length() - room.denominator.bit_length()
        return exponent if Fraction(2) ** exponent <= room else exponent - 1

    @property
    def step(self) -> float:
        """`2^-e`, the distance between neighbouring values of `w x`."""
        return 2.0**-self.exponent

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Of ring elements, little-endian."""
        return np.dtype("<u4") if self.bits == 32 else np.dtype("<u8")

    def bound(self, summands: int, weight: int) -> float:
        """The first term of (2): the worst error that rounding leaves in a mean of total weight `weight`."""
        return summands * self.step / 2 / weight

    def encode(self, vector: NDArray[np.float32], weight: int) -> Ring:
        """`rint(weight * vector * 2^e)`, the weight and a one, `(length + 2,)`, modulo `2^bits`.

        Raises:
            SecureAggregationError: not a vector of float32, a value that is not finite or beyond `clip`, or a
                weight that is not an integer from 1 to `max_weight`.
        """
        if vector.ndim != 1 or vector.dtype != np.float32:
            raise SecureAggregationError(
                f"values of shape {vector.shape}, {vector.dtype}: expected float32 of shape (n,)"
            )
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= self.max_weight:
            raise SecureAggregationError(
                f"weight = {weight!r}: expected an integer from 1 to {self.max_weight}"
            )
        scaled = vector.astype(np.float64)
        outside = ~(np.abs(scaled) <= self.clip)
        if outside.any():
            index = int(outside.argmax())
            raise SecureAggregationError(
                f"{int(outside.sum())} values are not finite or beyond clip = {self.clip:g}, the first "
                f"{float(vector[index])!r} at {index}: nothing was sent; raise the clip, or see why training diverged"
            )
        whole = np.empty(len(vector) + EXTRAS, np.int64)
        scaled *= weight * 2.0**self.exponent
        np.rint(scaled, out=scaled)
        whole[:-EXTRAS] = scaled
        whole[-EXTRAS:] = weight, 1
        return whole.view(np.uint64).astype(self.dtype)

    def decode(self, total: Ring, summands: int) -> tuple[NDArray[np.float64], int]:
        """The mean `(length,)` and the total weight, from a sum of `summands` encoded vectors.

        Raises:
            SecureAggregationError: the sum is not one of `summands` vectors, so a mask is left in it.
        """
        signed = total.astype(self.dtype).view(np.int32 if self.bits == 32 else np.int64)
        weight, count = int(signed[-2]), int(signed[-1])
        if count != summands or not summands <= weight <= summands * self.max_weight:
            raise SecureAggregationError(
                f"the unmasked sum counts {count} clients of total weight {weight}, expected {summands} clients: "
                "masks did not cancel, or a client departed from the protocol; the round is lost"
            )
        return signed[:-EXTRAS].astype(np.float64) * self.step / weight, weight
