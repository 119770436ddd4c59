"""The parts of `torch.linalg` in use here, with the annotations that it lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_linalg: Any = torch.linalg


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin `U, s, V.T` of `(..., m, n)`, singular values descending."""
    return _linalg.svd(matrix, full_matrices=False)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of symmetric `(..., n, n)`."""
    return _linalg.eigh(matrix)


def qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Thin `Q, R` of `(..., m, n)`."""
    return _linalg.qr(matrix)


def det(matrix: Tensor) -> Tensor:
    """Determinants of `(..., n, n)`."""
    return _linalg.det(matrix)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower `L` with `L @ L.T` the symmetric positive definite `(..., n, n)`."""
    return _linalg.cholesky(matrix)


def inv(matrix: Tensor) -> Tensor:
    """Inverses of `(..., n, n)`."""
    return _linalg.inv(matrix)


def frobenius(matrix: Tensor) -> Tensor:
    """`(sum of squares) ** 0.5` of `(..., m, n)`."""
    return _linalg.matrix_norm(matrix)


def spectral(matrix: Tensor) -> Tensor:
    """The largest singular value of `(..., m, n)`."""
    return _linalg.matrix_norm(matrix, ord=2)
