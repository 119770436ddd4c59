"""What a run will cost, said beforehand: parameters, memory, operations and bytes against real tiny models and runs."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fedrot.config import RunConfig, parse_config
from fedrot.engines.compat import method_of
from fedrot.engines.run import run
from fedrot.engines.setup import Federation, prepare
from fedrot.errors import ConfigError, ModelError
from fedrot.estimate import DEVICES, Device, forecast, group_that_fits, memory, shape_of
from fedrot.estimate.devices import GIB, UTILISATION
from fedrot.estimate.memory import activations, trained_numbers, weight_bytes
from fedrot.estimate.settings import PUBLISHED, read_settings
from fedrot.estimate.wire import messages
from fedrot.estimate.work import work
from fedrot.tasks.tokens import EncodedTokens
from fedrot.wire import encode
from tests.pictures import draw
from tests.shapes import build

Make = Callable[..., RunConfig]


def published(path: str, **sections: Any) -> RunConfig:
    data: dict[str, Any] = {
        "model": {"path": path},
        "task": {"data": "glue:mnli"},
        "federation": {"clients": 3},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return parse_config(data)


@pytest.mark.parametrize(
    ("path", "millions"),
    [
        ("FacebookAI/roberta-large", 355.363),
        ("meta-llama/Meta-Llama-3-8B", 7504.937),
        ("meta-llama/Llama-3.2-1B", 1235.821),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134.517),
        ("openai-community/gpt2", 124.442),
        ("google-t5/t5-small", 60.771),
        ("google/vit-base-patch16-224-in21k", 85.801),
    ],
)
def test_published_models_have_their_known_sizes(path: str, millions: float) -> None:
    """As classifiers: a decoder's output layer gives way to a head of 3 classes."""
    task = {"name": "image", "data": "digits"} if "vit" in path else {}
    shape = shape_of(published(path, task=task), 3)
    assert shape.parameters / 1e6 == pytest.approx(millions, abs=0.02)
    assert "published settings" in shape.source


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_parameters_and_sites_of_an_encoder_are_counted_right(recipe: Make, pooling: str) -> None:
    config = recipe(model__pooling=pooling, lora={"rank": 2, "target_modules": "all-linear"})
    federation = prepare(config)
    shape = shape_of(config, 3)
    assert shape.parameters == sum(p.numel() for p in federation.base.module.parameters())
    assert {layer.name for layer in shape.sites(config.lora)} == set(federation.initial.sites)
    assert trained_numbers(config, shape) == sum(t.numel() for t in federation.initial.tensors().values())


@pytest.mark.parametrize(
    ("kind", "tied"), [("llama", True), ("qwen2", False), ("mistral", False), ("qwen3", True)]
)
def test_parameters_of_a_decoder_are_counted_right(tmp_path: Path, kind: str, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "vocab_size": 64, "tie_word_embeddings": tied, "head_dim": 8}
    settings = AutoConfig.for_model(kind, **sizes, num_labels=3)
    settings.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(settings)
    shape = shape_of(published(str(tmp_path)), 3)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    modules = dict(model.named_modules())
    for layer in (*shape.layers, *shape.head):
        assert modules[layer.name].weight.shape == (layer.d_out, layer.d_in)
        assert (modules[layer.name].bias is not None) == layer.bias


