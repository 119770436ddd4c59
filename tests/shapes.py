"""Tiny random models of the architectures that fedrot is tried on, and a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")


@dataclass(frozen=True)
class Shape:
    """An architecture: the class that is saved, its configuration, and what a tiny one of it looks like."""

    model: str
    config: str
    settings: Mapping[str, Any]
    texts: bool = True


WIDE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER = {**WIDE, "num_key_value_heads": 2, "max_position_embeddings": 64}
ENCODER = {**WIDE, "max_position_embeddings": 70}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64},
    **{
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    },
    **{"decoder_start_token_id": 3, "forced_eos_token_id": None},
}

GEMMA = {
    **{**DECODER, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8, "vocab_size": 260},
    "final_logit_softcapping": 2.0,
}

SHAPES: dict[str, Shape] = {
    "llama": Shape("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": Shape("Qwen2ForCausalLM", "Qwen2Config", {**DECODER, "tie_word_embeddings": True}),
    "qwen3": Shape("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 8}),
    "mistral": Shape("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 16}),
    "gpt2": Shape(
        "GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ),
    "opt": Shape(
        "OPTForCausalLM",
        "OPTConfig",
        {
            **{"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "max_position_embeddings": 64},
        },
    ),
    "t5": Shape("T5Model", "T5Config", T5),
    "t5-gated": Shape("T5Model", "T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5gemma": Shape(
        "T5GemmaForConditionalGeneration",
        "T5GemmaConfig",
        {"encoder": GEMMA, "decoder": GEMMA, "decoder_start_token_id": 2},
    ),
    "gemma2": Shape("Gemma2ForCausalLM", "Gemma2Config", GEMMA),
    "recurrent-gemma": Shape(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {
            **{**DECODER, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 32},
            **{"attention_window_size": 16, "logits_soft_cap": 2.0},
        },
    ),
    "granite": Shape("GraniteForCausalLM", "GraniteConfig", {**DECODER, "logits_scaling": 4.0}),
    "bart": Shape("BartForConditionalGeneration", "BartConfig", BART),
    "bert": Shape("BertModel", "BertConfig", ENCODER),
    "roberta": Shape("RobertaModel", "RobertaConfig", ENCODER),
    "distilbert": Shape(
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 70},
    ),
    "vit": Shape("ViTModel", "ViTConfig", {**WIDE, "image_size": 8, "patch_size": 4}, texts=False),
}


def tokenizer(name: str) -> Any:
    """Bytes as tokens, nothing learned. T5's puts an end token behind every sequence, GPT-2's has none to pad with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(signs)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if name.startswith(("t5", "bart")):
        made.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 3)])
    pad = {} if name == "gpt2" else {"pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]", **pad
    )


def build(name: str, path: Path) -> Path:
    """Save a tiny random model of that shape with its tokenizer or image processor."""
    import transformers

    shape = SHAPES[name]
    settings: dict[str, Any] = dict(shape.settings)
    if shape.texts:
        made = tokenizer(name)
        settings |= {"vocab_size": len(made), "pad_token_id": made.pad_token_id}
        settings |= {"bos_token_id": 2, "eos_token_id": 3}
        made.save_pretrained(path)
    else:
        size = settings["image_size"]
        transformers.ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, shape.model)(getattr(transformers, shape.config)(**settings))
        with torch.no_grad():  # larger than initial weights, so that every layer has a say
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
            if name == "bart":
                model.final_logits_bias.normal_()
    model.save_pretrained(path)
    return path
