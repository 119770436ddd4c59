"""How far a broadcast is from the mean of the clients' products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, normalise
from fedrot.core.centred import centred_norms
from fedrot.core.lowrank import concatenate, distance, norm
from fedrot.core.polar import full_precision, widen
from fedrot.core.summed import pays, summed_norms
from fedrot.errors import AdapterError


class AggregationError(NamedTuple):
    """How far a broadcast is from the ideal `W = sum p_i b_i @ a_i`."""

    absolute: Tensor
    """`||W - b @ a||_F`."""
    relative: Tensor
    """`absolute / ||W||_F`; 0 when both are 0."""
    ideal: Tensor
    """`||W||_F`."""


def _report(absolute: Tensor, ideal: Tensor) -> AggregationError:
    relative = torch.where(absolute == 0, 0, absolute / ideal)  # numbers that are not finite stay so
    return AggregationError(absolute, relative, ideal)


Clients = Tensor | Sequence[Tensor]
"""The clients' factors at a site, stacked or not."""


def _shares(a: Clients, b: Clients, weights: Tensor | Sequence[float]) -> Tensor:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return torch.tensor(normalise(weights, len(a)), dtype=torch.float64, device=a[0].device)
    if a.ndim < 3 or a.shape[:-2] != b.shape[:-2] or a.shape[-2] != b.shape[-1]:
        shapes = f"a {tuple(a.shape)}, b {tuple(b.shape)}"
        raise AdapterError(f"clients' factors {shapes}: expected (N, ..., r, d_in) and (N, ..., d_out, r)")
    return torch.tensor(normalise(weights, len(a)), dtype=torch.float64, device=a.device)


@torch.no_grad()
def aggregation_error(a: Tensor, b: Tensor, weights: Tensor | Sequence[float]) -> AggregationError:
    """The error of averaging factors, `E = W - mean(b) @ mean(a)`, against the mean of the products.

    Uses the centred form `E = sum p_i (b_i - mean(b)) (a_i - mean(a))`, which does not cancel when the error
    is small, and `W = E + mean(b) @ mean(a)`; norms come from Gram matrices, in float64. For many clients in
    float32 the Gram matrices are float32 too (`core.centred`), as long as that cannot be seen in the result. Where the
    clients' stacked rank is beyond the layer's width, the sum itself is formed (`core.summed`), so that the time grows
    with the clients and not with their square.

    >>> a, b = torch.ones(2, 1, 3), torch.tensor([[[1.0]], [[3.0]]])
    >>> aggregation_error(a, b, [1, 1]).absolute, aggregation_error(b, b, [1, 1]).absolute
    (tensor(0.), tensor(1.))

    Args:
        a: `(N, ..., r, d_in)`, stacked clients.
        b: `(N, ..., d_out, r)`.
        weights: `N` numbers `>= 0`; they are scaled to sum to one.

    Returns:
        Tensors `(...)`, in float64 if an input is and else in float32.

    Raises:
        AdapterError: shapes or weights that do not fit.
    """
    shares = _shares(a, b, weights)
    (like,) = widen(a[:0] if a.dtype == torch.float64 else b[:0])
    return AggregationError(*(t.to(like.dtype) for t in _averaging(a, b, shares)))


def _averaging(a: Clients, b: Clients, shares: Tensor) -> AggregationError:
    """`aggregation_error` in float64, whatever the inputs."""
    with full_precision(a[0].device):
        formed = pays(len(a) * a[0].shape[-2], a[0].shape[-1], b[0].shape[-2])
        if not formed and (found := centred_norms(a, b, shares)) is not None:
            return _report(*found)
        a, b = _stacked(a), _stacked(b)
        if formed:
            return _report(*summed_norms(a, b, shares))
        a, b = a.double(), b.double()
        a_mean, b_mean = (torch.einsum("n,n...->...", shares, t) for t in (a, b))
        rows, columns = concatenate(a - a_mean, b - b_mean, shares)
        ideal = norm(torch.cat([rows, a_mean], -2), torch.cat([columns, b_mean], -1))
        return _report(norm(rows, columns), ideal)


