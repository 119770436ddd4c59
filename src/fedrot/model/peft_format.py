"""The two files of a PEFT LoRA adapter, read and written without its base model."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors
from fedrot.errors import ModelError
from fedrot.model.words import first_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# Keys that say nothing about what the stored tensors mean.
_NEUTRAL = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "r"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("megatron_config", "megatron_core", "qalora_group_size", "eva_config", "runtime_config"),
    "fan_in_fan_out",  # says how the base layers' weights lie (GPT-2's Conv1D); the factors' shapes are the same
}
# Initialisations that change the base weights, so that the adapter alone is not the update.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftFiles:
    """A PEFT LoRA adapter as stored: its configuration, factors and scale of every site, and whole modules."""

    directory: Path
    settings: Mapping[str, Any]
    sites: Mapping[str, Factors]
    scales: Mapping[str, float]
    """`alpha / r`, or `alpha / sqrt(r)` for rsLoRA, site by site."""
    head: Mapping[str, Tensor]
    """Parameters of `modules_to_save`, by full name."""


def read_peft(directory: str | Path, key: str, device: str | torch.device = "cpu") -> PeftFiles:
    """Read an adapter; every tensor in float32.

    Args:
        directory: holds `adapter_config.json` and `adapter_model.safetensors`.
        key: what named the directory, for messages: `model.adapter`, `--reference`.
        device: where the tensors are to lie.

    Raises:
        ModelError: no such adapter, pickled weights, another type, or a variant of LoRA whose factors alone do
            not say what it does; the key of its configuration is named.
    """
    import safetensors
    import safetensors.torch

    directory = Path(directory)
    where = f"{key} = '{directory}'"
    if (directory / "adapter_model.bin").exists() and not (directory / WEIGHTS).exists():
        raise ModelError(
            f"{where}: its weights are pickled (adapter_model.bin), which is never loaded; load the adapter where you "
            "trust it and save it again with save_pretrained(..., safe_serialization=True)"
        )
    try:
        settings = json.loads((directory / CONFIG).read_text("utf-8"))
        tensors = safetensors.torch.load_file(directory / WEIGHTS, device=str(device))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{where}: expected a PEFT directory with {CONFIG} and {WEIGHTS} ({first_line(error)})"
        ) from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise ModelError(f"{where}: it is a {kind} adapter, expected LORA")
    return parse_peft(settings, tensors, where, directory)


def parse_peft(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, directory: Path
) -> PeftFiles:
    """An adapter from its configuration and its tensors as PEFT names them; every tensor in float32.

    Raises:
        ModelError: a variant of LoRA that is not supported, factors without their counterpart, or ranks and alpha
            that the configuration contradicts.
    """
    check_settings(settings, where)
    named = {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items()}
    sites = _sites(named, where)
    scales = {site: _scale(settings, site, factors.rank, where) for site, factors in sites.items()}
    head = {name: tensor for name, tensor in named.items() if ".lora_" not in name}
    return PeftFiles(directory, settings, sites, scales, head)


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration under which an update is not `scale * b @ a` at every site.

    Raises:
        ModelError: naming the key and its value.
    """
    initial = settings.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.startswith(_CHANGES_BASE):
        raise ModelError(
            f"{where}: init_lora_weights = {initial!r} changes the base weights, so its factors are not the update; "
            "save it with path_initial_model_for_weight_conversion"
        )
    if settings.get("bias", "none") != "none":
        raise ModelError(f"{where}: bias = {settings['bias']!r} trains biases too; expected 'none'")
    for option, value in settings.items():
        neutral = option in _NEUTRAL or option in ("init_lora_weights", "bias")
        if not neutral and value not in (None, False, [], {}):
            raise ModelError(
                f"{where}: uses {option} = {value!r}, which is not supported; merge it into its base model first"
            )


