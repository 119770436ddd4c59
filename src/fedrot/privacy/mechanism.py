"""Clipping and noise: what a client does to its upload, and how the server averages (see `fedrot.privacy`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrot.config import PrivacyConfig
from fedrot.core.adapter import Adapter
from fedrot.errors import AdapterError
from fedrot.methods.base import Method, Update, in_order
from fedrot.privacy.noise import Noise
from fedrot.wire import uploaded

_MARGIN = 2.0**-20
"""Share of the limit that is given up so that rounding to float32 seldom oversteps it."""


@dataclass(frozen=True, slots=True, eq=False)
class Protected:
    """A stack of uploads after clipping and, with mechanism `local`, noise."""

    adapter: Adapter
    norm: Tensor
    """`(G,)` float64: L2 norm of every client's update before; not finite where the update is not."""

    @property
    def finite(self) -> Tensor:
        """`(G,)`: whose update was finite; the others' was replaced by zero."""
        return self.norm.isfinite()


@dataclass(frozen=True, slots=True, eq=False)
class PrivateMean:
    """The one update that a trusted server hands to the method in place of all of them."""

    update: Update
    norms: tuple[float, ...]
    """Of the updates that came in, in the order of client numbers; not covered by the promise."""


@torch.no_grad()
def clip(upload: Adapter, received: Adapter, keys: Sequence[str], limit: float) -> Protected:
    """Scale every client's update down to an L2 norm of at most `limit`, over all tensors in `keys` together.

    The bound holds for the numbers that are sent: the difference of the rounded upload from `received`, taken in
    float64, has a norm of at most `limit`. Whoever is below it already keeps its numbers to the bit. An update with a
    number that is not finite becomes zero.

    Args:
        upload: the stack `(G, ...)`, as the method made it.
        received: what its clients received; not stacked.
        keys: names as in `Adapter.tensors()`; other tensors stay as they are.
        limit: positive.

    Raises:
        AdapterError: numbers in `received` are not finite: no update from there has a norm.
    """
    if not bool(received.finite()):
        raise AdapterError(
            "privacy.clip: the adapter received holds numbers that are not finite; refuse the broadcast"
        )
    norm = _norm(upload, received, keys)
    scaled = (limit * (1 - _MARGIN) / norm).clamp(max=1.0)
    factor = torch.where(norm <= limit, 1.0, torch.where(norm.isfinite(), scaled, 0.0))
    made, step = _scaled(upload, received, keys, factor), _MARGIN
    while bool((over := ~(_norm(made, received, keys) <= limit)).any()):
        step *= 4  # reaches 1 in ten steps, and a factor of 0 sends what was received
        factor = torch.where(over, (factor * (1 - step)).clamp(min=0.0), factor)
        made = _scaled(upload, received, keys, factor)
    return Protected(made, norm)


def _norm(upload: Adapter, received: Adapter, keys: Sequence[str]) -> Tensor:
    sent, before = upload.tensors(), received.tensors()
    squares = [(sent[key].double() - before[key].double()).square().flatten(1).sum(1) for key in keys]
    return torch.stack(squares).sum(0).sqrt()


def _scaled(upload: Adapter, received: Adapter, keys: Sequence[str], factor: Tensor) -> Adapter:
    tensors, before = upload.tensors(), received.tensors()
    for key in keys:
        sent, origin = tensors[key], before[key].double()
        share = factor.view(-1, *([1] * origin.ndim))
        moved = (origin + share * (sent.double() - origin)).to(sent.dtype)
        # Not a product with zero: what is not finite would stay so.
        moved = torch.where(share > 0, moved, before[key])
        tensors[key] = torch.where(share < 1, moved, sent)
    return Adapter.from_tensors(tensors, upload.scale)


@torch.no_grad()
def protect(
    method: Method,
    upload: Adapter,
    received: Adapter,
    round: int,
    settings: PrivacyConfig,
    noises: Sequence[Noise],
) -> Protected:
    """What every client of a stack does last before it sends: clip and, with mechanism `local`, add noise.

    Args:
        method: says which tensors travel.
        upload: the stack `(G, ...)` that its `before_upload` made.
        received: what its clients received; not stacked.
        round: counted from 1.
        settings: of the recipe; mechanism `none` changes nothing but is not meant to come here.
        noises: one for every client of the stack; read with mechanism `local` alone.
    """
    keys = tuple(uploaded(method, upload, round))
    clipped = clip(upload, received, keys, settings.clip)
    if settings.mechanism != "local":
        return clipped
    deviation = settings.noise * settings.clip
    tensors, before = clipped.adapter.tensors(), received.tensors()
    for key in keys:
        sent, origin = tensors[key], before[key].double()
        drawn = torch.stack([noise(origin.shape) for noise in noises]).to(origin.device)
        tensors[key] = (origin + _blurred(sent.double() - origin, drawn, deviation)).to(sent.dtype)
    return Protected(Adapter.from_tensors(tensors, upload.scale), clipped.norm)


@torch.no_grad()
def private_mean(
    method: Method,
    updates: Sequence[Update],
    received: Adapter,
    round: int,
    settings: PrivacyConfig,
    chosen: int,
    noise: Noise,
) -> PrivateMean:
    """What a trusted server (mechanism `central`) makes of a round's updates.

    `received + (sum of updates + clip * noise * z) / chosen`, summed in float64 and in the order of client numbers.
    Every update is clipped here again, so that the bound does not rest on the clients' software.

    Args:
        method: says which tensors travel; what does not is as received.
        updates: of the clients that reported, possibly none; their weights are not read.
        received: what they received.
        round: counted from 1.
        settings: of the recipe.
        chosen: clients chosen for the round, whether they reported or not.
        noise: the server's own.

    Raises:
        AdapterError: an update that does not fit `received`, or two of one client.
    """
    keys, before = tuple(uploaded(method, received, round)), received.tensors()
    norms: list[float] = []
    total = {key: torch.zeros_like(before[key], dtype=torch.float64) for key in keys}
    for update in in_order(updates) if updates else ():
        update.adapter.check_like(received, f"client {update.client}")
        one = clip(update.adapter.map(lambda tensor: tensor.unsqueeze(0)), received, keys, settings.clip)
        norms.append(float(one.norm))
        for key, tensor in one.adapter.select(0).tensors().items():
            if key in total:
                total[key] += tensor.double() - before[key].double()
    deviation = settings.noise * settings.clip
    moved = _moved(received, total, noise, deviation, chosen)
    return PrivateMean(Update(0, moved, 1.0), tuple(norms))


def _moved(
    received: Adapter, total: Mapping[str, Tensor], noise: Noise, deviation: float, chosen: int
) -> Adapter:
    tensors = received.tensors()
    for key, change in total.items():
        origin = tensors[key]
        blurred = _blurred(change, noise(change.shape).to(change.device), deviation)
        tensors[key] = (origin.double() + blurred / chosen).to(origin.dtype)
    return Adapter.from_tensors(tensors, received.scale)


def _blurred(change: Tensor, drawn: Tensor, deviation: float) -> Tensor:
    """`change + deviation * drawn`, rounded to a grid of about a millionth of `deviation`.

    The last bits of a float64 sum can give away what was added (Mironov, CCS 2012; Jin et al., S&P 2022). Every cell of
    this grid holds many float64 numbers, so which of them are possible no longer shows.
    """
    if deviation == 0:
        return change
    grid = 2.0 ** (math.floor(math.log2(deviation)) - 20)
    return ((change + deviation * drawn) / grid).round() * grid
