"""What the summary of a run says of how examples are spread over clients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LISTED = 1000
"""Clients whose counts are written down one by one; more would be megabytes that no page can show."""


def partition_facts(counts: Tensor) -> dict[str, Any]:
    """`counts` of every client; of many clients, those of `LISTED` of them, evenly spread by number.

    Args:
        counts: `(clients, labels)` training examples.

    Returns:
        `counts`, a list for each client. Where some are left out also `listed`, the numbers of those that are not, and
        the `smallest` and `largest` number of examples of any client.
    """
    clients = len(counts)
    if clients <= LISTED:
        return {"counts": counts.tolist()}
    listed = torch.arange(LISTED) * clients // LISTED
    sizes = counts.sum(1)
    return {
        "counts": counts[listed].tolist(),
        "listed": listed.tolist(),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
    }
