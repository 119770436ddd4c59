"""The ordinary way: plain PEFT and transformers, which stacked training and exported adapters are held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedrot.core import Adapter
from fedrot.tasks.tokens import EncodedTokens


def peft_parameters(peft: nn.Module, start: Adapter) -> list[nn.Parameter]:
    """The trained parameters of a PEFT model, in the order of `start.tensors()`, set to what `start` holds."""
    parameters = dict(peft.named_parameters())
    mapped: dict[str, Tensor] = {}
    for site, factors in start.sites.items():
        mapped[f"base_model.model.{site}.lora_A.default.weight"] = factors.a
        mapped[f"base_model.model.{site}.lora_B.default.weight"] = factors.b
    for name, tensor in start.head.items():
        module, _, leaf = name.rpartition(".")
        mapped[f"base_model.model.{module}.modules_to_save.default.{leaf}"] = tensor
    with torch.no_grad():
        for name, tensor in mapped.items():
            parameters[name].copy_(tensor)
    assert {name for name, p in parameters.items() if p.requires_grad} == mapped.keys()
    return [parameters[name] for name in mapped]


@torch.no_grad()
def answer_losses(module: Any, data: EncodedTokens) -> Tensor:
    """`(n,)` loss of every conversation's answers by a language model's own forward pass."""
    batch = data.batch(torch.arange(len(data)))
    assert batch.asked is not None
    logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    target = batch.input_ids.flatten()[batch.asked.place]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1)[batch.asked.place - 1], target, reduction="none"
    )
    return torch.zeros(len(data)).index_add(0, batch.asked.example, losses)
