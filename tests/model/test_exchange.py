"""Adapters written for PEFT: what PEFT computes from them equals dense arithmetic."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from fedrot.config import LoraSettings, ModelConfig
from fedrot.core.adapter import Adapter, Factors
from fedrot.errors import ModelError
from fedrot.model import (
    BaseModel,
    PooledClassifier,
    load_base,
    load_base_for,
    load_peft,
    save_merged,
    save_peft,
)
from fedrot.model.dense import sizes
from fedrot.model.sites import find_sites
from tests.shapes import build

IDS = torch.randint(4, 250, (5, 7), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    return load_base(ModelConfig(path=str(tiny_model), pooling="mean"), ["x", "y", "z"], seed=1)


def drawn(base: BaseModel, lora: LoraSettings, *, uneven: bool, residual: bool, head: bool = True) -> Adapter:
    """An adapter of random numbers, large enough to move every logit."""
    noise = torch.Generator().manual_seed(7)

    def factors(site: str, rank: int) -> Factors:
        d_in, d_out = sizes(base.module.get_submodule(site))
        a = torch.randn(rank, d_in, generator=noise)
        return Factors(a, torch.randn(d_out, rank, generator=noise) / 10)

    sites = find_sites(base, lora)
    ranks = [lora.rank + (number % 3 if uneven else 0) for number in range(len(sites))]
    own = {site: factors(site, rank) for site, rank in zip(sites, ranks, strict=True)}
    extra = {site: factors(site, 2) for site in sites[::2]} if residual else {}
    shapes = {name: p.shape for name, p in base.head_parameters().items()} if head else {}
    drawn_head = {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    return Adapter(own, drawn_head, lora.scale, extra)


def dense_logits(base: BaseModel, adapter: Adapter) -> Tensor:
    """`W + scale * (b a + b_res a_res)` in float64, formed whole."""
    module = copy.deepcopy(base.module).double()
    with torch.no_grad():
        for group in (adapter.sites, adapter.residual):
            for site, f in group.items():
                update, layer = adapter.scale * f.b.double() @ f.a.double(), module.get_submodule(site)
                module.get_parameter(f"{site}.weight").add_(
                    update if isinstance(layer, nn.Linear) else update.T
                )
        for name, tensor in adapter.head.items():
            module.get_parameter(name).copy_(tensor)
        return module(**BATCH).logits.float()


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize(
    ("uneven", "residual"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["plain", "unequal-ranks", "residual", "both"],
)
def test_peft_computes_the_dense_logits(
    base: BaseModel, tmp_path: Path, uneven: bool, residual: bool, rslora: bool
) -> None:
    lora = LoraSettings(rank=3, alpha=4.0, rslora=rslora, target_modules=["query", "value", "dense"])
    adapter = drawn(base, lora, uneven=uneven, residual=residual)
    save_peft(tmp_path, adapter, base, lora, {})
    expected = dense_logits(base, adapter)
    model = PeftModel.from_pretrained(load_base_for(tmp_path), str(tmp_path)).eval()
    with torch.no_grad():
        found = model(**BATCH).logits
        untouched = base.module(**BATCH).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (untouched - expected).abs().max() > 0.1, "the adapter was expected to matter"


def test_an_unchanged_form_is_stored_as_before(base: BaseModel, tmp_path: Path) -> None:
    lora = LoraSettings(rank=3, alpha=5.0, target_modules=["query"])
    save_peft(tmp_path, drawn(base, lora, uneven=False, residual=False), base, lora, {})
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"]) == (3, 5)
    assert not stored["rank_pattern"]
    assert not stored["alpha_pattern"]


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_merged_model_holds_the_residual(tiny_model: Path, tmp_path: Path, pooling: str) -> None:
    from transformers import AutoModelForSequenceClassification

    config = ModelConfig.model_validate({"path": str(tiny_model), "pooling": pooling})
    base = load_base(config, ["x", "y", "z"], seed=1)
    lora = LoraSettings(rank=2, target_modules=["query", "dense"])
    adapter = drawn(base, lora, uneven=True, residual=True)
    save_merged(tmp_path, base, adapter)
    if pooling == "model":
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    else:
        model = PooledClassifier.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**BATCH).logits, dense_logits(base, adapter), rtol=0, atol=1e-5)


def test_weights_that_lie_the_other_way_round_change_nothing(tmp_path: Path) -> None:
    """GPT-2's layers keep `(d_in, d_out)`; the factors are those of any dense layer."""
    from transformers import AutoModelForCausalLM

    path = str(build("gpt2", tmp_path / "base"))
    base = load_base(ModelConfig(path=path), (), kind="causal-lm")
    lora = LoraSettings(rank=3, alpha=4.0, target_modules=["c_attn", "c_fc"])
    adapter = drawn(base, lora, uneven=True, residual=True)
    expected = dense_logits(base, adapter)
    save_peft(tmp_path / "adapter", adapter, base, lora, {})
    save_merged(tmp_path / "merged", base, adapter)
    peft = PeftModel.from_pretrained(load_base_for(tmp_path / "adapter"), str(tmp_path / "adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        for model in (peft, merged, peft.merge_and_unload()):
            torch.testing.assert_close(model(**BATCH).logits, expected, rtol=0, atol=1e-4)
        assert (base.module(**BATCH).logits - expected).abs().max() > 0.1, (
            "the adapter was expected to matter"
        )
    even = drawn(base, lora, uneven=False, residual=False)
    save_peft(tmp_path / "even", even, base, lora, {})
    assert json.loads((tmp_path / "even" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    loaded = load_peft(tmp_path / "even", base, lora)
    assert all(torch.equal(t, even.tensors()[key]) for key, t in loaded.tensors().items())


def test_a_saved_adapter_starts_a_run_again(base: BaseModel, tmp_path: Path) -> None:
    lora = LoraSettings(rank=3, alpha=1 / 3, rslora=True, target_modules=["query", "value"])
    adapter = drawn(base, lora, uneven=False, residual=False)
    save_peft(tmp_path, adapter, base, lora, {})
    loaded = load_peft(tmp_path, copy.deepcopy(base), lora)
    loaded.check_like(adapter, "the copy")
    assert all(torch.equal(t, adapter.tensors()[key]) for key, t in loaded.tensors().items())


def test_a_run_refuses_an_adapter_of_unequal_ranks_and_says_what_helps(
    base: BaseModel, tmp_path: Path
) -> None:
    lora = LoraSettings(rank=3, target_modules=["query", "value"])
    save_peft(tmp_path, drawn(base, lora, uneven=True, residual=False), base, lora, {})
    with pytest.raises(ModelError, match=r"rank_pattern names 4 of them.*fedrot merge .* --rank 3 --out NEW"):
        load_peft(tmp_path, base, lora)


def test_a_run_refuses_an_adapter_with_a_trained_module_that_the_recipe_does_not_train(
    base: BaseModel, tmp_path: Path
) -> None:
    lora = LoraSettings(rank=3, target_modules=["query", "value"])
    adapter = drawn(base, lora, uneven=False, residual=False)
    more = replace(adapter, head={**adapter.head, "bert.pooler.dense.bias": torch.ones(4)})
    save_peft(tmp_path, more, base, lora, {})
    with pytest.raises(ModelError, match=r"holds 'bert\.pooler\.dense\.bias' .* lora\.modules_to_save"):
        load_peft(tmp_path, base, lora)


def edited(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, r"a IA3 adapter, expected LORA"),
        ({"use_dora": True}, r"uses use_dora = True"),
        ({"lora_bias": True}, r"uses lora_bias = True"),
        ({"bias": "all"}, r"bias = 'all' trains biases too"),
        ({"trainable_token_indices": [3]}, r"uses trainable_token_indices"),
        ({"an_option_of_the_future": 3}, r"uses an_option_of_the_future = 3"),
        ({"init_lora_weights": "pissa_niter_16"}, r"init_lora_weights = 'pissa_niter_16' changes the base"),
        ({"r": 5}, r"has rank 3, but adapter_config.json says 5 \(r, rank_pattern\)"),
        ({"lora_alpha": -1}, r"lora_alpha = -1 at .*expected a positive number"),
        ({"lora_alpha": 7}, r"alpha 7, rslora False, but the recipe has 3, 8\.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_variants_that_factors_do_not_describe_are_refused(
    base: BaseModel, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    lora = LoraSettings(rank=3, target_modules=["query"])
    save_peft(tmp_path, drawn(base, lora, uneven=False, residual=False), base, lora, {})
    edited(tmp_path, **changes)
    with pytest.raises(ModelError, match=said):
        load_peft(tmp_path, base, lora)


def test_pickled_weights_are_never_loaded(base: BaseModel, tmp_path: Path) -> None:
    lora = LoraSettings(rank=3, target_modules=["query"])
    save_peft(tmp_path, drawn(base, lora, uneven=False, residual=False), base, lora, {})
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"pickled .*never loaded.*safe_serialization=True"):
        load_peft(tmp_path, base, lora)
