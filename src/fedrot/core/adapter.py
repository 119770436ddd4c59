"""Adapters as values: LoRA factors by site, head tensors, at times a low-rank residual, and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrot.errors import AdapterError


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """One LoRA site, `a: (..., rank, d_in)` and `b: (..., d_out, rank)`, representing `b @ a`.

    Raises:
        AdapterError: fewer than two dimensions, different ranks, or different leading dimensions.
    """

    a: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        a, b = self.a.shape, self.b.shape
        if len(a) < 2 or len(b) < 2:
            expected = "a (..., rank, d_in) and b (..., d_out, rank)"
        elif a[-2] != b[-1]:
            expected = "a.shape[-2] == b.shape[-1] (the rank)"
        elif a[:-2] != b[:-2]:
            expected = "equal leading dimensions; expand one of them"
        else:
            return
        raise AdapterError(f"factors a {tuple(a)}, b {tuple(b)}: expected {expected}")

    @property
    def rank(self) -> int:
        """Rows of `a`, columns of `b`."""
        return self.a.shape[-2]

    @property
    def d_in(self) -> int:
        """Width of the adapted layer's input."""
        return self.a.shape[-1]

    @property
    def d_out(self) -> int:
        """Width of the adapted layer's output."""
        return self.b.shape[-2]

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading dimensions, `()` for one client."""
        return tuple(self.a.shape[:-2])

    def resized(self, rank: int) -> Factors:
        """The first `rank` directions (views), zero-padded where there are fewer."""
        extra = rank - self.rank
        if extra <= 0:
            return Factors(self.a[..., :rank, :], self.b[..., :rank])
        return Factors(pad(self.a, (0, 0, 0, extra)), pad(self.b, (0, extra)))


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Everything a method exchanges: ordered LoRA sites, the trained head, and at times a low-rank residual.

    The update represented at a site is `scale * b @ a`, plus `scale * residual.b @ residual.a` where the site
    has a residual: a correction that the receiver folds into its base weights once. A *stacked* adapter
    carries one leading client dimension on every tensor.

    Raises:
        AdapterError: `scale` is not finite, or the sites' leading dimensions differ.
    """

    sites: Mapping[str, Factors]
    head: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    scale: float = 1.0
    residual: Mapping[str, Factors] = field(default_factory=dict[str, Factors])

    def __post_init__(self) -> None:
        for name in ("sites", "head", "residual"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if not math.isfinite(self.scale):
            raise AdapterError(
                f"adapter scale = {self.scale!r}: expected a finite number such as alpha / rank"
            )
        batches = {f.batch for f in (*self.sites.values(), *self.residual.values())}
        if len(batches) > 1:
            raise AdapterError(
                f"sites have leading dimensions {sorted(batches)}: expected the same at every site"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """Leading dimensions shared by all sites: `()`, or `(N,)` for a stack of clients."""
        return next(iter(self.sites.values())).batch if self.sites else ()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors in order, under `sites/<site>/a|b`, `head/<name>` and `residual/<site>/a|b`."""
        flat: dict[str, Tensor] = {}
        for kind, group in (("sites", self.sites), ("residual", self.residual)):
            if kind == "residual":
                flat |= {f"head/{name}": tensor for name, tensor in self.head.items()}
            for site, f in group.items():
                flat |= {f"{kind}/{site}/a": f.a, f"{kind}/{site}/b": f.b}
        return flat

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], scale: float = 1.0) -> Adapter:
        """The inverse of `tensors()`.

        Raises:
            AdapterError: an unknown key, or one factor of a site without the other.
        """
        parts: dict[str, dict[str, dict[str, Tensor]]] = {"sites": {}, "residual": {}}
        head: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            site, _, factor = rest.rpartition("/")
            if kind == "head" and rest:
                head[rest] = tensor
            elif kind in parts and site and factor in ("a", "b"):
                parts[kind].setdefault(site, {})[factor] = tensor
            else:
                expected = "'sites/<site>/a', 'sites/<site>/b', 'head/<name>' or 'residual/<site>/a|b'"
                raise AdapterError(f"tensor {key!r}: expected a name such as {expected}")
        for kind, group in parts.items():
            for site, pair in group.items():
                if missing := {"a", "b"} - pair.keys():
                    raise AdapterError(f"'{kind}/{site}' lacks factor {missing.pop()!r}: both are expected")
        sites, residual = (
            {s: Factors(**p) for s, p in parts[kind].items()} for kind in ("sites", "residual")
        )
        return cls(sites, head, scale, residual)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Adapter:
        """The adapter with `fn` applied to every tensor."""
        return Adapter(
            {site: Factors(fn(f.a), fn(f.b)) for site, f in self.sites.items()},
            {name: fn(tensor) for name, tensor in self.head.items()},
            self.scale,
            {site: Factors(fn(f.a), fn(f.b)) for site, f in self.residual.items()},
        )

    def select(self, index: int) -> Adapter:
        """Client `index` of a stack, as views."""
        return self.map(lambda tensor: tensor[index])

    def expand(self, count: int) -> Adapter:
        """A stack of `count` clients that all view this adapter (read-only: the memory is shared)."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape))

    def resized(self, rank: int) -> Adapter:
        """The same sites with their first `rank` directions (views), zero-padded where they have fewer."""
        return replace(self, sites={site: f.resized(rank) for site, f in self.sites.items()})

    def finite(self, *, stacked: bool = False) -> Tensor:
        """Whether every number is finite: a boolean scalar, or `(N,)` for a stack; no host sync."""
        tensors = list(self.tensors().values())
        if not tensors:
            raise AdapterError("an adapter without tensors: expected at least one LoRA site or head tensor")
        if any(t.device.type != "cpu" for t in tensors):
            rows = [t.reshape(len(t), -1) if stacked else t.reshape(-1) for t in tensors]
            flags = [row.isfinite().all(-1) for row in rows]
            return torch.stack([flag.to(flags[0].device) for flag in flags]).all(0)
        if stacked:
            return torch.stack([_finite([t[index] for t in tensors]) for index in range(len(tensors[0]))])
        return _finite(tensors)

    def check_like(self, other: Adapter, who: str, *, ranks: bool = True) -> None:
        """Refuse to mix this adapter, sent by `who`, with `other`, the one expected.

        Compares site and head names, shapes, dtypes and scale. Residuals are not compared (they travel one
        way, and are folded on arrival). With `ranks=False` the ranks (and the scale, often a function of it)
        may differ.

        Raises:
            AdapterError: naming `who`, what came, what was expected, and the likely cause.
        """
        _check_names(self.sites, other.sites, who, "sites", "was it trained with another target_modules?")
        _check_names(self.head, other.head, who, "head tensors", "was it trained with another head?")
        if ranks and not math.isclose(self.scale, other.scale, rel_tol=1e-6):
            raise AdapterError(
                f"{who} sent scale {self.scale:g}, expected {other.scale:g} "
                "(was it trained with another lora.alpha?)"
            )
        expected = other.tensors()
        for key, tensor in self.tensors().items():
            if not key.startswith("residual/"):
                _check_tensor(key, tensor, expected[key], who, ranks)


def _finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all numbers are finite: the least and the greatest are, and NaN would be both.

    On a CPU that is one pass over them, where `isfinite` makes four.
    """
    extremes = [extreme for t in tensors if t.numel() for extreme in torch.aminmax(t)]
    if not extremes:
        return torch.ones((), dtype=torch.bool)
    widest = reduce(torch.promote_types, (t.dtype for t in tensors))
    return torch.stack([extreme.to(widest) for extreme in extremes]).isfinite().all()


def _check_names(mine: Iterable[str], theirs: Iterable[str], who: str, what: str, cause: str) -> None:
    sent, expected = dict.fromkeys(mine), dict.fromkeys(theirs)
    if sent.keys() == expected.keys():
        return
    unlike = [f"missing {name!r}" for name in expected if name not in sent]
    unlike += [f"unexpected {name!r}" for name in sent if name not in expected]
    listing = ", ".join(unlike[:3]) + (f" and {len(unlike) - 3} more" if len(unlike) > 3 else "")
    raise AdapterError(f"{who} sent {len(sent)} {what}, expected {len(expected)}; {listing} ({cause})")


def _check_tensor(key: str, mine: Tensor, theirs: Tensor, who: str, ranks: bool) -> None:
    sent, expected = list(mine.shape), list(theirs.shape)
    if not ranks and key.startswith("sites/"):
        rank = -2 if key.endswith("/a") else -1
        sent[rank] = expected[rank] = 0
    if sent != expected:
        raise AdapterError(
            f"{who} sent {key!r} of shape {tuple(mine.shape)}, expected {tuple(theirs.shape)} "
            "(was it trained with another lora.rank or another base model?)"
        )
    if mine.dtype != theirs.dtype:
        raise AdapterError(
            f"{who} sent {key!r} as {mine.dtype}, expected {theirs.dtype} "
            "(convert the adapter before sending it)"
        )


def stack(adapters: Sequence[Adapter]) -> Adapter:
    """One stacked adapter from `N` of the same form; every tensor is copied.

    Raises:
        AdapterError: no adapters, or adapters that do not fit together.
    """
    if not adapters:
        raise AdapterError("stack of no adapters: expected at least one")
    for index, adapter in enumerate(adapters):
        adapter.check_like(adapters[0], f"adapter {index}")
    flat = [adapter.tensors() for adapter in adapters]
    return Adapter.from_tensors(
        {key: torch.stack([f[key] for f in flat]) for key in flat[0]}, adapters[0].scale
    )


def normalise(weights: Tensor | Sequence[float], count: int) -> list[float]:
    """Weights scaled to sum to one.

    Raises:
        AdapterError: not `count` of them, one negative or not finite, or all zero.
    """
    values = [float(w) for w in weights]
    if len(values) != count:
        raise AdapterError(f"{len(values)} weights for {count} adapters: expected one each")
    bad = next((i for i, w in enumerate(values) if not (math.isfinite(w) and w >= 0)), None)
    if bad is not None:
        raise AdapterError(
            f"weights[{bad}] = {values[bad]!r}: expected a finite number >= 0, such as a sample count"
        )
    total = math.fsum(values)
    if total == 0:
        raise AdapterError(f"all {count} weights are zero: expected at least one positive sample count")
    return [w / total for w in values]


@torch.no_grad()
def weighted_mean(adapters: Iterable[Adapter], weights: Tensor | Sequence[float]) -> Adapter:
    """The mean of every tensor with weights `weights / sum(weights)`, streamed: one accumulator, no stacking.

    Accumulates in float32 or better and returns the dtypes of the first adapter. Inputs are not modified, and
    a weight of one returns its adapter's numbers to the bit.

    Raises:
        AdapterError: no adapters, unusable weights, adapters that do not fit, or one that carries a residual
            (the mean of two residuals' factors represents neither: fold them first).
    """
    count = len(adapters) if isinstance(adapters, Sequence) else len(weights)
    if count == 0:
        raise AdapterError("mean of no adapters: expected at least one")
    first: Adapter | None = None
    total: dict[str, Tensor] = {}
    for index, (adapter, share) in enumerate(zip(adapters, normalise(weights, count), strict=True)):
        first = first or adapter
        adapter.check_like(first, f"adapter {index}")
        if adapter.residual:
            raise AdapterError(f"adapter {index} carries a residual: fold it into the base before averaging")
        for key, tensor in adapter.tensors().items():
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            total[key] = total[key].add_(wide, alpha=share) if key in total else wide * share
    assert first is not None
    dtypes = {key: tensor.dtype for key, tensor in first.tensors().items()}
    return Adapter.from_tensors({key: mean.to(dtypes[key]) for key, mean in total.items()}, first.scale)


def mean_head(adapters: Sequence[Adapter], weights: Tensor | Sequence[float]) -> Mapping[str, Tensor]:
    """The mean of the heads alone, see `weighted_mean`; nothing is read where the first adapter has none."""
    if adapters and not adapters[0].head:
        return {}
    return weighted_mean((replace(a, sites={}, residual={}) for a in adapters), weights).head
