"""Devices: how fast they multiply, and how much memory they have."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """A device to train on.

    Attributes:
        name: for tables.
        memory: bytes.
        rates: dense floating-point operations a second (a multiplication and an addition are two), by precision.
        measured: the rates were measured here, and are not a data sheet's.
    """

    name: str
    memory: float
    rates: dict[str, float]
    measured: bool = False

    @property
    def short(self) -> str:
        """The name without size and form."""
        return (
            self.name.partition(",")[0]
            if self.measured
            else " ".join(self.name.split()[:-2]).removesuffix(" SXM")
        )


GIB = 2.0**30

DEVICES = (
    Device("H100 SXM 80 GB", 80 * GIB, {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12}),
    Device("A100 80 GB", 80 * GIB, {"float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12}),
    Device("RTX 4090 24 GB", 24 * GIB, {"float32": 82.6e12, "bfloat16": 165e12, "float16": 165e12}),
)
"""Dense rates of the makers' data sheets, without sparsity, and for float32 without TF32, which training here does not
use; 16-bit products accumulate in float32."""

UTILISATION = 0.4
"""Share of a GPU's dense rate that a stacked step reaches. A full stack of RoBERTa-large on an H100 reached 0.43; small
batches, short texts and adapters on many layers reach less."""

CPU_UTILISATION = 0.5
"""Share of its own measured product rate that a CPU reaches in a step."""


def this_cpu(precision: str = "float32", size: int = 768, seconds: float = 0.2) -> Device:
    """This machine's processor with its rate at products of `size x size` matrices, measured for a moment.

    Args:
        precision: of the products.
        size: of the matrices.
        seconds: to measure for, after one product to warm up.
    """
    one = torch.ones(size, size, dtype=getattr(torch, precision))
    torch.mm(one, one)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        torch.mm(one, one)
        count += 1
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    name = f"this CPU, {torch.get_num_threads()} threads"
    return Device(name, memory, {precision: max(count, 1) * 2 * size**3 / passed}, measured=True)
