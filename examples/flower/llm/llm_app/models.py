"""The model and its learning rate. A tiny random Llama takes the place of a downloaded one."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from llm_app.dataset import ALPHABET


def get_model(config: dict[str, Any]) -> PeftModel:
    torch.manual_seed(0)  # in place of from_pretrained: the same weights for all
    size = int(config["model.hidden-size"])
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ALPHABET),
            hidden_size=size,
            intermediate_size=2 * size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,  # with LLaMA's 0.02 so small a random model hardly answers to its input
        )
    )
    lora = LoraConfig(
        r=int(config["model.lora.peft-lora-r"]),
        lora_alpha=int(config["model.lora.peft-lora-alpha"]),
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def cosine_annealing(current_round: int, total_rounds: int, lr_max: float, lr_min: float) -> float:
    """The learning rate of a round, from `lr_max` down to `lr_min`."""
    turn = math.pi * (current_round - 1) / max(1, total_rounds - 1)
    return lr_min + 0.5 * (lr_max - lr_min) * (1 + math.cos(turn))
