"""The clients' mean update applied to a few vectors at every site, one client in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter


def right_products(
    clients: Sequence[Adapter], shares: Sequence[float], columns: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`W @ x = sum p_i b_i (a_i x)` at every site.

    Args:
        clients: `N` adapters; ranks may differ.
        shares: `p_i`.
        columns: `x: (d_in, m)` by site; its precision is that of the sums.

    Returns:
        `(d_out, m)` by site.
    """
    total: dict[str, Tensor] = {}
    cast = _Cast()
    for client, share in zip(clients, shares, strict=True):
        for site, x in columns.items():
            f = client.sites[site]
            if site not in total:
                total[site] = x.new_zeros(f.d_out, x.shape[1])
            inner = cast(f.a, x) @ x
            total[site].addmm_(cast(f.b, x), inner, alpha=share)
    return total


def left_products(
    clients: Sequence[Adapter], shares: Sequence[float], rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`y @ W = sum p_i (y b_i) a_i` at every site.

    Args:
        clients: `N` adapters; ranks may differ.
        shares: `p_i`.
        rows: `y: (m, d_out)` by site; its precision is that of the sums. Fastest where `y.mT` is contiguous.

    Returns:
        `(m, d_in)` by site.
    """
    total: dict[str, Tensor] = {}
    cast = _Cast()
    for client, share in zip(clients, shares, strict=True):
        for site, y in rows.items():
            f = client.sites[site]
            if site not in total:
                total[site] = y.new_zeros(len(y), f.d_in)
            inner = cast(f.b, y).mT @ y.mT
            total[site].addmm_(inner.mT, cast(f.a, y), alpha=share)
    return total


class _Cast:
    """Factors in another precision, in memory that the next factor of that shape overwrites.

    New memory for every factor costs more than the products.
    """

    def __init__(self) -> None:
        self._spaces: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, factor: Tensor, like: Tensor) -> Tensor:
        """`factor` in the precision and on the device of `like`, until the next call with its shape."""
        if factor.dtype == like.dtype and factor.device == like.device:
            return factor
        key = (factor.shape, like.dtype, like.device)
        if key not in self._spaces:
            self._spaces[key] = like.new_empty(factor.shape)
        return self._spaces[key].copy_(factor)
