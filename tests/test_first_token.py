"""Leaving out what the head does not see changes neither logits nor gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from fedrot.config import LoraSettings
from fedrot.core import Adapter
from fedrot.first_token import FAMILIES
from fedrot.model import BaseModel, PooledClassifier, initial_adapter
from fedrot.stacked import StackedModel

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "embedding_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "num_labels": 3,
}


def base(family: str, pooling: str) -> BaseModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        settings = AutoConfig.for_model(family, **SIZES)
        if pooling == "model":
            module: nn.Module = AutoModelForSequenceClassification.from_config(settings)
        else:
            module = PooledClassifier(AutoModel.from_config(settings), 3, pooling)
    module.requires_grad_(False).eval()
    return BaseModel(module, None, "tiny", ("a", "b", "c"), pooling, ("classifier",))


def clients(start: Adapter) -> Adapter:
    """Two that differ."""
    draw = torch.Generator().manual_seed(7)
    return start.expand(2).map(lambda t: t + 0.1 * torch.randn(t.shape, generator=draw))


def results(model: StackedModel, stack: Adapter, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    held = model.load(stack, a=True, b=True, head=True)
    logits = model.logits(batch)
    logits.square().sum().backward()
    gradients = {name: t.grad for name, t in held.tensors().items() if t.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("pooling", ["model", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_all_tokens(family: str, pooling: str) -> None:
    whole = base(family, pooling)
    start = initial_adapter(whole, LoraSettings(rank=2, target_modules="all-linear"), 1)
    model = StackedModel(whole, start)
    assert model.first_token is not None
    ids = torch.randint(1, 50, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([9, 3, 5, 9, 7, 1]).unsqueeze(1)).long()
    batch = SimpleNamespace(inputs={"input_ids": ids * mask, "attention_mask": mask}, padding=None)
    stack = clients(start)
    logits, gradients = results(model, stack, batch)
    model.first_token.remove()
    expected, all_tokens = results(model, stack, batch)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == all_tokens.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, all_tokens[name], rtol=1e-4, atol=1e-6)


def test_the_mean_over_tokens_dropout_and_other_models_leave_nothing_out() -> None:
    mean = base("bert", "mean")
    start = initial_adapter(mean, LoraSettings(rank=2), 1)
    assert StackedModel(mean, start).first_token is None
    first = base("bert", "cls")
    assert (
        StackedModel(first, initial_adapter(first, LoraSettings(rank=2), 1), dropout=0.1).first_token is None
    )


def test_a_closed_model_has_all_its_tokens_again() -> None:
    whole = base("bert", "cls")
    ids = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(1))
    model = StackedModel(whole, initial_adapter(whole, LoraSettings(rank=2), 1))
    backbone: Any = whole.module.get_submodule("backbone")
    assert backbone(input_ids=ids).last_hidden_state.shape[1] == 1
    model.close()
    assert backbone(input_ids=ids).last_hidden_state.shape[1] == 6