def kept_by_a_step(federation: Federation) -> tuple[int, int]:
    """Bytes that a real step of two clients keeps, and its operations; texts padded to `task.max_length`."""
    config = federation.config
    model, base = federation.model, {p.data_ptr() for p in federation.base.module.parameters()}
    adapter = federation.initial.expand(2)
    held = model.load(adapter, a=True, b=True, head=True)
    ours = base | {tensor.data_ptr() for tensor in held.tensors().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    data, size = federation.train.data, 2 * config.train.batch_size
    longest = data.lengths.argsort(descending=True)[:size]
    padding = {"pad_to": config.task.max_length} if isinstance(data, EncodedTokens) else {}
    batch = data.batch(longest, **padding)
    seeds = torch.tensor([1, 2])
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        with model.dropout_seeds(seeds):
            loss = federation.objective.losses(model, batch, None).sum()
        total = sum(kept.values())
        loss.backward()
    model.close()
    return total, counter.get_total_flops()


@pytest.mark.parametrize(
    ("targets", "attention", "dropout", "layers"),
    [
        ("all-linear", "sdpa", 0.0, "all"),
        (["query", "value"], "eager", 0.1, "all"),
        ("all-linear", "eager", 0.0, "last:1"),
    ],
)
def test_activations_and_operations_are_near_those_of_a_real_step(
    recipe: Make, targets: Any, attention: str, dropout: float, layers: str
) -> None:
    """Within 20% of what autograd keeps and of what the operators count."""
    config = recipe(
        lora={"rank": 2, "target_modules": targets, "dropout": dropout, "layers": layers},
        model__attention=attention,
        task__max_length=32,
        train__batch_size=8,
    )
    check_a_step(config, prepare(config))


def check_a_step(config: RunConfig, federation: Federation) -> None:
    shape = shape_of(config, 3)
    kept, operations = kept_by_a_step(federation)
    tokens = 2 * config.train.batch_size * shape.length(config.task.max_length)
    said = tokens * activations(config, shape, shape.sites(config.lora))
    assert said == pytest.approx(kept, rel=0.2)
    if config.model.attention == "eager":  # the counter does not know the fused kernel of a CPU
        done = work(config, shape, clients=1, steps=1, evaluated=0)
        assert 2 * done.step == pytest.approx(operations, rel=0.2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Texts and conversations of nearly 32 tokens where tokens are bytes, so that batches are padded; and pictures."""
    folder, letters = tmp_path_factory.mktemp("sources"), random.Random(0)

    def text(size: int) -> str:
        return "".join(letters.choices("abcdefgh", k=size))

    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text(30 - row % 2), row % 3) for row in range(60))])
    # Half prompt, half answer, each with its end; the answer also with what opens it.
    said = [{"prompt": text(15 - row % 2), "response": text(14)} for row in range(14)]
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said), "utf-8")
    pictures = draw(folder / "pictures", 20)
    return {"classify": folder / "texts.csv", "generate": folder / "said.jsonl", "image": pictures}


@pytest.mark.parametrize(
    ("kind", "task", "targets", "layers", "attention"),
    [
        ("gpt2", "classify", "all-linear", "last:1", "sdpa"),
        ("gpt2", "generate", ["c_attn"], "all", "eager"),
        ("vit", "image", "all-linear", "all", "eager"),
        ("t5", "classify", ["q", "v"], "all", "sdpa"),
        ("t5", "classify", "all-linear", "last:1", "eager"),
        ("t5", "generate", "all-linear", "all", "sdpa"),
        ("t5-gated", "generate", ["q", "v"], "all", "eager"),
    ],
)
def test_other_architectures_are_counted_right_and_near_a_real_step(
    sources: dict[str, Path],
    tmp_path: Path,
    kind: str,
    task: str,
    targets: Any,
    layers: str,
    attention: str,
) -> None:
    limit = {} if task == "image" else {"max_length": 32}
    config = parse_config(
        {
            "model": {"path": str(build(kind, tmp_path)), "attention": attention},
            "lora": {"rank": 2, "target_modules": targets, "layers": layers},
            "task": {"name": task, "data": str(sources[task]), "validation_fraction": 0, **limit},
            "partition": {"kind": "iid"},
            "train": {"batch_size": 6, "device": "cpu"},
            "federation": {"clients": 2},
        }
    )
    federation = prepare(config)
    shape = shape_of(config, 3)
    assert shape.parameters == sum(p.numel() for p in federation.base.module.parameters())
    assert [layer.name for layer in shape.sites(config.lora)] == list(federation.initial.sites)
    assert trained_numbers(config, shape) == sum(t.numel() for t in federation.initial.tensors().values())
    adapter = federation.initial
    said = messages(config, shape, method_of(config), 2)
    assert said.first_down == 2 * len(encode(adapter, a=True, b=True, head=True))
    check_a_step(config, federation)
    assert any("32 tokens" in note or "5 tokens" in note for note in forecast(config, ()).notes)


@pytest.mark.parametrize("name", ["fedit", "ffa", "rolora", "fedrot"])
def test_bytes_are_those_that_a_run_records(recipe: Make, tmp_path: Path, name: str) -> None:
    config = recipe(method={"name": name}, federation={"clients": 3, "rounds": 3}, train__local_steps=1)
    records = run(config, out=tmp_path / "run").records
    said = messages(config, shape_of(config, 3), method_of(config), 3)
    assert (said.up, said.down) == tuple(sum(r[key] for r in records) for key in ("bytes_up", "bytes_down"))
    assert (said.first_up, said.first_down) == (records[0]["bytes_up"], records[0]["bytes_down"])


def test_memory_falls_with_precision_and_quantisation() -> None:
    sizes = []
    for precision in ("float32", "bfloat16"):
        config = published("roberta-large", train={"precision": precision})
        sizes.append(weight_bytes(config, shape_of(config, 3)))
    assert sizes[0] == 2 * sizes[1] == 4 * shape_of(config, 3).parameters


def test_the_group_that_fits_is_the_largest_one() -> None:
    config = published(
        "roberta-large", train={"batch_size": 16, "precision": "bfloat16"}, federation={"clients": 50}
    )
    shape, limit = shape_of(config, 3), 24 * GIB
    group = group_that_fits(config, shape, limit, 50)
    assert 1 <= group < 50
    assert memory(config, shape, group, chosen=50).total <= 0.8 * limit
    assert memory(config, shape, group + 1, chosen=50).total > 0.8 * limit
    assert group_that_fits(config, shape, GIB / 2, 50) == 0


def test_hours_are_operations_over_rate_and_utilisation() -> None:
    config = published("roberta-large", federation={"clients": 3, "rounds": 10})
    slow = Device("slow", 100 * GIB, {"float32": 1e12})
    found = forecast(config, (slow, Device("without", GIB, {"bfloat16": 1e12})))
    first, second = found.devices
    assert first.hours == pytest.approx(found.work.total / 1e12 / UTILISATION / 3600)
    assert second.hours is None
    assert second.group == 0
    assert found.work.tokens == 10 * 3 * 10 * 8 * 128
    assert any("published settings of roberta-large" in note for note in found.notes)


def test_a_recipe_that_leaves_clients_open_or_an_unknown_model_is_refused(tmp_path: Path) -> None:
    open_ = parse_config({"model": {"path": "roberta-large"}, "task": {"data": "tweets"}})
    with pytest.raises(ConfigError, match=r"federation\.clients: missing"):
        forecast(open_, DEVICES)
    with pytest.raises(ModelError, match=r"no published model of that name; .* smollm2-135m"):
        forecast(published("somewhere/else"), DEVICES)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelError, match="'mamba', whose layers are not known"):
        forecast(published(str(tmp_path)), DEVICES)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    with pytest.raises(ModelError, match="lacks 'intermediate_size'"):
        forecast(published(str(tmp_path)), DEVICES)


def test_settings_of_files_come_before_published_ones(recipe: Make) -> None:
    settings, source = read_settings(recipe().model.path)
    assert settings["hidden_size"] == 32
    assert source.endswith("config.json")
    assert read_settings("some/SmolLM2-135M")[0] is PUBLISHED["smollm2-135m"]