@torch.no_grad()
def broadcast_error(
    a: Tensor, b: Tensor, weights: Tensor | Sequence[float], a_out: Tensor, b_out: Tensor
) -> AggregationError:
    """The error `||W - b_out @ a_out||_F` of any broadcast, by thin QR in float64.

    Args:
        a: `(N, ..., r, d_in)`, stacked clients.
        b: `(N, ..., d_out, r)`.
        weights: `N` numbers `>= 0`; they are scaled to sum to one.
        a_out: `(..., k, d_in)`, any rank `k`.
        b_out: `(..., d_out, k)`.
    """
    shares = _shares(a, b, weights)
    (like,) = widen(a[:0] if a.dtype == torch.float64 else b[:0])
    rows, columns = concatenate(a.double(), b.double(), shares)
    error = _report(distance(rows, columns, a_out.double(), b_out.double()), norm(rows, columns))
    return AggregationError(*(t.to(like.dtype) for t in error))


def over_sites(errors: Mapping[str, AggregationError], scale: float) -> AggregationError:
    """The error of a whole adapter from those of its sites: root of the sum of squares, times `scale`."""
    if not errors:
        raise AdapterError("aggregation error of an adapter without LoRA sites: expected at least one")
    absolute, ideal = (
        abs(scale) * torch.stack([part.double().square() for part in parts]).sum(0).sqrt()
        for parts in ([e.absolute for e in errors.values()], [e.ideal for e in errors.values()])
    )
    return _report(absolute, ideal)


@torch.no_grad()
def _by_site(
    clients: Sequence[Adapter] | Adapter, measure: Callable[[str, Clients, Clients], AggregationError]
) -> AggregationError:
    """Measures one site after the other, so that memory holds one site's copies."""
    if isinstance(clients, Adapter):
        errors = {site: measure(site, f.a, f.b) for site, f in clients.sites.items()}
        return over_sites(errors, clients.scale)
    errors: dict[str, AggregationError] = {}
    for site, first in clients[0].sites.items():
        sent = [client.sites[site] for client in clients]
        for number, f in enumerate(sent):
            if (f.a.shape, f.b.shape) != (first.a.shape, first.b.shape):
                shapes = [(tuple(each.a.shape), tuple(each.b.shape)) for each in (f, first)]
                raise AdapterError(
                    f"{site!r}: client {number} has factors {shapes[0]}, client 0 {shapes[1]}: expected the same"
                )
        errors[site] = measure(site, [f.a for f in sent], [f.b for f in sent])
    return over_sites(errors, clients[0].scale)


def _stacked(factors: Clients) -> Tensor:
    return factors if isinstance(factors, Tensor) else torch.stack(list(factors))


def adapter_aggregation_error(
    clients: Sequence[Adapter] | Adapter, weights: Tensor | Sequence[float]
) -> AggregationError:
    """The error of averaging whole adapters, as float64 scalars.

    `absolute` is the root of the sum over sites of squared errors, times the adapters' scale; `relative` is
    that over the norm of the ideal update of all sites.

    Args:
        clients: `N` adapters, or one stack of them.
        weights: `N` numbers `>= 0`.
    """
    return _by_site(clients, lambda _, a, b: _averaging(a, b, _shares(a, b, weights)))


def adapter_broadcast_error(
    clients: Sequence[Adapter] | Adapter, weights: Tensor | Sequence[float], broadcast: Adapter
) -> AggregationError:
    """The error of a whole broadcast adapter, its residual included; see `adapter_aggregation_error`."""

    def measure(site: str, a: Clients, b: Clients) -> AggregationError:
        parts = [group[site] for group in (broadcast.sites, broadcast.residual) if site in group]
        a_out = torch.cat([part.a.double() for part in parts], -2)
        b_out = torch.cat([part.b.double() for part in parts], -1)
        return broadcast_error(_stacked(a).double(), _stacked(b).double(), weights, a_out, b_out)

    return _by_site(clients, measure)
