"""LoRA sites: which layers are adapted, and a fresh adapter on them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from fedrot.config import LoraSettings
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.initial import initial_a
from fedrot.core.rng import generator
from fedrot.errors import ConfigError, ModelError
from fedrot.model.base import BaseModel
from fedrot.model.dense import KINDS, is_dense, sizes
from fedrot.model.words import inside


def find_sites(base: BaseModel, lora: LoraSettings) -> tuple[str, ...]:
    """Full names of the layers to adapt, in module order.

    Args:
        base: the model; its head and a language model's output layer are never adapted.
        lora: `target_modules` as suffixes, one regular expression over full names, or `all-linear` (every
            `nn.Linear` and `Conv1D` outside the head); `layers` keeps the first or last k blocks of each stack.

    Raises:
        ModelError: nothing matches (what exists is listed), a match is no dense layer, or the rank exceeds one.
    """
    modules = {name: module for name, module in base.module.named_modules() if name}
    linear = {name for name, module in modules.items() if is_dense(module)}
    kept_out = [*base.head, *([base.output_layer] if base.output_layer else [])]
    outside = {name for name in modules if not any(inside(name, head) for head in kept_out)}
    matched = [
        name for name in modules if name in outside and _matches(name, name in linear, lora.target_modules)
    ]
    if not matched:
        kinds = sorted(
            {type(m).__name__ for n, m in modules.items() if n in outside and hasattr(m, "weight")}
        )
        names = sorted({name.rsplit(".", 1)[-1] for name in linear & outside})
        if not names:
            raise ModelError(
                f"model.path = {base.path!r}: it has no dense layer ({KINDS}) to adapt; its layers are "
                f"{', '.join(kinds)}; choose a model that is made of dense layers, as transformers are"
            )
        raise ModelError(
            f"lora.target_modules = {lora.target_modules!r}: no layer matches; linear layers here are called "
            f"{names}, layers with weights are {kinds}"
        )
    kept = _keep_layers(matched, lora.layers)
    if not kept:
        raise ModelError(
            f"lora.layers = {lora.layers!r}: none of the {len(matched)} matching layers lies in a block"
        )
    for name in kept:
        module = modules[name]
        if not is_dense(module):
            raise ModelError(
                f"lora.target_modules matches {name!r}, a {type(module).__name__}; only {KINDS} can be adapted: name "
                "others in lora.target_modules"
            )
        d_in, d_out = sizes(module)
        if lora.rank > min(d_in, d_out):
            raise ModelError(
                f"lora.rank = {lora.rank}: larger than layer {name!r} of {d_out} x {d_in}; expected at most "
                f"{min(d_in, d_out)}"
            )
    return tuple(kept)


def chosen(linear: Sequence[str], lora: LoraSettings) -> list[str]:
    """Of the names of a model's dense layers outside its head, those to adapt; empty if none matches."""
    matched = [name for name in linear if _matches(name, True, lora.target_modules)]
    return _keep_layers(matched, lora.layers)


def _matches(name: str, is_linear: bool, targets: str | Sequence[str]) -> bool:
    if targets == "all-linear":
        return is_linear
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise ConfigError(
                f"lora.target_modules = {targets!r}: not a regular expression ({error})"
            ) from None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def block_of(name: str) -> tuple[str, int] | None:
    """The stack and number of the block a module lies in: `bert.encoder.layer.3.x` -> `("bert.encoder.layer", 3)`."""
    match = re.match(r"(.*?)\.(\d+)(?:\.|$)", name)
    return (match.group(1), int(match.group(2))) if match else None


def _keep_layers(names: Sequence[str], layers: str) -> list[str]:
    if layers == "all":
        return list(names)
    which, _, count = layers.partition(":")
    blocks = {name: block for name in names if (block := block_of(name))}
    chosen: dict[str, set[int]] = {}
    for stack in {stack for stack, _ in blocks.values()}:
        numbers = sorted({number for other, number in blocks.values() if other == stack})
        chosen[stack] = set(numbers[-int(count) :] if which == "last" else numbers[: int(count)])
    return [name for name, (stack, number) in blocks.items() if number in chosen[stack]]


def initial_adapter(base: BaseModel, lora: LoraSettings, seed: int) -> Adapter:
    """A fresh adapter: `a` uniform as in PEFT (Kaiming with slope sqrt 5), `b` zero, head as in the base model."""
    sites: dict[str, Factors] = {}
    device = base.device
    for index, name in enumerate(find_sites(base, lora)):
        d_in, d_out = sizes(base.module.get_submodule(name))
        a = initial_a(lora.rank, d_in, generator(seed, "init", 0, index))
        sites[name] = Factors(a.to(device), torch.zeros(d_out, lora.rank, device=device))
    parameters = base.head_parameters() if lora.train_head else {}
    if lora.train_head and not parameters and not base.generates:
        raise ModelError(
            "lora.train_head = true: no head found in the model; name it in lora.modules_to_save, or set "
            "lora.train_head = false"
        )
    return Adapter(sites, {name: p.detach().float().clone() for name, p in parameters.items()}, lora.scale)
