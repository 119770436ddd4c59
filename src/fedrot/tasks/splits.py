"""Seeded, label-stratified choice of rows, and the removal of texts that two splits share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedrot.core.rng import derive

Rows = NDArray[np.int64]


def text_key(*texts: str | None) -> str:
    """What makes two examples the same: their texts, up to white space."""
    return "\x1f".join(" ".join((text or "").split()) for text in texts)


def stratified(labels: Sequence[int] | Rows, count: int, seed: int, purpose: str, *, spare: int = 0) -> Rows:
    """Draw `count` of the rows, each class in proportion, the shares rounded by largest remainder.

    Args:
        labels: `(n,)` class numbers.
        count: how many rows; all that may be drawn, if there are fewer.
        spare: rows of every class that must stay undrawn, so that a small class is not emptied.

    Returns:
        The row numbers in ascending order. Equal arguments give equal rows.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    classes, sizes = np.unique(label_array, return_counts=True)
    limits = np.maximum(sizes - spare, 0)
    quota = _shares(limits, min(count, int(limits.sum())))
    rng = np.random.default_rng(derive(seed, purpose))
    chosen = [
        rng.permutation(np.nonzero(label_array == number)[0])[:share]
        for number, share in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def subsample(
    labels: Sequence[int] | Rows, count: int, seed: int, purpose: str, *, keep: bool = False
) -> Rows:
    """Like `stratified`; with `keep`, every class has at least one row (`count` must allow it)."""
    label_array = np.asarray(labels, dtype=np.int64)
    if len(label_array) <= count:
        return np.arange(len(label_array))
    if not keep:
        return stratified(label_array, count, seed, purpose)
    left_out = stratified(label_array, len(label_array) - count, seed, purpose, spare=1)
    return np.setdiff1d(np.arange(len(label_array)), left_out)


def part(total: int, fraction: float) -> int:
    """`fraction` of `total`, rounded, and never nothing."""
    return max(1, math.floor(total * fraction + 0.5))


def without_shared(keys: Sequence[str], others: Iterable[str]) -> Rows:
    """Rows of `keys` that are not among `others`."""
    taken = set(others)
    return np.asarray([row for row, key in enumerate(keys) if key not in taken], dtype=np.int64)


def _shares(limits: Rows, count: int) -> Rows:
    """`count`, at most their sum, shared out in proportion to `limits` by largest remainder."""
    total = max(int(limits.sum()), 1)
    shares, remainders = np.divmod(limits * count, total)
    shares[np.argsort(-remainders, kind="stable")[: count - int(shares.sum())]] += 1
    return shares
