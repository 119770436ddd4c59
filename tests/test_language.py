"""Language models: stacked, packed, recomputed, cached and quantised training, and what is exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedrot
from fedrot.client import plan_group, train_group
from fedrot.config import RunConfig, parse_config
from fedrot.engines.setup import Federation, prepare
from fedrot.errors import ConfigError, DataError, ModelError
from fedrot.evaluate import predict
from fedrot.evaluation.command import evaluate_directory
from fedrot.evaluation.options import Options
from fedrot.methods import Trainable
from fedrot.stacked import StackedLoRA
from tests.language import jsonl, rows, tiny_llama
from tests.ordinary import answer_losses, peft_parameters
from tests.overrides import recipe_with

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="module")
def spoken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    data = jsonl(tmp_path_factory.mktemp("data") / "answers.jsonl", rows(160))

    def make(**overrides: Any) -> RunConfig:
        recipe: dict[str, Any] = {
            "seed": 3,
            "model": {"path": str(model)},
            "lora": {"rank": 2, "alpha": 4.0},
            "task": {"name": "generate", "data": str(data), "max_length": 32},
            "partition": {"kind": "natural-id", "partition_by": "who"},
            "train": {"lr": 0.1, "optimizer": "sgd", "local_steps": 3, "batch_size": 4, "device": "cpu"},
            "federation": {"rounds": 2},
            "output": {"report": False},
        }
        return recipe_with(recipe, overrides)

    return make


def train(federation: Federation, groups: list[list[int]]) -> dict[int, dict[str, Tensor]]:
    """Every client's tensors after one round in float64, trained in the given groups."""
    federation.base.module.double()
    config, found = federation.config, dict[int, dict[str, Tensor]]()
    for group in groups:
        own = [federation.partition.rows[client] for client in group]
        lengths = federation.train.data.lengths
        plan = plan_group(group, own, config.train, seed=config.seed, round=1, lengths=lengths)
        start = federation.initial.map(lambda t: t.double() + 0.01)
        result = train_group(
            federation.model,
            federation.objective,
            federation.train.data,
            start,
            plan,
            config.train,
            Trainable(),
            federation.train.cache,
        )
        found |= {client: result.adapter.select(i).tensors() for i, client in enumerate(group)}
    return found


def assert_same(one: dict[int, dict[str, Tensor]], other: dict[int, dict[str, Tensor]]) -> None:
    assert one.keys() == other.keys()
    for client, tensors in one.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(
                tensor, other[client][key], rtol=1e-8, atol=1e-9, msg=f"{client} {key}"
            )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train__accumulate": 2, "train__optimizer": "adamw", "train__lr": 0.01},
        {"lora__dropout": 0.3},
        {"train__local_steps": None, "train__local_epochs": 1},
        {"task__packing": True},
        {"train__checkpointing": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "plain",
)
def test_any_group_size_gives_the_same_adapters(spoken: Make, options: dict[str, Any]) -> None:
    federation = prepare(spoken(**options))
    assert federation.clients == 3
    alone = train(federation, [[0], [1], [2]])
    assert_same(alone, train(federation, [[0, 1, 2]]))
    assert_same(alone, train(federation, [[2, 0], [1]]))
    start = federation.initial.map(lambda t: t.double() + 0.01).tensors()
    assert all(not torch.equal(tensor, start[key]) for key, tensor in alone[0].items())


@pytest.mark.parametrize(
    "option", [{"task__packing": True}, {"train__checkpointing": True}, {"train__cache_frozen": True}]
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_saves_time_or_memory_changes_no_number(
    spoken: Make, option: dict[str, Any], attention: str
) -> None:
    common: dict[str, Any] = {"lora__layers": "last:2", "model__attention": attention}
    plain, changed = prepare(spoken(**common)), prepare(spoken(**common, **option))
    if changed.train.cache is not None:  # its states are in float32, the reference is not
        one, other = round_in_float32(plain), round_in_float32(changed)
        for client, tensors in one.items():
            for key, tensor in tensors.items():
                torch.testing.assert_close(tensor, other[client][key], rtol=2e-5, atol=2e-5, msg=key)
        return
    assert_same(train(plain, [[0, 1, 2]]), train(changed, [[0, 1, 2]]))


def round_in_float32(federation: Federation) -> dict[int, dict[str, Tensor]]:
    config = federation.config
    plan = plan_group(range(3), federation.partition.rows, config.train, seed=3, round=1)
    start = federation.initial.map(lambda t: t + 0.01)
    data, cache = federation.train.data, federation.train.cache
    result = train_group(
        federation.model, federation.objective, data, start, plan, config.train, Trainable(), cache
    )
    return {client: result.adapter.select(client).tensors() for client in range(3)}


def test_a_packed_and_cached_batch_is_the_plain_one(spoken: Make) -> None:
    both = {"task__packing": True, "train__cache_frozen": True, "lora__layers": "last:1"}
    plain, changed = (
        round_in_float32(prepare(spoken(lora__layers="last:1"))),
        round_in_float32(prepare(spoken(**both))),
    )
    for client, tensors in plain.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, changed[client][key], rtol=2e-5, atol=2e-5, msg=key)


