"""LoRA factors found by name in somebody else's `ArrayRecord`, read as an `Adapter` and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors
from fedrot.engines.flower.records import read_array
from fedrot.errors import AdapterError, ConfigError

# The keys of a pair are equal but for the group `a` or `b`.
CONVENTIONS = (
    r"(?:.*\.)?lora_(?:(?P<a>A)|(?P<b>B))(?:\.[^.]+)?\.weight",  # PEFT, also with the name of an adapter
    r"(?:.*\.)?lora_embedding_(?:(?P<a>A)|(?P<b>B))(?:\.[^.]+)?",  # PEFT, embeddings
    r"(?:.*\.)?lora_(?:(?P<a>a)|(?P<b>b))\.weight",  # torchtune
    r"sites/.+/(?:(?P<a>a)|(?P<b>b))",  # fedrot
)
_LOOKS_LIKE_FACTOR = re.compile(r"lora_(?:embedding_)?(?:[ABab]|up|down)(?![A-Za-z])(?!.*bias)")
_TYPES = ("float16", "float32", "float64")
_NAMING = "pattern=, a regular expression for whole keys with the groups 'a' and 'b' where the factors' names differ"


@dataclass(frozen=True, slots=True)
class Pair:
    """The keys of one site's factors in a record."""

    site: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How to tell factors by their keys.

    Attributes:
        pattern: a regular expression for whole keys with a group `a` around what only the first factor's key has and
            `b` for the second's: `r".*\\.(?:(?P<a>lora_down)|(?P<b>lora_up))\\.weight"`. Keys that do not match are
            left alone. None knows PEFT's names (with or without the adapter's), torchtune's and our own.
        names: for records made of a bare list, the names of its arrays in order.

    Raises:
        ConfigError: a pattern that is no regular expression or lacks a group, or a name given twice.
    """

    pattern: str | None = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern or CONVENTIONS[0]).groupindex
        except re.error as error:
            raise ConfigError(f"pattern = {self.pattern!r}: not a regular expression ({error})") from error
        if missing := [group for group in "ab" if group not in groups]:
            raise ConfigError(f"pattern = {self.pattern!r}: lacks the group {missing[0]!r}; give {_NAMING}")
        if isinstance(self.names, str):
            raise ConfigError(f"names = {self.names!r}: expected a list of names, one for each array")
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise ConfigError("names: one of them is given twice; expected one name for each array, in order")

    def pairs(self, record: Mapping[str, object], where: str) -> tuple[Pair, ...]:
        """The pairs of factors in a record, in its order.

        Raises:
            AdapterError: none, one factor without the other, a key that looks like a factor and matches no known
                naming, or AdaLoRA, whose product has a third factor; `where` says which record.
        """
        known = self._known(list(record), where)
        found: dict[str, dict[str, str]] = {}
        for key, name in known.items():
            match = self._match(name)
            if match is not None:
                factor = "a" if match["a"] is not None else "b"
                start, end = match.span(factor)
                found.setdefault(f"{name[:start]}*{name[end:]}", {})[factor] = key
            elif self.pattern is None:
                _check_left_out(name, where)
        for site, pair in found.items():
            if missing := {"a", "b"} - pair.keys():
                raise AdapterError(
                    f"{where}: {known[next(iter(pair.values()))]!r} lacks factor {missing.pop()!r} of {site!r}; "
                    f"send both factors, or leave the site out by {_NAMING}"
                )
        if not found:
            raise AdapterError(
                f"{where}: no LoRA factors among its {len(known)} arrays ({_some(list(known.values()))}); send the "
                f"adapter's state dict with its keys, or give {_NAMING}"
            )
        return tuple(Pair(site, pair["a"], pair["b"]) for site, pair in found.items())

    def _known(self, keys: list[str], where: str) -> dict[str, str]:
        """Keys of the record, and the names that count."""
        if self.names is not None:
            if len(keys) != len(self.names):
                raise AdapterError(
                    f"{where}: {len(keys)} arrays, but names= lists {len(self.names)}; expected one name for each"
                )
            return dict(zip(keys, self.names, strict=True))
        if keys and all(key.isdecimal() for key in keys):
            raise AdapterError(
                f"{where}: a bare list of {len(keys)} arrays, whose factors cannot be told apart; send "
                "ArrayRecord(get_peft_model_state_dict(model)), or give names=list(get_peft_model_state_dict(model))"
            )
        return {key: key for key in keys}

    def _match(self, name: str) -> re.Match[str] | None:
        patterns = CONVENTIONS if self.pattern is None else (self.pattern,)
        return next((match for p in patterns if (match := re.fullmatch(p, name))), None)


def _check_left_out(name: str, where: str) -> None:
    if re.search(r"lora_E(?![A-Za-z])", name):
        raise AdapterError(
            f"{where}: {name!r} belongs to AdaLoRA, whose update b @ diag(e) @ a is not kept by a rotation; use LoRA"
        )
    if _LOOKS_LIKE_FACTOR.search(name):
        raise AdapterError(
            f"{where}: {name!r} looks like a LoRA factor, but its naming is not known; give {_NAMING}"
        )


def read_pairs(record: Mapping[str, Array], pairs: Sequence[Pair], where: str) -> Adapter:
    """The factors as an adapter of scale 1: float64 where the record has it, else float32.

    Raises:
        AdapterError: a missing key, an array that cannot be read, is not of floating point or not a matrix, or two
            factors of different ranks.
    """
    sites: dict[str, Factors] = {}
    for pair in pairs:
        a, b = (_matrix(record, key, where) for key in (pair.a, pair.b))
        if a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{where}: {pair.a!r} of shape {tuple(a.shape)} and {pair.b!r} of shape {tuple(b.shape)} do not fit; "
                "expected (rank, d_in) and (d_out, rank)"
            )
        sites[pair.site] = Factors(a, b)
    return Adapter(sites)


def _matrix(record: Mapping[str, Array], key: str, where: str) -> Tensor:
    if key not in record:
        raise AdapterError(f"{where}: lacks {key!r}; expected the arrays that were sent, under the same keys")
    values = read_array(record[key], f"{where}: array {key!r}")
    if str(values.dtype) not in _TYPES:
        raise AdapterError(
            f"{where}: factor {key!r} is {values.dtype}: expected {', '.join(_TYPES)}; send floating point numbers"
        )
    if values.ndim != 2:
        raise AdapterError(
            f"{where}: factor {key!r} has shape {values.shape}, expected a matrix; convolutions are not supported: "
            f"leave them out by {_NAMING}"
        )
    wide = values.astype(np.float32) if values.dtype == np.float16 else values
    return torch.from_numpy(np.ascontiguousarray(wide))


def write_pairs(record: ArrayRecord, pairs: Sequence[Pair], adapter: Adapter) -> ArrayRecord:
    """A record with the factors of `adapter`, in the types and under the keys of `record`, in its order.

    Sites that `adapter` lacks, and everything that is not a factor, are the same `Array` objects as in `record`.
    """
    fresh: dict[str, Array] = {}
    for pair in pairs:
        if pair.site in adapter.sites:
            factors = adapter.sites[pair.site]
            for key, tensor in ((pair.a, factors.a), (pair.b, factors.b)):
                kind = record[key].dtype or record[key].numpy().dtype  # arrays of older apps do not say
                fresh[key] = Array(np.ascontiguousarray(tensor.numpy().astype(kind)))
    written = ArrayRecord()
    for key, array in record.items():
        written[key] = fresh.get(key, array)
    return written


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "") if names else "it is empty"
