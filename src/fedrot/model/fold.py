"""A low-rank residual folded into base weights, and taken out again to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedrot.core.adapter import Factors
from fedrot.errors import ModelError
from fedrot.model.dense import facing


class Fold:
    """Layers whose weights are `W0 + scale * B @ A`, with `W0` kept aside.

    The sum is taken from `W0` each time, in float32 or better, so rounding never accumulates; `restore` puts the
    original parameters themselves back. A layer whose weight is tied to another's gets one of its own meanwhile.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.pristine: dict[str, nn.Parameter] = {}
        self.held: Mapping[str, Factors] = {}

    @torch.no_grad()
    def hold(self, residual: Mapping[str, Factors], scale: float) -> None:
        """Fold `residual` in, `(rank, d_in)` and `(d_out, rank)` a site; an empty one restores the base weights.

        Raises:
            ModelError: a site that is not among the layers, or another shape.
        """
        if _same(residual, self.held):
            return
        self.restore()
        for site, f in residual.items():
            layer: Any = self.layers.get(site)
            if layer is None or f.batch or facing(layer, layer.weight).shape != (f.d_out, f.d_in):
                shape = "no adapted layer" if layer is None else f"weights {tuple(layer.weight.shape)}"
                raise ModelError(
                    f"residual at {site!r}: a {tuple(f.a.shape)}, b {tuple(f.b.shape)}, but the model has {shape} "
                    "there; expected a (rank, d_in) and b (d_out, rank) of an adapted layer"
                )
            if not layer.weight.is_floating_point():
                raise ModelError(
                    f"residual at {site!r}: the base weights are quantised, and nothing can be added to them; set "
                    "model.quantization = 'none', or choose a method that leaves the base weights alone"
                )
        for site, f in residual.items():
            layer: Any = self.layers[site]
            weight = layer.weight
            self.pristine[site] = weight
            wide = facing(layer, weight).to(torch.promote_types(weight.dtype, torch.float32))
            folded = wide.addmm(f.b.to(wide), f.a.to(wide), alpha=scale).to(weight.dtype)
            layer.weight = nn.Parameter(facing(layer, folded), requires_grad=False)
        self.held = dict(residual)

    def restore(self) -> None:
        """Put the original weights back."""
        for site, weight in self.pristine.items():
            self.layers[site].weight = weight  # pyright: ignore[reportArgumentType]
        self.pristine, self.held = {}, {}


def _same(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> bool:
    """Whether the two hold the very same tensors; `other` keeps them alive, so identity is equality."""
    return one.keys() == other.keys() and all(
        f.a is other[site].a and f.b is other[site].b for site, f in one.items()
    )
