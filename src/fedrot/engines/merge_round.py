"""Merging as one round of a method: which round, from which received adapter, with which options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.initial import initial_a
from fedrot.core.lowrank import truncate
from fedrot.core.rng import generator
from fedrot.errors import ConfigError
from fedrot.methods import Method, Trainable, build, methods
from fedrot.methods.options import expected, option_hints

ROUNDS = (2, 3)
"""Candidates for the round: never the first, which methods treat as one without a reference; one even, one odd."""
SWEEPS = 20
"""Adapters trained apart start from frames without relation; five sweeps were seen to stop 3% short of twenty."""


def build_for_merge(name: str, options: Mapping[str, object], seed: int, *, reference: bool) -> Method:
    """The method, with defaults that fit one round between adapters that may never have shared a frame.

    `anchor` is `"joint"` (`"a"` where there is no such choice), `strength` 1 and `sweeps` 20 unless set. Without a
    reference, what would align to one aligns to the adapters' own consensus, and what would start from one starts from
    their mean. A consensus may reflect.

    Raises:
        ConfigError: as `build`; a choice that means nothing in one round, or one that needs a reference.
    """
    known = option_hints(methods()[name]) if name in methods() else {}
    chosen = dict(options)
    if "anchor" in known:
        if chosen.get("anchor") == "alternate":
            raise ConfigError(
                "method.anchor = 'alternate': merging is one round; expected one anchor, such as 'joint'"
            )
        chosen.setdefault("anchor", "joint" if "'joint'" in expected(known["anchor"]) else "a")
    if "strength" in known and isinstance(chosen.setdefault("strength", 1.0), list | tuple):
        raise ConfigError(
            f"method.strength = {chosen['strength']!r}: merging is one round; expected a number"
        )
    if "sweeps" in known:
        chosen.setdefault("sweeps", SWEEPS)
    if "reference" in known:
        if chosen.get("reference") == "two-back":
            raise ConfigError(
                "method.reference = 'two-back': merging is one round; expected 'previous' or 'consensus'"
            )
        _needs(chosen, "reference", "previous", "consensus", reference)
    apart = not reference or chosen.get("reference") == "consensus"
    if "group" in known and apart and chosen.get("path") != "geodesic":
        chosen.setdefault("group", "orthogonal")
    if "start" in known:
        _needs(chosen, "start", "reference", "mean", reference)
    return build(name, chosen, seed)


def aligns_apart(method: Method) -> bool:
    """Whether the method turns the adapters onto their own consensus, so that their own frames may go."""
    return getattr(method, "reference", None) == "consensus"


def _needs(chosen: dict[str, object], option: str, referring: str, instead: str, reference: bool) -> None:
    if reference:
        return
    if chosen.setdefault(option, instead) == referring:
        raise ConfigError(
            f"method.{option} = {referring!r}: there is no reference; give one with --reference DIR "
            f"(reference=...), or set method.{option} = {instead!r}"
        )


def received_adapter(
    method: Method, clients: Sequence[Adapter], reference: Adapter | None, names: Sequence[str]
) -> tuple[Adapter, bool]:
    """What the round starts from, and whether some client has fewer directions than it at some site.

    The reference, or without one the form of the clients with zeros. Zero directions are added up to the largest
    rank among clients and reference: site by site, or where ranks are mixed everywhere, as a server of mixed
    ranks has them.

    Raises:
        ConfigError: ranks are mixed and the method cannot take that; those that can are listed.
    """
    first = clients[0].map(torch.zeros_like) if reference is None else reference
    wide = padded([first, *clients])[0]
    for client, name in zip(clients, names, strict=True):
        for site, f in client.sites.items():
            if f.rank == wide.sites[site].rank:
                continue
            if not method.laws.mixed_ranks:
                able = ", ".join(n for n, cls in methods().items() if cls.laws.mixed_ranks)
                raise ConfigError(
                    f"method {method.name!r} needs equal ranks: {site!r} has rank {f.rank} in {name}, "
                    f"{wide.sites[site].rank} elsewhere; methods that take mixed ranks: {able}"
                )
            return wide.resized(max(g.rank for g in wide.sites.values())), True
    return wide, False


def choose_round(
    method: Method, clients: Sequence[Adapter], reference: Adapter | None, names: Sequence[str]
) -> tuple[int, Trainable]:
    """A round in which the factors that do not travel agree in all adapters, and what travels in it.

    Raises:
        ConfigError: there is none; the factor and the first adapter that differs are named.
    """
    problem = ""
    for number in ROUNDS:
        travels = method.uploads(number)
        fixed = [factor for factor in "ab" if not getattr(travels, factor)]
        compared = [*zip(clients, names, strict=True), *([(reference, "reference")] if reference else [])]
        odd = next((o for factor in fixed if (o := _disagreement(factor, compared))), None)
        if odd is None:
            return number, travels
        problem = problem or odd
    raise ConfigError(
        f"method {method.name!r} averages one factor and needs the other to be the same in all adapters: {problem}; "
        "merge with a method that averages both, such as 'fedit' or 'fedrot'"
    )


def _disagreement(factor: str, adapters: Sequence[tuple[Adapter, str]]) -> str | None:
    for site in adapters[0][0].sites:
        widest, owner = max(adapters, key=lambda pair: pair[0].sites[site].rank)
        whole = _factor(widest, site, factor)
        for adapter, name in adapters:
            mine = _factor(adapter, site, factor)
            if not torch.allclose(mine, whole[: len(mine)], rtol=1e-5, atol=1e-7):
                return f"{factor!r} of {site!r} differs between {owner} and {name}"
    return None


def _factor(adapter: Adapter, site: str, factor: str) -> Tensor:
    """One row per direction."""
    return adapter.sites[site].a if factor == "a" else adapter.sites[site].b.mT


def with_fixed(received: Adapter, clients: Sequence[Adapter], travels: Trainable) -> Adapter:
    """`received` with the factors that do not travel taken from the widest client: all agree on them."""
    if travels.a and travels.b:
        return received
    sites: dict[str, Factors] = {}
    for site, f in received.sites.items():
        widest = max(clients, key=lambda client: client.sites[site].rank).resized(f.rank).sites[site]
        sites[site] = Factors(f.a if travels.a else widest.a, f.b if travels.b else widest.b)
    return replace(received, sites=sites)


def padded(clients: Sequence[Adapter]) -> list[Adapter]:
    """The clients with zero directions added, site by site, up to the largest rank among them."""

    ranks = {site: max(c.sites[site].rank for c in clients) for site in clients[0].sites}
    return [replace(c, sites={s: f.resized(ranks[s]) for s, f in c.sites.items()}) for c in clients]


def compact(adapter: Adapter) -> Adapter:
    """The adapter without directions that carry nothing, and with no more than a layer has; at least one."""

    def shrink(f: Factors) -> Factors:
        used = (f.a != 0).any(-1) & (f.b != 0).any(-2)
        used[0] |= ~used.any()
        kept = Factors(f.a[used], f.b[:, used])
        limit = min(kept.d_in, kept.d_out)
        return kept if kept.rank <= limit else best_of_rank(kept, limit)

    return replace(adapter, sites={site: shrink(f) for site, f in adapter.sites.items()})


def best_of_rank(factors: Factors, rank: int) -> Factors:
    """The best approximation of rank `rank` (Eckart and Young)."""
    near = truncate(factors.a, factors.b, rank)
    return Factors(near.a, near.b)


def of_rank(factors: Factors, rank: int, seed: int, site: str) -> Factors:
    """`best_of_rank`; directions beyond those there are get rows of `a` as at a run's start, so that they can train."""
    best = best_of_rank(factors, rank)
    rows = initial_a(rank, best.d_in, generator(seed, f"merge/{site}")).to(best.a)
    empty = (best.a == 0).all(-1, keepdim=True) & (best.b == 0).all(-2).unsqueeze(-1)
    return Factors(torch.where(empty, rows, best.a), best.b)
