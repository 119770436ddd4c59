"""How nodes on one machine share the clients."""

from __future__ import annotations


def blocks(clients: int, nodes: int) -> list[tuple[int, ...]]:
    """Clients `0` to `clients - 1` in `nodes` runs of equal length, the first ones longer by one where it does not fit.

    Nodes that would have no client are left out.

    >>> blocks(7, 3)
    [(0, 1, 2), (3, 4), (5, 6)]
    """
    size, longer = divmod(clients, nodes)
    found: list[tuple[int, ...]] = []
    start = 0
    for node in range(nodes):
        stop = start + size + (node < longer)
        if stop > start:
            found.append(tuple(range(start, stop)))
        start = stop
    return found