def test_stacked_training_equals_an_ordinary_peft_loop(spoken: Make) -> None:
    """Their own loss on labels of -100 where nothing is asked, PEFT's factors, torch's optimiser and clipping."""
    from peft import LoraConfig, get_peft_model

    config = spoken(lora__target_modules=["q_proj", "v_proj"], train__optimizer="adamw", train__lr=0.01)
    federation = prepare(config)
    mine = train(federation, [[0, 1, 2]])[1]
    start = federation.initial.map(lambda t: t.double() + 0.01)
    own, lengths = [federation.partition.rows[1]], federation.train.data.lengths
    plan = plan_group([1], own, config.train, seed=config.seed, round=1, lengths=lengths)
    federation.model.close()
    peft = get_peft_model(
        federation.base.module,
        LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    ).eval()
    peft.double()
    trained = peft_parameters(peft, start)
    optimizer = torch.optim.AdamW(trained, lr=config.train.lr, weight_decay=0.0)
    for picked in plan.rows:
        batch = federation.train.data.batch(picked.flatten())
        assert batch.asked is not None
        labels = torch.full_like(batch.input_ids, -100).flatten()
        labels[batch.asked.place] = batch.input_ids.flatten()[batch.asked.place]
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        loss = peft(**inputs, labels=labels.view_as(batch.input_ids)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for key, parameter in zip(start.tensors(), trained, strict=True):
        # transformers takes the loss in float32
        torch.testing.assert_close(mine[key], parameter.detach(), rtol=1e-4, atol=1e-5, msg=key)


def test_perplexity_is_that_of_transformers(spoken: Make) -> None:
    federation = prepare(spoken())
    data = federation.test.data
    observed = predict(federation.crew, federation.objective, federation.initial, data, batch=7)
    scores = federation.objective.metrics(observed, data)
    batch = data.batch(torch.arange(len(data)))
    assert batch.asked is not None
    logits = federation.base.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    picked = logits.flatten(0, 1)[batch.asked.place - 1]
    target = batch.input_ids.flatten()[batch.asked.place]
    expected = nn.functional.cross_entropy(picked, target)
    assert scores["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(float(expected.exp()), rel=1e-5)
    assert scores["token_accuracy"] == pytest.approx(float((picked.argmax(1) == target).double().mean()))


def test_a_model_that_caps_its_scores_is_run_to_its_end(
    spoken: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma caps them; here nothing is changed, so that both ways must agree."""
    federation = prepare(spoken())
    data = federation.test.data
    head = federation.model.token_head
    assert head is not None
    fast = predict(federation.crew, federation.objective, federation.initial, data, batch=7)
    head.plain = False
    torch.testing.assert_close(
        predict(federation.crew, federation.objective, federation.initial, data, batch=7),
        fast,
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_run_ends_in_an_adapter_that_peft_loads(spoken: Make, tmp_path: Path) -> None:
    from peft import PeftModel

    config = spoken(federation__rounds=3, output__report=True)
    result = fedrot.run(config, out=tmp_path / "run")
    perplexities = [record["perplexity"] for record in result.records]
    assert perplexities[-1] < perplexities[0]
    assert result.summary["metric"] == {"name": "perplexity", "better": "lower"}
    best = min(result.records, key=lambda record: record["validation_perplexity"])
    assert result.summary["best_validation_round"] == best["round"]
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "fedrot.load_base_for" in page
    assert "ForSequenceClassification" not in page
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert settings["task_type"] == "CAUSAL_LM"
    federation = prepare(config)
    data = federation.test.data
    observed = predict(federation.crew, federation.objective, result.adapter, data, batch=16)
    federation.model.close()
    peft = PeftModel.from_pretrained(
        fedrot.load_base_for(tmp_path / "run" / "adapter"), str(tmp_path / "run" / "adapter")
    ).eval()
    torch.testing.assert_close(observed[:, 0], answer_losses(peft, data), rtol=1e-4, atol=1e-4)


def test_a_merged_model_says_the_same(spoken: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from fedrot.engines.export import export

    result = fedrot.run(spoken(method__name="flora"), out=tmp_path / "run")
    merged = AutoModelForCausalLM.from_pretrained(export(tmp_path / "run", merge=True)).eval()
    federation = prepare(spoken())
    data = federation.test.data
    observed = predict(federation.crew, federation.objective, result.adapter, data, batch=16)
    torch.testing.assert_close(observed[:, 0], answer_losses(merged, data), rtol=1e-4, atol=1e-4)


class EightBit(nn.Linear):
    """A layer whose weights are small integers, as bitsandbytes has them, with its own way of multiplying."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        step = layer.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((layer.weight.detach() / step).round().to(torch.int8), requires_grad=False)
        self.bias, self.step = layer.bias, step

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input) * self.step.to(input), self.bias)


def test_adapters_on_quantised_layers_get_the_gradient_of_the_weights_they_stand_for() -> None:
    draw = torch.Generator().manual_seed(1)
    layer = nn.Linear(6, 5)
    small = EightBit(layer)
    plain = nn.Linear(6, 5)
    plain.weight.data, plain.bias.data = small.weight.float() * small.step, layer.bias.detach()
    x, a, b = (torch.randn(shape, generator=draw) for shape in ((4, 3, 6), (2, 2, 6), (2, 5, 2)))
    found = []
    for base in (small, plain.requires_grad_(False)):
        stacked = StackedLoRA(base, 0)
        stacked.scale = 0.5
        own = x.clone().requires_grad_()
        stacked.a, stacked.b = a.clone().requires_grad_(), b.clone().requires_grad_()
        out = stacked(own)
        out.square().sum().backward()
        found.append((out, own.grad, stacked.a.grad, stacked.b.grad))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_wrong_recipes_are_refused_before_anything_is_read(spoken: Make) -> None:
    with pytest.raises(ConfigError, match=r"model\.pooling = 'mean': a language model has nothing to pool"):
        prepare(spoken(model__pooling="mean"))
    with pytest.raises(ConfigError, match=r"output\.probe = true: a linear probe needs classes"):
        prepare(spoken(output__probe=True))
    with pytest.raises(ModelError, match=r"cannot be loaded as a language model"):
        prepare(spoken(model__path="nowhere/at-all"))


def test_dropped_conversations_are_counted_and_dealt_to_nobody(spoken: Make, tmp_path: Path) -> None:
    every = prepare(spoken())
    lengths = {name: split.data.offsets.diff() for name, split in every.splits.items()}  # pyright: ignore
    limit = int(lengths["train"].median())
    federation = prepare(spoken(task__max_length=limit, task__overlong="drop"))
    for name, split in federation.splits.items():
        kept = int((lengths[name] <= limit).sum())
        assert 0 < kept < len(lengths[name])
        assert len(split.data) == kept
        lost = len(lengths[name]) - kept
        note = f"{lost} of {len(lengths[name])} examples of {name} dropped: longer than task.max_length = {limit}"
        assert note in federation.notes
    assert sum(map(len, federation.partition.rows)) == len(federation.train.data)
    assert len(federation.task.test) == len(federation.test.data)
    with pytest.raises(
        DataError, match=r"all \d+ examples of train have more tokens than task\.max_length = 3"
    ):
        prepare(spoken(task__max_length=3, task__overlong="drop"))
    told = fedrot.run(spoken(task__max_length=limit, task__overlong="drop"), out=tmp_path / "run")
    [result] = evaluate_directory(tmp_path / "run", ["perplexity"], Options())
    assert result.counts["dropped"] == len(lengths["test"]) - len(federation.test.data)
    assert result.scores["perplexity"] == pytest.approx(told.summary["final"]["perplexity"], rel=1e-4)


def test_the_flower_engine_gives_the_same_adapter(spoken: Make, tmp_path: Path) -> None:
    local = fedrot.run(spoken(), out=tmp_path / "local")
    flower = fedrot.run(spoken(engine__name="flower"), out=tmp_path / "flower")
    for key, tensor in local.adapter.tensors().items():
        torch.testing.assert_close(flower.adapter.tensors()[key], tensor, rtol=1e-6, atol=1e-6)


def test_a_run_shows_what_the_model_says_before_and_after(spoken: Make, tmp_path: Path) -> None:
    config = spoken(output__samples=2, output__sample_tokens=6, output__report=True, train__lr=0.5)
    fedrot.run(config, out=tmp_path / "run")
    said = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert said["decoding"] == "greedy"
    assert len(said["texts"]) == 2
    federation = prepare(config)
    model, tokenizer = federation.base.module, federation.base.tokenizer
    federation.model.unload()
    for text in said["texts"]:
        assert any(text["expected"] in row for row in federation.task.test["messages"])
        assert text["before"] != text["after"]
    # Before anything is trained the adapter adds nothing: the base model itself says the same.
    ids = tokenizer(f"<user> {said['texts'][0]['prompt']} <end>\n<assistant> ", return_tensors="pt")
    whole = model.generate(**ids, max_new_tokens=6, do_sample=False)  # pyright: ignore
    plain = tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert said["texts"][0]["before"] == plain
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Before and after" in page
    assert said["texts"][1]["after"] in page
    with pytest.raises(ConfigError, match=r"output\.samples = 1: only the task 'generate' completes texts"):
        prepare(parse_config({"model": {"path": "x"}, "task": {"data": "tweets"}, "output": {"samples": 1}}))
