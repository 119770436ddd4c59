"""Base weights in 4 and 8 bits by bitsandbytes, on the CPU: training, workers, export, memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedrot
from fedrot.client import plan_group, train_group
from fedrot.config import ModelConfig, RunConfig, parse_config
from fedrot.engines.export import export
from fedrot.engines.setup import Federation, prepare
from fedrot.errors import ConfigError, ModelError
from fedrot.estimate.architectures import shape_of
from fedrot.estimate.memory import weight_bytes
from fedrot.evaluate import predict
from fedrot.evaluation.command import evaluate_directory
from fedrot.methods import Trainable
from fedrot.model import load_base
from fedrot.model.quantization import quantized_layers, settle
from tests.language import jsonl, rows, tiny_llama
from tests.ordinary import answer_losses, peft_parameters
from tests.overrides import recipe_with

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra `quantized`"
)
Make = Callable[..., RunConfig]
WIDTHS = pytest.mark.parametrize("bits", ["4bit", "8bit"])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Make:
    path = tmp_path_factory.mktemp("quantized")
    model, data = tiny_llama(path / "llama", width=64, inner=128), jsonl(path / "answers.jsonl", rows(120))

    def make(bits: str, **overrides: Any) -> RunConfig:
        found: dict[str, Any] = {
            "seed": 3,
            "model": {"path": str(model), "quantization": bits},
            "lora": {"rank": 2, "alpha": 4.0},
            "task": {"name": "generate", "data": str(data), "max_length": 32},
            "partition": {"kind": "natural-id", "partition_by": "who"},
            "train": {"lr": 0.1, "optimizer": "sgd", "local_steps": 3, "batch_size": 4, "device": "cpu"},
            "federation": {"rounds": 2},
            "output": {"report": False},
        }
        return recipe_with(found, overrides)

    return make


def start_of(federation: Federation) -> fedrot.Adapter:
    return federation.initial.map(lambda t: t + 0.01)


def trained(federation: Federation, group: list[int], model: int = 0) -> dict[int, dict[str, Tensor]]:
    """Every client's tensors after one round, by one of the crew's models."""
    config, data = federation.config, federation.train.data
    own = [federation.partition.rows[client] for client in group]
    plan = plan_group(group, own, config.train, seed=config.seed, round=1, lengths=data.lengths)
    result = train_group(
        federation.crew.models[model],
        federation.objective,
        data,
        start_of(federation),
        plan,
        config.train,
        Trainable(),
    )
    return {client: result.adapter.select(i).tensors() for i, client in enumerate(group)}


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=2e-5, atol=2e-6, msg=key)


@needs_bitsandbytes
@WIDTHS
def test_layers_multiply_by_the_weights_they_stand_for(recipe: Make, bits: str) -> None:
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    base = load_base(recipe(bits).model, (), kind="causal-lm")
    layer: Any = quantized_layers(base.module)["model.layers.0.mlp.up_proj"]
    if bits == "8bit":
        weight = layer.state.CB.float() * layer.state.SCB[:, None] / 127
    else:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    whole = load_base(recipe("none").model, (), kind="causal-lm").module.get_submodule(
        "model.layers.0.mlp.up_proj"
    )
    off = (weight - whole.weight).norm() / whole.weight.norm()  # pyright: ignore
    assert off < (0.01 if bits == "8bit" else 0.1)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    for grad in (False, True):
        mine = x.clone().requires_grad_(grad)
        out = layer(mine)
        torch.testing.assert_close(out, x @ weight.T, rtol=1e-5, atol=1e-6)
        if grad:
            out.sum().backward()
            torch.testing.assert_close(mine.grad, weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)


@needs_bitsandbytes
@WIDTHS
def test_clients_in_a_stack_learn_what_they_learn_alone(recipe: Make, bits: str) -> None:
    federation = prepare(recipe(bits, train__checkpointing=bits == "8bit"))
    assert len(quantized_layers(federation.base.module)) == 3 * 7
    together = trained(federation, [2, 0, 1])
    # Evaluation in between must not change the format of the weights.
    predict(federation.crew, federation.objective, start_of(federation), federation.test.data, batch=16)
    for client in range(3):
        [alone] = trained(federation, [client]).values()
        assert_near(together[client], alone)
        assert all(not torch.equal(t, alone[key]) for key, t in start_of(federation).tensors().items())


@needs_bitsandbytes
@WIDTHS
def test_workers_share_the_weights_and_learn_the_same(recipe: Make, bits: str) -> None:
    federation = prepare(recipe(bits, federation__workers=2))
    assert len(federation.crew.models) == 2
    assert_near(trained(federation, [1], model=0)[1], trained(federation, [1], model=1)[1])
    one, other = (quantized_layers(model.module) for model in federation.crew.models)
    for name, layer in one.items():
        mine: Any = layer
        theirs: Any = other[name]
        kept = "state" if bits == "8bit" else "quant_state"
        assert mine is not theirs
        assert mine.weight is theirs.weight
        assert getattr(mine, kept) is getattr(theirs, kept)


@needs_bitsandbytes
@WIDTHS
def test_a_step_is_that_of_peft_on_the_same_quantised_base(recipe: Make, bits: str) -> None:
    """Losses, gradients and results of PEFT's own layers around those of bitsandbytes, torch's optimiser."""
    from peft import LoraConfig, get_peft_model

    config = recipe(bits, lora__target_modules=["q_proj", "v_proj", "down_proj"], train__clip="off")
    federation = prepare(config)
    data, start = federation.train.data, start_of(federation)
    mine = trained(federation, [1])[1]
    model = federation.model
    batch = data.batch(torch.arange(6))
    held = model.load(start.expand(1), a=True, b=True)
    assert batch.asked is not None
    loss = federation.objective.losses(model, batch, None).sum() / len(batch.asked.place)
    loss.backward()
    gradients = {key: tensor.grad for key, tensor in held.tensors().items()}
    model.close()
    settings = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    peft: Any = get_peft_model(federation.base.module, settings)  # pyright: ignore[reportArgumentType]
    parameters = peft_parameters(peft, start)
    optimizer = torch.optim.SGD(parameters, lr=config.train.lr)
    own, lengths = [federation.partition.rows[1]], data.lengths
    plan = plan_group([1], own, config.train, seed=config.seed, round=1, lengths=lengths)

    def losses(picked: Tensor) -> Tensor:
        asked = data.batch(picked.flatten())
        assert asked.asked is not None
        labels = torch.full_like(asked.input_ids, -100).flatten()
        labels[asked.asked.place] = asked.input_ids.flatten()[asked.asked.place]
        inputs = {"input_ids": asked.input_ids, "attention_mask": asked.attention_mask}
        return peft(**inputs, labels=labels.view_as(asked.input_ids)).loss

    theirs = losses(torch.arange(6))
    theirs.backward()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    for (key, gradient), parameter in zip(gradients.items(), parameters, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient[0], parameter.grad, rtol=1e-4, atol=1e-6, msg=key)
    for picked in plan.rows:
        optimizer.zero_grad()
        losses(picked).backward()
        optimizer.step()
    for key, parameter in zip(start.tensors(), parameters, strict=True):
        torch.testing.assert_close(mine[key], parameter.detach(), rtol=1e-4, atol=1e-5, msg=key)


@needs_bitsandbytes
@WIDTHS
def test_a_run_ends_in_an_adapter_that_peft_puts_on_the_quantised_base(
    recipe: Make, tmp_path: Path, bits: str
) -> None:
    from peft import PeftModel

    config = recipe(bits, federation__rounds=3)
    result = fedrot.run(config, out=tmp_path / "run")
    perplexities = [record["perplexity"] for record in result.records]
    assert perplexities[-1] < perplexities[0]
    federation = prepare(config)
    data = federation.test.data
    observed = predict(federation.crew, federation.objective, result.adapter, data, batch=16)
    federation.model.close()
    peft = PeftModel.from_pretrained(
        load_base(config.model, (), kind="causal-lm").module, tmp_path / "run/adapter"
    )
    settle(peft)
    torch.testing.assert_close(observed[:, 0], answer_losses(peft, data), rtol=1e-4, atol=1e-4)
    [scored] = evaluate_directory(tmp_path / "run", ["perplexity"])
    assert scored.scores["perplexity"] == pytest.approx(perplexities[-1], rel=1e-5)


@needs_bitsandbytes
def test_a_quantised_run_is_merged_with_whole_weights(recipe: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = recipe("4bit")
    result = fedrot.run(config, out=tmp_path / "run")
    merged = AutoModelForCausalLM.from_pretrained(export(tmp_path / "run", merge=True)).eval()
    federation = prepare(
        config.model_copy(update={"model": config.model.model_copy(update={"quantization": "none"})})
    )
    data = federation.test.data
    observed = predict(federation.crew, federation.objective, result.adapter, data, batch=16)
    torch.testing.assert_close(observed[:, 0], answer_losses(merged, data), rtol=1e-4, atol=1e-4)


@needs_bitsandbytes
@WIDTHS
def test_the_base_takes_the_memory_that_was_estimated(recipe: Make, bits: str) -> None:
    config = recipe(bits)
    base = load_base(config.model, (), kind="causal-lm")
    held = sum(parameter.nbytes for parameter in base.module.parameters())
    beside = 0
    for layer in quantized_layers(base.module).values():
        whole: Any = layer
        if bits == "8bit":
            beside += whole.state.SCB.nbytes
            continue
        state = whole.weight.quant_state
        beside += state.absmax.nbytes + state.state2.absmax.nbytes
    # The second constant of a layer covers 256 blocks, and small layers have fewer; of 8-bit layers the estimate leaves
    # out 4 bytes a row.
    spare = 0.0 if bits == "4bit" else beside
    estimated = weight_bytes(config, shape_of(config, 0)) + spare
    assert held + beside == pytest.approx(estimated, rel=5e-3)


@needs_bitsandbytes
def test_the_head_of_a_classifier_stays_whole_and_is_trained(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    model = tiny_llama(tmp_path / "encoder")  # for its tokenizer
    settings = BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    torch.manual_seed(0)
    BertForSequenceClassification(settings).save_pretrained(model)
    table = [{"text": f"{'apple' if n % 2 else 'river'} {n} stone", "label": "ab"[n % 2]} for n in range(80)]
    config = parse_config(
        {
            "model": {"path": str(model), "quantization": "4bit"},
            "lora": {"rank": 2, "alpha": 4.0},
            "task": {"name": "classify", "data": str(jsonl(tmp_path / "rows.jsonl", table))},
            "train": {"lr": 0.01, "device": "cpu"},
            "federation": {"rounds": 2, "clients": 2},
            "output": {"report": False},
        }
    )
    federation = prepare(config)
    assert set(federation.initial.head) == {"classifier.weight", "classifier.bias"}
    assert len(quantized_layers(federation.base.module)) == 2 * 6 + 1  # with the pooler
    federation.model.close()
    result = fedrot.run(config, out=tmp_path / "run")
    head = result.adapter.head["classifier.weight"]
    assert head.shape == (2, 64)
    assert not torch.equal(head, federation.initial.head["classifier.weight"])


@needs_bitsandbytes
def test_what_quantised_weights_cannot_do_is_refused(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.quantization = '4bit': method 'flora' changes the base weights"
    ):
        prepare(recipe("4bit", method__name="flora"))
    narrow = tiny_llama(tmp_path / "narrow", width=64, inner=96)
    with pytest.raises(ModelError, match=r"'model\.layers\.0\.mlp\.down_proj' reads 96 numbers"):
        prepare(recipe("4bit", model__path=str(narrow)))
    with pytest.raises(ModelError, match=r"lora\.modules_to_save reaches 'model\.layers\.0\.mlp\.up_proj'"):
        prepare(recipe("4bit", lora__modules_to_save=["model.layers.0.mlp.up_proj"]))


def test_weights_of_a_gguf_file_are_not_quantised() -> None:
    pytest.importorskip("gguf")
    with pytest.raises(ConfigError, match=r"weights that it reads from a GGUF file \(small\.gguf\)"):
        load_base(ModelConfig(path="/nowhere/small.gguf", quantization="4bit"), (), kind="causal-lm")


def test_a_missing_package_is_named_with_its_extra(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else there(name, *rest),
    )
    with pytest.raises(
        ModelError, match=r"bitsandbytes is not installed; run: pip install 'fedrot\[quantized\]'"
    ):
        prepare(recipe("8bit"))
