"""Random matrices for property tests: hypothesis draws shapes and seeds, torch the numbers, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**32 - 1)
ranks = st.integers(1, 8)
strengths = st.floats(0, 1)


def property_test(
    *strategies: st.SearchStrategy[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return lambda test: settings(deadline=None, max_examples=50)(given(*strategies)(test))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(seed: int, *shape: int) -> Tensor:
    """Haar-random rotations of shape `(..., r, r)`."""
    q, _ = torch.linalg.qr(normal(seed, *shape))
    q[..., 0] *= torch.linalg.det(q).sign()[..., None]
    return q


def planar(angles: Tensor, frame: Tensor) -> Tensor:
    """The rotation by `angles: (k,)` in the planes of the first `2 k` columns of an orthogonal `frame`."""
    turn = torch.eye(len(frame), dtype=torch.float64)
    for k, angle in enumerate(angles):
        c, s = angle.cos(), angle.sin()
        turn[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = torch.stack([c, -s, s, c]).view(2, 2)
    return frame @ turn @ frame.T


def size(rotation: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(rotation - torch.eye(rotation.shape[-1], dtype=rotation.dtype))
