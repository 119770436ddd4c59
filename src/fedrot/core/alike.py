"""Sites of one shape as one batch: what an accelerator is asked once for all of them.

Launching an operation takes an accelerator longer than multiplying one site's factors, so it never goes from site to
site. A CPU does: it gains little by batches, and there the last bits of a product depend on whether it was one of a
batch, so that results would depend on where factors happen to lie in memory, and a resumed run would differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedrot.core.adapter import Factors


def batched(device: torch.device) -> bool:
    """Whether sites of one shape are computed in one batch on a device, and laid out for it."""
    return device.type != "cpu"


def alike(sites: Mapping[str, Sequence[Tensor]]) -> list[list[str]]:
    """The names whose tensors agree in shape, dtype and device, position by position; each group in order."""
    groups: dict[object, list[str]] = {}
    for site, tensors in sites.items():
        groups.setdefault(tuple((t.shape, t.dtype, t.device) for t in tensors), []).append(site)
    return list(groups.values())


def batch(tensors: Sequence[Tensor]) -> Tensor:
    """`(n, ...)` of `n` tensors of one shape: a view where they lie evenly spaced in one storage, else a copy.

    To be read only, and outside of autograd.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first.unsqueeze(0)
    storage, strides, start = first.untyped_storage(), first.stride(), first.storage_offset()
    step = tensors[1].storage_offset() - start
    if step > 0 and all(
        t.storage_offset() == start + index * step
        and t.stride() == strides
        and t.untyped_storage() is storage
        for index, t in enumerate(tensors)
    ):
        return first.as_strided((len(tensors), *first.shape), (step, *strides), start)
    return torch.stack(list(tensors))


@torch.no_grad()
def copied(sites: Mapping[str, Factors], *, a: bool = True, b: bool = True) -> dict[str, Factors]:
    """The sites with copies of the chosen factors, the others as they are.

    Where batches are computed, sites of one shape lie evenly spaced in one storage for each factor, in order; one site
    kept then keeps the memory of all of them.
    """
    made: dict[str, Factors] = {}
    for names in alike({site: (f.a, f.b) for site, f in sites.items()}):
        group = [sites[name] for name in names]
        rows_a = _copies([f.a for f in group]) if a else [f.a for f in group]
        rows_b = _copies([f.b for f in group]) if b else [f.b for f in group]
        made |= {name: Factors(one, other) for name, one, other in zip(names, rows_a, rows_b, strict=True)}
    return {site: made[site] for site in sites}


def _copies(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    if batched(tensors[0].device):
        return torch.stack(list(tensors)).unbind()
    return [tensor.clone() for tensor in tensors]
