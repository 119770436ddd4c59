"""Adapters from anywhere, brought to one scale so that methods can be applied to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fedrot.core.adapter import Adapter, Factors
from fedrot.errors import ModelError
from fedrot.model.peft_format import folded, read_peft, write_peft
from fedrot.model.words import CARD


@dataclass(frozen=True)
class Source:
    """One adapter as it came, with the scale of every site."""

    name: str
    sites: Mapping[str, Factors]
    scales: Mapping[str, float]
    head: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its PEFT configuration; empty for an adapter from memory."""
    card: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What `fedrot.json` says, if it has one."""

    def at_scale(self, scale: float, like: Source) -> Adapter:
        """The same products under one scale, `b` times the site's own scale over it, in the order of `like`."""
        sites: dict[str, Factors] = {}
        for site in like.sites:
            f, own = self.sites[site], self.scales[site]
            sites[site] = f if own == scale else Factors(f.a, f.b * (own / scale))
        return Adapter(sites, {name: self.head[name] for name in like.head}, scale)


def open_source(given: Adapter | str | Path, key: str) -> Source:
    """A PEFT directory, or an adapter in memory (its residual becomes further directions), as a `Source`.

    Args:
        given: the directory or the adapter.
        key: what names it in messages: `adapter 2`, `reference`.

    Raises:
        ModelError: a directory that cannot be read as an adapter, a stack of clients, or numbers that are not finite.
    """
    if isinstance(given, Adapter):
        if given.batch:
            raise ModelError(f"{key}: a stack of {given.batch[0]} clients; give each as Adapter.select(i)")
        whole = given.map(lambda tensor: tensor.detach() if tensor.is_floating_point() else tensor)
        sites = {site: Factors(_wide(f.a), _wide(f.b)) for site, f in folded(whole).items()}
        head = {name: _wide(tensor) for name, tensor in whole.head.items()}
        source = Source(key, sites, dict.fromkeys(sites, given.scale), head)
    else:
        files = read_peft(given, key)
        card = Path(given) / CARD
        facts = _facts(card) if card.exists() else {}
        source = Source(f"{key} ('{given}')", files.sites, files.scales, files.head, files.settings, facts)
    if not source.sites:
        raise ModelError(f"{source.name}: no LoRA sites; expected at least one")
    tensors = [*source.head.items(), *((n, t) for n, f in source.sites.items() for t in (f.a, f.b))]
    for name, tensor in tensors:
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{source.name}: {name!r} holds numbers that are not finite; leave it out")
    return source


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def _facts(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}': cannot be read ({error}); restore or delete it") from error


def check_alike(source: Source, first: Source) -> tuple[str, ...]:
    """Refuse adapters of other layers, heads, tasks or labels; returns warnings about what only may be wrong.

    Raises:
        ModelError: naming both adapters and the first difference.
    """
    unlike = sorted(source.sites.keys() ^ first.sites.keys())
    if unlike:
        have, lack = (source, first) if unlike[0] in source.sites else (first, source)
        raise ModelError(
            f"{source.name} adapts {len(source.sites)} layers, {first.name} {len(first.sites)}; {len(unlike)} differ: "
            f"{unlike[0]!r} is in {have.name} and not in {lack.name}; train both with the same target_modules"
        )
    for site, f in source.sites.items():
        mine, theirs = ((g.d_out, g.d_in) for g in (f, first.sites[site]))
        if mine != theirs:
            raise ModelError(
                f"{source.name}: layer {site!r} is {mine[0]} x {mine[1]}, that of {first.name} {theirs[0]} x "
                f"{theirs[1]}; expected adapters of one base model"
            )
    heads = ({n: tuple(t.shape) for n, t in s.head.items()} for s in (source, first))
    mine, theirs = heads
    if different := sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)):
        name = different[0]
        raise ModelError(
            f"{source.name}: head tensor {name!r} has shape {mine.get(name, 'none')}, that of {first.name} "
            f"{theirs.get(name, 'none')}; expected the same modules_to_save and number of labels"
        )
    for what, one, other in (
        ("task_type", source.settings.get("task_type"), first.settings.get("task_type")),
        ("labels in fedrot.json", source.card.get("labels"), first.card.get("labels")),
        ("pooling in fedrot.json", source.card.get("pooling"), first.card.get("pooling")),
    ):
        if one is not None and other is not None and one != other:
            raise ModelError(
                f"{source.name}: {what} = {one!r}, that of {first.name} {other!r}; expected the same"
            )
    bases = [s.settings.get("base_model_name_or_path") for s in (source, first)]
    if None not in bases and bases[0] != bases[1]:
        return (
            f"{source.name} names the base model {bases[0]!r}, {first.name} {bases[1]!r}; unless both are the same "
            "model, the result means nothing",
        )
    return ()


def common_scale(source: Source) -> float:
    """The scale that most sites of `source` have."""
    values = list(source.scales.values())
    return max(dict.fromkeys(values), key=values.count)


def write_like(directory: Path, adapter: Adapter, sources: Sequence[Source]) -> None:
    """Write `adapter` as PEFT files with the first configuration's task, modules, base model and dropout.

    Raises:
        ModelError: a head, and no configuration that says which modules it belongs to.
    """
    configured = next((s for s in sources if s.settings), None)
    settings = configured.settings if configured else {}
    modules = list(settings.get("modules_to_save") or ())
    homeless = [n for n in adapter.head if not any(f".{m}." in f".{n}" for m in modules)]
    if homeless and settings.get("task_type") not in ("SEQ_CLS", "TOKEN_CLS"):
        modules += [n.rpartition(".")[0] for n in homeless]
    write_peft(
        directory,
        adapter,
        adapter.head,
        rslora=bool(settings.get("use_rslora")),
        dropout=float(settings.get("lora_dropout") or 0.0),
        modules_to_save=list(dict.fromkeys(modules)),
        task_type=settings.get("task_type"),
        base_model=settings.get("base_model_name_or_path"),
        fan_in_fan_out=bool(settings.get("fan_in_fan_out")),
    )
    card = next((s.card for s in sources if s.card), None)
    if card is not None:
        kept = {key: card[key] for key in ("base_model", "pooling", "labels", "max_length") if key in card}
        (directory / CARD).write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
