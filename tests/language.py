"""A tiny random language model with a tokenizer of words, and small tables of prompts and answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

CHAT = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' <end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
NOUNS = ["apple", "river", "stone", "cloud", "horse", "garden", "window", "silver", "castle", "forest"]
VERBS = {"upper": str.upper, "twice": lambda word: f"{word} {word}", "echo": str}


def tiny_tokenizer(chat: bool = True) -> Any:
    """Words and punctuation, nothing learned; `<end>` ends a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        *NOUNS,
        *(word.upper() for word in NOUNS),
        *VERBS,
        *["the", "of", ":", "a", "long", "short", "say", "more"],
    ]
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>", "<system>"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
    )
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def tiny_llama(
    path: Path, *, chat: bool = True, layers: int = 3, seed: int = 0, width: int = 32, inner: int = 48
) -> Path:
    """A random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(chat)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
            )
        )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts such as `twice : river`, answers such as `river river`, and who asks."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        verb, words = draw.choice(list(VERBS)), draw.choices(NOUNS, k=draw.randint(1, 4))
        said = " ".join(words)
        answer = " ".join(VERBS[verb](word) for word in words)
        found.append(
            {"prompt": f"{verb} : {said} {'more ' * (number % 3)}".strip(), "completion": answer, "who": verb}
        )
    return found


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write one object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path
