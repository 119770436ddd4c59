"""The clients' mean update applied to a few vectors at every site, one client in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    for client, share in zip(clients, shares, strict=True):
        for site, x in columns.items():
            f = client.sites[site]
            if site not in total:
                total[site] = x.new_zeros(f.d_out, x.shape[1])
            total[site].addmm_(f.b.to(x), f.a.to(x) @ x, alpha=share)
    return total


def left_products(
    clients: Sequence[Adapter], shares: Sequence[float], rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`y @ W = sum p_i (y b_i) a_i` at every site.

    Args:
        clients: `N` adapters; ranks may differ.
        shares: `p_i`.
        rows: `y: (m, d_out)` by site; its precision is that of the sums.

    Returns:
        `(m, d_in)` by site.
    """
    total: dict[str, Tensor] = {}
    for client, share in zip(clients, shares, strict=True):
        for site, y in rows.items():
            f = client.sites[site]
            if site not in total:
                total[site] = y.new_zeros(len(y), f.d_in)
            total[site].addmm_(y @ f.b.to(y), f.a.to(y), alpha=share)
    return total