def _sites(named: Mapping[str, Tensor], where: str) -> dict[str, Factors]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        if ".lora_" not in name:
            continue
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if match is None or tensor.ndim != 2:
            raise ModelError(
                f"{where}: tensor {name!r} of shape {tuple(tensor.shape)} is not a factor of a linear layer; "
                "embeddings, convolutions, biases and magnitudes are not supported: leave them out of target_modules"
            )
        parts.setdefault(match[1], {})[match[2].lower()] = tensor
    for site, pair in parts.items():
        if missing := {"a", "b"} - pair.keys():
            raise ModelError(f"{where}: {site!r} lacks lora_{missing.pop().upper()}.weight; restore the file")
    if not parts:
        raise ModelError(f"{where}: {WEIGHTS} holds no LoRA factors; expected names such as X.lora_A.weight")
    return {site: Factors(pair["a"], pair["b"]) for site, pair in parts.items()}


def _scale(settings: Mapping[str, Any], site: str, rank: int, where: str) -> float:
    said = _pattern(settings.get("rank_pattern"), site, settings.get("r"))
    if said != rank:
        raise ModelError(
            f"{where}: {site!r} has rank {rank}, but {CONFIG} says {said} (r, rank_pattern); restore it"
        )
    alpha = _pattern(settings.get("alpha_pattern"), site, settings.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ModelError(f"{where}: lora_alpha = {alpha!r} at {site!r}: expected a positive number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _pattern(patterns: Mapping[str, Any] | None, site: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the name from a dot on."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", site):
            return value
    return default


def folded(adapter: Adapter) -> dict[str, Factors]:
    """Every site's factors with its residual beside them: `[a; a_res]` and `[b, b_res]`."""
    sites = dict(adapter.sites)
    for site, extra in adapter.residual.items():
        own = sites.get(site)
        parts = [extra] if own is None else [own, extra]
        sites[site] = Factors(torch.cat([f.a for f in parts], -2), torch.cat([f.b for f in parts], -1))
    return sites


def write_peft(
    directory: Path,
    adapter: Adapter,
    head: Mapping[str, Tensor],
    *,
    rank: int | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    modules_to_save: Sequence[str] = (),
    task_type: str | None = None,
    base_model: str | None = None,
    fan_in_fan_out: bool = False,
) -> None:
    """Write an adapter, its residual included, so that PEFT computes `scale * b @ a` at every site.

    PEFT divides alpha by the rank (by its root for rsLoRA), so sites of unequal rank get a `rank_pattern` and the
    `alpha_pattern` that keeps their scale.

    Args:
        directory: made if need be.
        adapter: its head is not written; give it as `head`.
        head: parameters of `modules_to_save`, by full name.
        rank: stored as `r` if any site has it; else the most frequent rank is.
        rslora: whether the adapter is to train on as rsLoRA.
        dropout: for training on.
        modules_to_save: names of the modules trained whole.
        task_type: as in PEFT; decides which class loads it.
        base_model: path or hub id.
        fan_in_fan_out: whether the adapted layers keep their weights as `(d_in, d_out)`.
    """
    import safetensors.torch
    from peft import LoraConfig

    directory.mkdir(parents=True, exist_ok=True)
    sites = folded(adapter)
    tensors = {f"{PREFIX}{name}": tensor.float() for name, tensor in head.items()}
    for site, factors in sites.items():
        tensors[f"{PREFIX}{site}.lora_A.weight"] = factors.a.float()
        tensors[f"{PREFIX}{site}.lora_B.weight"] = factors.b.float()
    ranks = Counter(factors.rank for factors in sites.values())
    common = rank if rank is not None and rank in ranks else ranks.most_common(1)[0][0]
    unlike = {f"^{re.escape(site)}": f.rank for site, f in sites.items() if f.rank != common}

    def alpha(rank: int) -> int | float:
        exact = adapter.scale * (math.sqrt(rank) if rslora else rank)
        near = round(exact, 9)  # 8 / 3 * 3 is 8
        value = near if math.isclose(near, exact, rel_tol=1e-12) else exact
        return int(value) if value.is_integer() else value

    settings = LoraConfig(
        r=common,
        lora_alpha=alpha(common),  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        use_rslora=rslora,
        target_modules=list(sites),
        rank_pattern=unlike,
        alpha_pattern={pattern: alpha(own) for pattern, own in unlike.items()},  # pyright: ignore[reportArgumentType]
        modules_to_save=list(modules_to_save) or None,
        task_type=task_type,
        base_model_name_or_path=base_model,
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=True,
    )
    safetensors.torch.save_file(
        {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}, directory / WEIGHTS
    )
    settings.save_pretrained(str(directory))
