"""The residual that broadcasts leave behind in the base weights, kept as one low-rank product per site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from fedrot.core.adapter import Factors
from fedrot.core.lowrank import compress, norm, truncate


class Accumulated(NamedTuple):
    """A residual after one more round."""

    total: dict[str, Factors]
    """All increments so far, as receivers add it to their original weights."""
    change: dict[str, Factors]
    """What has to be added to the total before to get this one: the increment, or, where something was cut off, the
    difference of the two totals."""
    lost: float
    """`||cut off||_F / ||total before the cut||_F` over all sites; 0 where nothing was."""


@torch.no_grad()
def accumulate(
    total: Mapping[str, Factors], increment: Mapping[str, Factors], bound: int | None = None
) -> Accumulated:
    """Add a round's increment to what was accumulated, `B A <- B A + b a`, and keep its rank bounded.

    Ranks add up from round to round. Where the sum passes `bound` it is replaced by its best approximation of
    that rank. No product needs more than `min(d_in, d_out)` directions, so that is where an unset or larger
    bound lies, and nothing but rounding is lost there.

    Args:
        total: `(rank, d_in)` and `(d_out, rank)` at every site that has a residual.
        increment: the same of this round; sites without one keep their total.
        bound: largest rank kept at a site.
    """
    kept: dict[str, Factors] = {}
    change: dict[str, Factors] = {}
    lost, whole = 0.0, 0.0
    for site in (*total, *(site for site in increment if site not in total)):
        old, new = total.get(site), increment.get(site)
        if new is None:
            assert old is not None
            kept[site] = old
            whole += float(norm(old.a, old.b).double().square())
            continue
        both = new if old is None else _joined(old, new, 1.0)
        full = min(both.d_in, both.d_out)
        limit = full if bound is None else min(bound, full)
        if both.rank <= limit:
            kept[site], change[site] = both, new
            whole += float(norm(both.a, both.b).double().square())
            continue
        a, b, values = truncate(both.a, both.b, limit)
        kept[site] = Factors(a.to(both.a.dtype), b.to(both.b.dtype))
        exact = new if limit == full else kept[site] if old is None else _joined(kept[site], old, -1.0)
        change[site] = compress(exact)
        squares = values.double().square()
        lost += float(squares[limit:].sum())
        whole += float(squares.sum())
    return Accumulated(kept, change, (lost / whole) ** 0.5 if lost else 0.0)


def _joined(one: Factors, other: Factors, sign: float) -> Factors:
    """`one + sign * other` as one product."""
    return Factors(torch.cat([one.a, other.a], -2), torch.cat([one.b, sign * other.b], -1))
