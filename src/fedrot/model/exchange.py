"""PEFT adapters in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedrot.config import LoraSettings
from fedrot.core.adapter import Adapter
from fedrot.errors import ModelError
from fedrot.model.base import CLASSIFIER, ENCODER_DECODER, LANGUAGE, VISION, BaseModel, padding, reads_last
from fedrot.model.dense import is_transposed
from fedrot.model.peft_format import PeftFiles, read_peft, write_peft
from fedrot.model.sites import find_sites
from fedrot.model.words import CARD

_TASKS = {CLASSIFIER: "SEQ_CLS", LANGUAGE: "CAUSAL_LM", ENCODER_DECODER: "SEQ_2_SEQ_LM", VISION: None}
"""PEFT has no name for classifiers of images, and needs none: its general class passes everything on."""
_CLASSES = {CLASSIFIER: "AutoModelForSequenceClassification", VISION: "AutoModelForImageClassification"}
_SPEAKERS = {LANGUAGE: "AutoModelForCausalLM", ENCODER_DECODER: "AutoModelForSeq2SeqLM"}


def transformers_class(kind: str) -> str:
    """The class of transformers that loads a model of that kind."""
    return (_CLASSES | _SPEAKERS)[kind]


def save_peft(
    directory: Path, adapter: Adapter, base: BaseModel, lora: LoraSettings, card: Mapping[str, Any]
) -> None:
    """Write `adapter` in PEFT's format: it loads with `PeftModel.from_pretrained` onto the same base model.

    The head is stored even when it was not trained (it may have been drawn at random), so that logits agree. A
    residual becomes further directions of its sites, whose rank then exceeds `lora.rank`.
    `fedrot.json` beside it records labels, pooling and maximum length.
    """
    head = {name: p.detach() for name, p in base.head_parameters().items()} | dict(adapter.head)
    write_peft(
        directory,
        adapter,
        head,
        rank=lora.rank,
        rslora=lora.rslora,
        dropout=lora.dropout,
        modules_to_save=base.head,
        task_type=_TASKS[base.kind] if base.pooling == "model" else None,
        base_model=base.path,
        fan_in_fan_out=any(is_transposed(base.module.get_submodule(site)) for site in adapter.sites),
    )
    facts = {
        "base_model": base.path,
        "kind": base.kind,
        "pooling": base.pooling,
        "labels": list(base.labels),
        **card,
    }
    if base.kind == CLASSIFIER and (base.tokenizer.pad_token_id is None or reads_last(base.module)):
        facts["pad_token_id"] = padding(base.tokenizer)
    (directory / CARD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    (directory / "README.md").write_text(_model_card(facts), "utf-8")


def _model_card(facts: Mapping[str, Any]) -> str:
    plain = not facts["base_model"].startswith("package:")
    if facts["kind"] in _SPEAKERS and plain:
        name = _SPEAKERS[facts["kind"]]
        load = f'from transformers import {name}\n\nbase = {name}.from_pretrained("<base model>")'
    elif facts["kind"] in _CLASSES and facts["pooling"] == "model" and plain:
        name = _CLASSES[facts["kind"]]
        other = ", ignore_mismatched_sizes=True" if facts["kind"] == VISION else ""
        other += f", pad_token_id={facts['pad_token_id']}" if "pad_token_id" in facts else ""
        load = (
            f"from transformers import {name}\n\n"
            f'base = {name}.from_pretrained("<base model>", num_labels={len(facts["labels"])}{other})'
        )
    else:
        load = 'import fedrot\n\nbase = fedrot.load_base_for("<this directory>")'
    labels = f", labels {', '.join(map(str, facts['labels']))}" if facts["labels"] else ""
    return (
        "---\nlibrary_name: peft\n---\n"
        f"LoRA adapter for `{facts['base_model']}`{labels}.\n\n"
        f"```python\nfrom peft import PeftModel\n{load}\n"
        'model = PeftModel.from_pretrained(base, "<this directory>")\n```\n'
    )


def load_peft(directory: str | Path, base: BaseModel, lora: LoraSettings) -> Adapter:
    """Read a PEFT LoRA adapter as an `Adapter` to start from.

    Raises:
        ModelError: not a PEFT LoRA adapter, one that uses a variant we cannot represent, or one whose rank, scaling
            or layers differ from the recipe's `[lora]`.
    """
    files = read_peft(directory, "model.adapter", base.device)
    where, settings = f"model.adapter = '{directory}'", files.settings
    for option in ("rank_pattern", "alpha_pattern"):
        if patterns := settings.get(option):
            raise ModelError(
                f"{where}: its sites differ ({option} names {len(patterns)} of them), a run starts from one lora.rank "
                f"and lora.alpha; bring them to one rank with `fedrot merge {directory} --rank {lora.rank} --out NEW`"
            )
    rank, alpha, rslora = settings["r"], settings["lora_alpha"], bool(settings.get("use_rslora"))
    if (rank, rslora) != (lora.rank, lora.rslora) or not math.isclose(alpha, lora.alpha, rel_tol=1e-9):
        raise ModelError(
            f"{where}: rank {rank}, alpha {alpha}, rslora {rslora}, but the recipe has "
            f"{lora.rank}, {lora.alpha}, {lora.rslora}; set lora.rank, lora.alpha and lora.rslora to the adapter's"
        )
    expected = find_sites(base, lora)
    if files.sites.keys() != set(expected):
        unlike = sorted(files.sites.keys() ^ set(expected))
        raise ModelError(
            f"{where}: it adapts {len(files.sites)} layers, the recipe {len(expected)}; first "
            f"difference {unlike[0]!r}; set lora.target_modules and lora.layers to match"
        )
    sites = {site: files.sites[site] for site in expected}
    head = _load_head(files, base)
    return Adapter(sites, head if lora.train_head else {}, lora.scale)


def _load_head(files: PeftFiles, base: BaseModel) -> dict[str, Tensor]:
    head: dict[str, Tensor] = {}
    own = base.head_parameters()
    if foreign := sorted(files.head.keys() - own.keys()):
        raise ModelError(
            f"model.adapter = '{files.directory}': it holds {foreign[0]!r} as a module trained whole, which the "
            f"recipe's head ({', '.join(base.head) or 'none'}) has not; name all of them in lora.modules_to_save"
        )
    for name, parameter in own.items():
        stored = files.head.get(name)
        if stored is None:
            head[name] = parameter.detach().float().clone()
        elif stored.shape != parameter.shape:
            raise ModelError(
                f"model.adapter = '{files.directory}': head {name!r} has shape {tuple(stored.shape)}, the task needs "
                f"{tuple(parameter.shape)} (another number of labels?)"
            )
        else:
            head[name] = stored
            parameter.data.copy_(stored)
    return head
