"""Dropout that depends on the client and the step alone, not on who shares the batch nor on how far it was padded."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def keep_mask(seeds: Tensor, x: Tensor, clients: int, p: float) -> Tensor:
    """Inverted-dropout multipliers for `x: (clients * n, length, width)` or `(clients * n, width)`.

    Entry `(client, i, position, channel)`, 0 or `1 / (1 - p)`, is a hash of `seeds[client]` and those indices: a
    counter-based generator (the 32-bit finaliser of MurmurHash3, in rounds). So a client's mask is the same whether it
    trains alone or stacked, whatever the longest example beside it, and on every device.

    Args:
        seeds: `(clients,)` int64, one per client for this step and layer.
        x: the layer's input; only its shape, dtype and device matter.
        clients: number of clients stacked in the first dimension.
        p: probability of zero, in [0, 1).
    """
    rows, width = x.shape[0] // clients, x.shape[-1]
    length = x[0].numel() // width
    device = x.device
    row = torch.arange(rows, device=device).view(1, rows, 1, 1)
    position = torch.arange(length, device=device).view(1, 1, length, 1)
    channel = torch.arange(width, device=device)
    start = seeds.to(device).view(clients, 1, 1, 1)
    start = _mix(start) ^ _mix(start >> 32)
    outer = _mix(_mix(start ^ (row * 0x9E3779B1)) ^ (position * 0x85EBCA77))
    bits = _mix(outer ^ (channel * 0xC2B2AE3D))
    keep = (bits >= round(p * (_MASK + 1))).to(x.dtype)
    return keep.div_(1 - p).view(x.shape)


def _mix(h: Tensor) -> Tensor:
    h = h & _MASK
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)
