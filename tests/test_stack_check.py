"""Models in which clients of one stack would not stay apart are refused, others are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.config import RunConfig
from fedrot.engines.setup import prepare
from fedrot.errors import ConfigError
from tests.shapes import tokenizer

Make = Callable[..., RunConfig]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and queries also read a table of relative positions, as in DeBERTa v3."""
    from transformers import DebertaV2Config, DebertaV2Model

    path = tmp_path_factory.mktemp("deberta")
    made: Any = tokenizer("deberta")
    made.save_pretrained(path)
    positions: dict[str, Any] = {
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DebertaV2Model(
            DebertaV2Config(vocab_size=len(made), pad_token_id=0, **SIZES, **positions)
        ).save_pretrained(path)
    return path


def test_layers_that_read_a_table_of_positions_want_one_client_at_a_time(recipe: Make, deberta: Path) -> None:
    model = {"path": str(deberta), "pooling": "mean"}
    with pytest.raises(
        ConfigError, match=r"group_size = 'auto'.*other's factors at 'backbone\.encoder.*group_size = 1"
    ):
        prepare(recipe(model=model, lora__target_modules=["query_proj", "value_proj"]))
    prepare(recipe(model=model, lora__target_modules=["query_proj", "value_proj"], federation__group_size=1))
    prepare(recipe(model=model, lora__target_modules=["value_proj"]))


def test_other_models_pass_and_hold_nothing_afterwards(recipe: Make) -> None:
    federation = prepare(recipe())
    assert federation.group_size > 1
    assert federation.crew.lead.loaded is None
