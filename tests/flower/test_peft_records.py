"""PEFT adapters become records and come back with the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import BertConfig, BertForSequenceClassification

from fedrot.errors import AdapterError, ModelError
from fedrot.flower import peft_to_record, record_to_peft

TOKENS = torch.arange(24).reshape(2, 12)


def make_base() -> torch.nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
    ).eval()


def make_model(**options: Any) -> PeftModel:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"} | options
    model = get_peft_model(make_base(), LoraConfig(**lora))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws))
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}}]
)
@pytest.mark.parametrize("source", ["model", "directory"])
def test_an_adapter_that_went_through_a_record_gives_the_same_logits(
    tmp_path: Path, options: dict[str, Any], source: str
):
    model = make_model(**options)
    model.save_pretrained(tmp_path / "first")
    given = model if source == "model" else tmp_path / "first"
    written = record_to_peft(peft_to_record(given), tmp_path / "second", like=given)
    loaded = PeftModel.from_pretrained(make_base(), written).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert not torch.equal(logits(model), logits(make_base()))


def test_keys_are_those_of_peft_in_the_models_order():
    model = make_model()
    state = get_peft_model_state_dict(model)
    record = peft_to_record(model)
    assert list(record) == list(state)
    assert all(np.array_equal(record[key].numpy(), tensor.detach().numpy()) for key, tensor in state.items())


def test_keys_with_the_adapters_name_are_understood(tmp_path: Path):
    model = make_model()
    record = ArrayRecord({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    assert any(".default." in key for key in record)
    loaded = PeftModel.from_pretrained(make_base(), record_to_peft(record, tmp_path, like=model)).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_half_precision_is_written_as_float32(tmp_path: Path):
    model = make_model()
    half = ArrayRecord({key: Array(a.numpy().astype(np.float16)) for key, a in peft_to_record(model).items()})
    loaded = PeftModel.from_pretrained(make_base(), record_to_peft(half, tmp_path, like=model)).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-2, atol=1e-2)


def changed(record: ArrayRecord, **arrays: Any) -> ArrayRecord:
    first = next(iter(record))
    new = {first if key == "first" else key: value for key, value in arrays.items()}
    return ArrayRecord({k: v for k, v in {**record, **new}.items() if v is not None})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"first": None}, r"holds 9 arrays.* 10: the record lacks 'base_model.*lora_A.weight'"),
        ({"other": Array(np.zeros(2))}, r"the record alone has 'other'"),
        ({"first": Array(np.zeros((2, 16), np.float32))}, r"shape \(2, 16\), expected.*\(4, 16\)"),
        ({"first": Array(np.zeros((4, 16), np.int64))}, r"is int64 of shape"),
        ({"first": Array(np.full((4, 16), np.nan, np.float32))}, r"not finite"),
        ({"first": Array("float32", (4, 16), "numpy.ndarray", b"junk")}, r"not in NumPy's format"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, arrays: dict[str, Any], message: str
):
    model = make_model()
    with pytest.raises(AdapterError, match=message):
        record_to_peft(changed(peft_to_record(model), **arrays), tmp_path / "new", like=model)
    assert not (tmp_path / "new").exists()


def test_a_configuration_that_contradicts_its_tensors_is_refused(tmp_path: Path):
    make_model().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (({"r": 3}, "has rank 4, but"), ({"lora_alpha": 0}, "expected a positive number")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ModelError, match=message):
            peft_to_record(tmp_path)


def test_what_is_no_lora_adapter_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="expected a PEFT directory"):
        peft_to_record(tmp_path)
    with pytest.raises(ModelError, match=r"is a BertForSequenceClassification: expected the directory"):
        peft_to_record(make_base())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="use_dora = True"):
        peft_to_record(make_model(use_dora=True))
