"""Nearest orthogonal matrices of large batches of small matrices, mostly by matrix products.

LAPACK factorises a batch one matrix at a time, so a batched SVD costs some fifty batched products. The polar
iteration below needs about sixteen for the well-conditioned matrices that alignment meets, forty for the
others, and leaves only reflections and numerically singular matrices to the SVD.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fedrot.core import linalg

Group = Literal["rotation", "orthogonal"]


class Nearest(NamedTuple):
    """Nearest orthogonal matrices `(..., r, r)`, with flags `(...)`."""

    matrix: Tensor
    degenerate: Tensor
    """The input is zero, not finite or numerically rank deficient."""
    flipped: Tensor
    """The nearest orthogonal matrix is a reflection, and the nearest rotation was returned instead."""


@contextmanager
def full_precision(device: torch.device) -> Generator[None]:
    """No autocast, no TF32: rotating in bfloat16 changes the product `b @ a` by 2e-3, in float32 by 6e-7."""
    backends: Any = torch.backends
    matmuls = [b.matmul for b in (backends.cuda, backends.mkldnn) if hasattr(b, "matmul")]
    # PyTorch refuses to mix these with `set_float32_matmul_precision`, the only switch of older releases.
    switches = [m for m in matmuls if hasattr(m, "fp32_precision")]
    saved = [switch.fp32_precision for switch in switches]
    legacy = None if switches else torch.get_float32_matmul_precision()
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        if legacy:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, precision in zip(switches, saved, strict=True):
            switch.fp32_precision = precision
        if legacy:
            torch.set_float32_matmul_precision(legacy)


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float64 if one of them is, else in float32."""
    dtype = wide_dtype(*tensors)
    return tuple(t.to(dtype) for t in tensors)


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if one of the tensors has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def identity_like(matrix: Tensor) -> Tensor:
    """The `r x r` identity, for a `(..., r, r)` batch."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def nearest_orthogonal(matrix: Tensor, group: Group = "rotation") -> Nearest:
    """The orthogonal matrix (with determinant 1 for `group="rotation"`) nearest to each `(..., r, r)` matrix.

    For a matrix `U diag(s) V.T` that is `U diag(1, ..., 1, det(U V.T)) V.T`, respectively `U V.T`. Zero and
    non-finite matrices give the identity. A matrix counts as rank deficient when `s[-1] <= r * eps * s[0]`.
    """
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    null = ~flat.isfinite().flatten(1).all(-1) | (flat == 0).flatten(1).all(-1)
    flat = torch.where(null[:, None, None], identity_like(flat), flat)
    size = flat.abs()
    bound = size.sum(-1).amax(-1).sqrt() * size.sum(-2).amax(-1).sqrt()  # sqrt(|x|_1 |x|_inf) >= |x|_2
    near, settled = polar(flat / bound[:, None, None], 0.05)
    flipped = linalg.det(near) < 0 if group == "rotation" else torch.zeros_like(null)
    degenerate = null
    if len(rest := (~settled | flipped).nonzero()[:, 0]):
        near[rest], deficient, flipped[rest] = _by_svd(flat[rest], group)
        degenerate = null.index_put((rest,), null[rest] | deficient)
    batch = matrix.shape[:-2]
    return Nearest(near.reshape(matrix.shape), degenerate.reshape(batch), flipped.reshape(batch))


def polar(x: Tensor, low: float) -> tuple[Tensor, Tensor]:
    """Orthogonal polar factors of `(n, r, r)` matrices of norm at most one, and which are right: `(n,)`.

    One sweep for singular values in `[low, 1]`, a second one only for the matrices that have smaller ones,
    down to 1e-5. Choosing those, here and for the SVD, is the only host synchronisation of a solve.
    """
    x, settled, least = _sweep(x, low, 1e-5)
    if len(rest := (~settled).nonzero()[:, 0]):
        x[rest], settled[rest], _ = _sweep(x[rest], least, least)
    return x, settled


def _sweep(x: Tensor, low: float, least: float) -> tuple[Tensor, Tensor, float]:
    """Scaled Newton-Schulz iteration `x <- x (1.5 c I - 0.5 c^3 x.T x)` (Chen and Chow 2014).

    The schedule of `c` takes singular values in `[low, 1]` to one, nearly as fast as cubics can. Returns the
    iterate, which matrices settled on an orthogonal one, and where a singular value `least` below `low` went.
    """
    eps = torch.finfo(x.dtype).eps
    while 1 - low > 4 * eps:
        # Scaling for less than 0.1 grows small values hardly faster, and squashes large ones into rounding.
        c = math.sqrt(3 / (1 + max(low, 0.1) + max(low, 0.1) ** 2))
        x = torch.baddbmm(x, x, x.mT @ x, beta=1.5 * c, alpha=-0.5 * c**3)
        low, least = (0.5 * c * value * (3 - c * c * value * value) for value in (low, least))
    residual = (x.mT @ x - identity_like(x)).abs().amax((-2, -1))
    return x, residual < 4 * math.sqrt(x.shape[-1]) * eps, least


def _by_svd(matrix: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = linalg.svd(matrix.double())
    flipped = linalg.det(u @ vh) < 0 if group == "rotation" else s[:, 0] < 0
    sign = torch.where(flipped, -1.0, 1.0).to(s)
    nearest = torch.cat([u[..., :-1], u[..., -1:] * sign[:, None, None]], -1) @ vh
    deficient = s[:, -1] <= matrix.shape[-1] * torch.finfo(matrix.dtype).eps * s[:, 0]
    return nearest.to(matrix.dtype), deficient, flipped
