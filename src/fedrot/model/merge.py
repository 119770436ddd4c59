"""An adapter added to the weights of its base model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.errors import ModelError
from fedrot.model.base import BaseModel
from fedrot.model.dense import facing
from fedrot.model.exchange import transformers_class
from fedrot.model.peft_format import folded
from fedrot.model.pooled import WEIGHTS
from fedrot.model.words import CARD


@torch.no_grad()
def merged(base: BaseModel, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """The base model's state with `scale * b @ a` and residual added and the head replaced, tensor by tensor."""
    sites = folded(adapter)
    for name, tensor in base.module.state_dict().items():
        site = name.removesuffix(".weight")
        if site in sites and site != name:
            factors, layer = sites[site], base.module.get_submodule(site)
            sum_ = facing(layer, tensor).float().addmm(factors.b, factors.a, alpha=adapter.scale)
            yield name, facing(layer, sum_).to(tensor.dtype).contiguous()
        else:
            yield name, adapter.head.get(name, tensor).to(tensor.dtype)


def save_merged(directory: Path, base: BaseModel, adapter: Adapter) -> None:
    """Write the merged model (`save_pretrained` layout), its tokenizer or image processor, and how to load it.

    Raises:
        ModelError: the base model is quantised.
    """
    import safetensors.torch

    if base.quantized:
        raise ModelError(
            f"model.path = {base.path!r}: an update cannot be added to quantised weights; load the base model with "
            "model.quantization = 'none' to merge, or use the adapter as it is"
        )
    module: Any = base.module
    if base.pooling != "model":
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous().cpu() for name, tensor in merged(base, adapter)}
        safetensors.torch.save_file(state, directory / WEIGHTS)
        module.config.save_pretrained(directory)
        facts = {"pooling": base.pooling, "labels": list(base.labels)}
        (directory / CARD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    else:
        if base.labels:
            module.config.id2label = dict(enumerate(base.labels))
            module.config.label2id = {label: index for index, label in enumerate(base.labels)}
        module.save_pretrained(directory, state_dict=dict(merged(base, adapter)))
    base.processor.save_pretrained(directory)
    (directory / "README.md").write_text(_card(base), "utf-8")


def _card(base: BaseModel) -> str:
    labels = f", labels {', '.join(base.labels)}" if base.labels else ""
    if base.pooling == "model":
        name = transformers_class(base.kind)
        library, remark = "transformers", "It loads with transformers alone."
        load = f'from transformers import {name}\n\nmodel = {name}.from_pretrained("<this directory>")'
    else:
        library = "fedrot"
        name = "PooledClassifier"
        load = f'from fedrot.model import {name}\n\nmodel = {name}.from_pretrained("<this directory>")'
        remark = (
            f"Its classifier reads hidden states pooled by `{base.pooling}`, for which transformers has no class: its "
            f'own classes would fill the model with random weights. `model.path = "<this directory>"` with '
            f'`model.pooling = "{base.pooling}"` fine-tunes it further.'
        )
    return (
        f"---\nlibrary_name: {library}\n---\n"
        f"`{base.path}` with a LoRA adapter added to its weights by fedrot{labels}.\n\n"
        f"```python\n{load}\n```\n\n{remark}\n"
    )
