"""PEFT adapters in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedrot.config import LoraSettings
from fedrot.core.adapter import Adapter, Factors
from fedrot.errors import ModelError
from fedrot.model.base import BaseModel
from fedrot.model.sites import find_sites
from fedrot.model.words import CARD, first_line


def save_peft(
    directory: Path, adapter: Adapter, base: BaseModel, lora: LoraSettings, card: Mapping[str, Any]
) -> None:
    """Write `adapter` in PEFT's format: it loads with `PeftModel.from_pretrained` onto the same base model.

    The head is stored even when it was not trained (it may have been drawn at random), so that logits agree.
    `fedrot.json` beside it records labels, pooling and maximum length.
    """
    import safetensors.torch
    from peft import LoraConfig

    if adapter.residual:
        raise ModelError(
            "the adapter carries a residual: fold it into factors of a larger rank before exporting"
        )
    directory.mkdir(parents=True, exist_ok=True)
    head = {name: p.detach() for name, p in base.head_parameters().items()} | dict(adapter.head)
    tensors = {f"base_model.model.{name}": tensor.float() for name, tensor in head.items()}
    for site, factors in adapter.sites.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = factors.a
        tensors[f"base_model.model.{site}.lora_B.weight"] = factors.b
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(adapter.sites),
        modules_to_save=list(base.head) or None,
        task_type="SEQ_CLS" if base.pooling == "model" else None,
        base_model_name_or_path=base.path,
        inference_mode=True,
    )
    safetensors.torch.save_file(
        {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()},
        directory / "adapter_model.safetensors",
    )
    settings.save_pretrained(str(directory))
    facts = {"base_model": base.path, "pooling": base.pooling, "labels": list(base.labels), **card}
    (directory / CARD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    (directory / "README.md").write_text(_model_card(facts), "utf-8")


def _model_card(facts: Mapping[str, Any]) -> str:
    if facts["pooling"] == "model":
        load = (
            "from transformers import AutoModelForSequenceClassification\n\n"
            "base = AutoModelForSequenceClassification.from_pretrained("
            f'"<base model>", num_labels={len(facts["labels"])})'
        )
    else:
        load = 'import fedrot\n\nbase = fedrot.load_base_for("<this directory>")'
    return (
        "---\nlibrary_name: peft\n---\n"
        f"LoRA adapter for `{facts['base_model']}`, labels {', '.join(map(str, facts['labels']))}.\n\n"
        f"```python\nfrom peft import PeftModel\n{load}\n"
        'model = PeftModel.from_pretrained(base, "<this directory>")\n```\n'
    )


def load_peft(directory: str | Path, base: BaseModel, lora: LoraSettings) -> Adapter:
    """Read a PEFT LoRA adapter as an `Adapter` to start from.

    Raises:
        ModelError: not a PEFT LoRA adapter, one that uses a variant we cannot represent, or one whose rank, scaling
            or layers differ from the recipe's `[lora]`.
    """
    import safetensors.torch

    directory = Path(directory)
    try:
        settings = json.loads((directory / "adapter_config.json").read_text("utf-8"))
        tensors = safetensors.torch.load_file(
            directory / "adapter_model.safetensors", device=str(base.device)
        )
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"model.adapter = '{directory}': expected a PEFT directory with adapter_config.json and "
            f"adapter_model.safetensors ({first_line(error)})"
        ) from error
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"model.adapter = '{directory}': it is a {settings.get('peft_type')} adapter, expected LORA"
        )
    for option in ("rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out", "lora_bias"):
        if settings.get(option):
            raise ModelError(
                f"model.adapter = '{directory}': uses {option}, which is not supported; merge it first"
            )
    rank, alpha, rslora = settings["r"], settings["lora_alpha"], bool(settings.get("use_rslora"))
    if (rank, float(alpha), rslora) != (lora.rank, float(lora.alpha), lora.rslora):
        raise ModelError(
            f"model.adapter = '{directory}': rank {rank}, alpha {alpha}, rslora {rslora}, but the recipe has "
            f"{lora.rank}, {lora.alpha}, {lora.rslora}; set lora.rank, lora.alpha and lora.rslora to the adapter's"
        )
    named = {key.removeprefix("base_model.model."): tensor.float() for key, tensor in tensors.items()}
    found = {n.removesuffix(".lora_A.weight") for n in named if n.endswith(".lora_A.weight")}
    expected = find_sites(base, lora)
    if found != set(expected):
        unlike = sorted(found ^ set(expected))
        raise ModelError(
            f"model.adapter = '{directory}': it adapts {len(found)} layers, the recipe {len(expected)}; first "
            f"difference {unlike[0]!r}; set lora.target_modules and lora.layers to match"
        )
    sites = {s: Factors(named[f"{s}.lora_A.weight"], named[f"{s}.lora_B.weight"]) for s in expected}
    head = _load_head(directory, named, base)
    return Adapter(sites, head if lora.train_head else {}, lora.scale)


def _load_head(directory: Path, named: Mapping[str, Tensor], base: BaseModel) -> dict[str, Tensor]:
    head: dict[str, Tensor] = {}
    for name, parameter in base.head_parameters().items():
        stored = named.get(name)
        if stored is None:
            head[name] = parameter.detach().float().clone()
        elif stored.shape != parameter.shape:
            raise ModelError(
                f"model.adapter = '{directory}': head {name!r} has shape {tuple(stored.shape)}, the task needs "
                f"{tuple(parameter.shape)} (another number of labels?)"
            )
        else:
            head[name] = stored
            parameter.data.copy_(stored)
    return head
