"""`fedrot.merge`: any aggregation method applied once to adapters trained anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedrot.config.arguments import as_list
from fedrot.core.adapter import Adapter, normalise, weighted_mean
from fedrot.core.alignment import SiteRotation
from fedrot.core.frames import reframe
from fedrot.core.lowrank import concatenate, truncate
from fedrot.core.measure import adapter_aggregation_error, adapter_broadcast_error
from fedrot.engines.merge_round import (
    aligns_apart,
    build_for_merge,
    choose_round,
    compact,
    of_rank,
    padded,
    received_adapter,
    with_fixed,
)
from fedrot.errors import AdapterError, ConfigError, OutputError
from fedrot.methods import Method, MethodState, Update
from fedrot.model.foreign import Source, check_alike, common_scale, open_source, write_like
from fedrot.model.peft_format import folded
from fedrot.rundir import is_free


@dataclass(frozen=True)
class MergeResult:
    """A merged adapter and what was measured of it; errors are relative to the mean of the products.

    Attributes:
        adapter: the result, without residual; ranks may differ between sites.
        method: the method's name.
        weights: of the adapters, adding up to 1.
        error: of the result.
        error_plain: of averaging the factors as they came, zero-padded where ranks differ.
        error_best: the least that any adapter of the result's ranks can have (Eckart and Young).
        rotation: what alignment did: mean `rotation` size `||R - I||_F`, largest `rotation_angle` in radians,
            how many sites were `degenerate`, and more that the method measured. Empty without alignment.
        balanced: whether every adapter was brought into its balanced form first.
        ranks: smallest and largest rank of a site.
        bytes: of the tensors, in float32 as they are written.
        warnings: what may be wrong and cannot be known.
        directory: where it was written, if it was.
    """

    adapter: Adapter
    method: str
    weights: tuple[float, ...]
    error: float
    error_plain: float
    error_best: float
    rotation: Mapping[str, float]
    balanced: bool
    ranks: tuple[int, int]
    bytes: int
    warnings: tuple[str, ...]
    directory: Path | None


@torch.no_grad()
def merge(
    adapters: Sequence[Adapter | str | Path],
    method: str = "fedit",
    options: Mapping[str, object] | None = None,
    *,
    reference: Adapter | str | Path | None = None,
    weights: Sequence[float] | None = None,
    balance: bool | None = None,
    rank: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> MergeResult:
    """Merge adapters of one base model, as one round of a federated method; no base model is needed.

    Each may have its own rank, alpha, `rank_pattern`, `alpha_pattern`, rsLoRA scaling and precision: `b` is
    multiplied by the adapter's own scale over the common one. Head tensors (`modules_to_save`) are averaged with
    the same weights.

    Args:
        adapters: PEFT directories or adapters in memory.
        method: name of a method; see `fedrot methods`.
        options: of the method. Unless set, `anchor` is `"joint"` and `strength` 1, and without `reference`
            `fedrot` aligns to the adapters' consensus.
        reference: the adapter that all were trained from, or another whose frame to adopt.
        weights: one each, `>= 0`; all alike unless given.
        balance: first write every adapter's product in the factors of its singular value decomposition, in which
            equal products differ by an orthogonal matrix only. Unless given, where the method aligns the
            adapters to their own consensus.
        rank: truncate the result to this rank, optimally (or pad it).
        out: a new or empty directory for the result, in PEFT's format.
        seed: for methods that draw random numbers.

    Raises:
        ConfigError: an unknown method or option, one that cannot merge these adapters, or unusable weights.
        ModelError: a directory that is no usable PEFT adapter, or adapters that do not belong together.
        OutputError: `out` is occupied or cannot be written.
    """
    if isinstance(adapters, Adapter | str | Path):
        raise ConfigError("adapters: expected a list of them, one or more")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank = {rank}: expected a positive integer")
    target = _free(out)
    sources = [open_source(one, f"adapter {number}") for number, one in enumerate(adapters, 1)]
    if not sources:
        raise ConfigError("merge of no adapters: give at least one")
    anchor = None if reference is None else open_source(reference, "reference")
    everyone = [*sources, *([anchor] if anchor else [])]
    warnings = tuple(told for source in everyone[1:] for told in check_alike(source, everyone[0]))
    scale = common_scale(anchor or sources[0])
    given = _of_one_precision([source.at_scale(scale, sources[0]) for source in everyone])
    start = given.pop() if anchor else None
    shares = _shares(weights, len(given))

    rule = build_for_merge(method, options or {}, seed, reference=anchor is not None)
    if balance is None:
        balance = start is None and aligns_apart(rule)
    clients = [reframe(client, "svd", seed, 1) for client in given] if balance else given
    if start is not None and balance:
        start = reframe(start, "svd", seed, 1)
    if start is None and aligns_apart(rule):
        start = clients[max(range(len(shares)), key=lambda i: shares[i])]
    merged, rotation = _round(rule, clients, shares, start, [source.name for source in sources])
    if rank is not None:
        there = max(f.rank for f in merged.sites.values())
        if rank > there:
            warnings += (
                f"rank = {rank}: the result has rank {there}; the directions beyond it carry nothing",
            )
        merged = replace(
            merged, sites={site: of_rank(f, rank, seed, site) for site, f in merged.sites.items()}
        )
    if rotation and rotation.get("degenerate", 0) >= len(clients) * len(merged.sites):
        warnings += ("no site was aligned: the reference carries no direction; see --reference",)
    result = _measured(rule, padded(given), shares, merged, rotation, warnings, balance)
    if target is None:
        return result
    _write(target, merged, everyone)
    return replace(result, directory=target)


def _of_one_precision(adapters: Sequence[Adapter]) -> list[Adapter]:
    """In float64 if some tensor of some adapter is, else as they are, in float32."""
    if not any(t.dtype == torch.float64 for adapter in adapters for t in adapter.tensors().values()):
        return list(adapters)
    return [adapter.map(Tensor.double) for adapter in adapters]


def _round(
    rule: Method, clients: list[Adapter], shares: list[float], reference: Adapter | None, names: list[str]
) -> tuple[Adapter, dict[str, float]]:
    """One round of `rule`: the result with its residual folded in, and what alignment did."""
    received, mixed = received_adapter(rule, clients, reference, names)
    number, travels = choose_round(rule, clients, reference, names)
    received = with_fixed(received, clients, travels)
    uploads = [rule.before_upload(c, received, number, clients=(i,)) for i, c in enumerate(clients)]
    updates = [
        Update(i, upload.adapter, share)
        for i, (upload, share) in enumerate(zip(uploads, shares, strict=True))
    ]
    merged, state = rule.aggregate(updates, received, MethodState(), number)
    if not rule.shares_head:
        merged = replace(merged, head=weighted_mean([replace(c, sites={}) for c in clients], shares).head)
    turned = [upload.rotation for upload in uploads if upload.rotation is not None]
    measured = dict(state.numbers) if "rotation" in state.numbers else {}
    rotation = _turns(turned) if turned else measured
    whole = Adapter(folded(merged), merged.head, merged.scale)
    wider = mixed or any(f.rank > clients[0].sites[s].rank for s, f in whole.sites.items())
    return (compact(whole) if wider else whole), rotation


def _turns(turned: Sequence[SiteRotation]) -> dict[str, float]:
    each = [rotation.summary() for rotation in turned]
    total = {name: sum(one[name] for one in each) for name in each[0]}
    return total | {
        "rotation": total["rotation"] / len(each),
        "rotation_angle": max(one["rotation_angle"] for one in each),
    }


def _measured(
    rule: Method,
    clients: list[Adapter],
    shares: list[float],
    merged: Adapter,
    rotation: Mapping[str, float],
    warnings: tuple[str, ...],
    balanced: bool,
) -> MergeResult:
    error = adapter_broadcast_error(clients, shares, merged)
    ranks = [f.rank for f in merged.sites.values()]
    tensors = merged.tensors().values()
    return MergeResult(
        adapter=merged,
        method=rule.name,
        weights=tuple(shares),
        error=float(error.relative),
        error_plain=float(adapter_aggregation_error(clients, shares).relative),
        error_best=_best(clients, shares, merged, float(error.ideal)),
        rotation=rotation,
        balanced=balanced,
        ranks=(min(ranks), max(ranks)),
        bytes=sum(4 * tensor.numel() for tensor in tensors),
        warnings=warnings,
        directory=None,
    )


def _best(clients: list[Adapter], shares: list[float], merged: Adapter, ideal: float) -> float:
    """The singular values that the result's ranks leave out, over the norm of the ideal update."""
    left = 0.0
    for site, f in merged.sites.items():
        a, b = (torch.stack([getattr(c.sites[site], x).double() for c in clients]) for x in "ab")
        values = truncate(*concatenate(a, b, torch.tensor(shares, dtype=torch.float64)), 1).singular_values
        left += float(values[f.rank :].square().sum())
    return abs(merged.scale) * left**0.5 / ideal if ideal > 0 else 0.0


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] * count if weights is None else as_list(weights, "weights", "[100, 250]")
    try:
        return normalise(given, count)
    except (AdapterError, TypeError, ValueError) as error:
        raise ConfigError(f"weights: {error}") from error


def _free(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    target = Path(out)
    if not is_free(target):
        raise OutputError(f"'{target}' is not an empty folder; choose another --out")
    return target


def _write(target: Path, merged: Adapter, sources: Sequence[Source]) -> None:
    try:
        write_like(target, merged, sources)
    except OSError as error:
        raise OutputError(
            f"'{target}': cannot be written ({error}); check the path and free space"
        ) from error
