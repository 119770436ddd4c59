"""Models merged by fedrot as base models again, and checkpoints that are not whole."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import fedrot
from fedrot.config import LoraSettings, ModelConfig
from fedrot.core.adapter import Adapter, Factors
from fedrot.errors import ConfigError, ModelError
from fedrot.model import BaseModel, PooledClassifier, load_base, save_merged, save_peft
from fedrot.model.base import LANGUAGE
from fedrot.model.dense import sizes
from fedrot.model.sites import find_sites
from tests.shapes import build

LABELS = ["x", "y", "z"]
IDS = torch.randint(4, 250, (5, 7), generator=torch.Generator().manual_seed(0))
LORA = LoraSettings(rank=2, target_modules=["query", "dense"])


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def drawn(base: BaseModel) -> Adapter:
    noise = torch.Generator().manual_seed(7)
    sites: dict[str, Factors] = {}
    for site in find_sites(base, LORA):
        d_in, d_out = sizes(base.module.get_submodule(site))
        sites[site] = Factors(
            torch.randn(2, d_in, generator=noise), torch.randn(d_out, 2, generator=noise) / 10
        )
    head = {name: torch.randn(p.shape, generator=noise) for name, p in base.head_parameters().items()}
    return Adapter(sites, head, LORA.scale)


def merge(tiny_model: Path, out: Path, pooling: str) -> None:
    config = ModelConfig.model_validate({"path": str(tiny_model), "pooling": pooling})
    base = load_base(config, LABELS, seed=1)
    save_merged(out, base, drawn(base))


@pytest.mark.parametrize("pooling", ["model", "mean", "cls"])
def test_a_merged_model_is_a_base_model_with_the_same_logits(
    tiny_model: Path, tmp_path: Path, pooling: str
) -> None:
    from transformers import AutoModelForSequenceClassification

    merge(tiny_model, tmp_path / "merged", pooling)
    kind: Any = AutoModelForSequenceClassification if pooling == "model" else PooledClassifier
    expected = logits(kind.from_pretrained(tmp_path / "merged"))
    config = ModelConfig.model_validate({"path": str(tmp_path / "merged"), "pooling": pooling})
    again = load_base(config, LABELS, seed=99)
    torch.testing.assert_close(logits(again.module), expected)
    save_peft(tmp_path / "adapter", drawn(again), again, LORA, {})
    torch.testing.assert_close(logits(fedrot.load_base_for(tmp_path / "adapter")), expected)
    save_merged(tmp_path / "twice", again, drawn(again))
    assert not torch.allclose(logits(kind.from_pretrained(tmp_path / "twice")), expected, atol=0.1)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_its_readme_loads_it(tiny_model: Path, tmp_path: Path, pooling: str) -> None:
    merge(tiny_model, tmp_path / "merged", pooling)
    said = (tmp_path / "merged" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    (tmp_path / "load.py").write_text(code.replace("<this directory>", str(tmp_path / "merged")), "utf-8")
    found = logits(runpy.run_path(str(tmp_path / "load.py"))["model"])
    config = ModelConfig.model_validate({"path": str(tmp_path / "merged"), "pooling": pooling})
    torch.testing.assert_close(found, logits(load_base(config, LABELS).module))


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_head_of_other_labels_is_replaced_and_the_rest_stays(
    tiny_model: Path, tmp_path: Path, pooling: str
) -> None:
    merge(tiny_model, tmp_path, pooling)
    config = ModelConfig.model_validate({"path": str(tmp_path), "pooling": pooling})
    same, other, seeded = (
        load_base(config, labels, seed=seed).module.state_dict()
        for labels, seed in ((LABELS, 1), ([*LABELS, "w"], 1), ([*LABELS, "w"], 2))
    )
    assert other["classifier.weight"].shape[0] == 4
    assert not torch.equal(other["classifier.weight"], seeded["classifier.weight"])
    for name, tensor in same.items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, other[name]), name


def test_another_pooling_than_its_own_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    merge(tiny_model, tmp_path, "mean")
    for pooling in ("model", "cls"):
        config = ModelConfig.model_validate({"path": str(tmp_path), "pooling": pooling})
        with pytest.raises(
            ConfigError, match=rf"model\.pooling = '{pooling}': .* set model\.pooling = 'mean'$"
        ):
            load_base(config, LABELS)


def test_what_belongs_to_a_directory_that_is_no_adapter(tiny_model: Path, tmp_path: Path) -> None:
    merge(tiny_model, tmp_path / "mean", "mean")
    torch.testing.assert_close(
        logits(fedrot.load_base_for(tmp_path / "mean")),
        logits(PooledClassifier.from_pretrained(tmp_path / "mean")),
    )
    merge(tiny_model, tmp_path / "model", "model")
    with pytest.raises(ModelError, match="a whole model and no adapter; load it with transformers"):
        fedrot.load_base_for(tmp_path / "model")
    with pytest.raises(ModelError, match=r"expected a merged model .*loads with transformers alone"):
        PooledClassifier.from_pretrained(tmp_path / "model")
    (tmp_path / "fedrot.json").write_text('{"rounds": 3}', "utf-8")
    with pytest.raises(ModelError, match=r"fedrot\.json that says base_model, .*KeyError: 'base_model'"):
        fedrot.load_base_for(tmp_path)


def strip(path: Path, *parts: str, prefix: str = "") -> None:
    """Take tensors out of a checkpoint, or give all another name."""
    file = path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    kept = {
        prefix + name: tensor for name, tensor in state.items() if not any(part in name for part in parts)
    }
    safetensors.torch.save_file(kept, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("shape", "pooling"), [("bert", "model"), ("bert", "mean"), ("roberta", "model"), ("gpt2", "model")]
)
def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path, shape: str, pooling: str) -> None:
    path = build(shape, tmp_path)
    config = ModelConfig.model_validate({"path": str(path), "pooling": pooling})
    load_base(config, LABELS)
    strip(path, "pooler", "lm_head")  # a classifier needs neither
    load_base(config, LABELS)
    strip(path, "mlp.c_fc" if shape == "gpt2" else "intermediate.dense")
    with pytest.raises(
        ModelError, match=r"model\.path = .*: the weights lack 4 of the .*drawn at random; .*save_pretrained"
    ):
        load_base(config, LABELS)


def test_weights_under_other_names_are_refused(tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    load_base(ModelConfig(path=str(path)), (), kind=LANGUAGE)
    strip(path, "lm_head")
    with pytest.raises(ModelError, match=r"lack 1 of the .*\('lm_head\.weight'\)"):
        load_base(ModelConfig(path=str(path)), (), kind=LANGUAGE)
    load_base(ModelConfig(path=str(path)), LABELS)
    strip(path, prefix="backbone.")
    with pytest.raises(
        ModelError, match=r"'model\.embed_tokens\.weight', .*, \.\.\.\), which would be drawn"
    ):
        load_base(ModelConfig(path=str(path)), LABELS)
    vision = build("vit", tmp_path / "vit")
    strip(vision, "layernorm_after")
    with pytest.raises(ModelError, match="layernorm_after"):
        load_base(ModelConfig(path=str(vision)), LABELS, kind="image-classification")


def test_a_tied_output_layer_may_be_left_out(tmp_path: Path) -> None:
    path = build("qwen2", tmp_path)
    assert "lm_head.weight" not in safetensors.torch.load_file(path / "model.safetensors")
    load_base(ModelConfig(path=str(path)), (), kind=LANGUAGE)
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"]
