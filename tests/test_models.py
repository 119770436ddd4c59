"""Every row of the page Models: architectures through training, alignment, export and back."""

from __future__ import annotations

import csv
import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

import fedrot
from fedrot.client import plan_group, train_group
from fedrot.config import RunConfig, parse_config
from fedrot.core.adapter import Adapter
from fedrot.engines.run import run
from fedrot.engines.setup import Federation, prepare
from fedrot.errors import ConfigError, FedrotError
from fedrot.evaluation.command import evaluate_directory
from fedrot.evaluation.options import Options
from fedrot.methods import Trainable
from fedrot.model import save_merged, save_peft
from fedrot.model.base import ENCODER_DECODER
from tests.pictures import draw
from tests.shapes import build

Make = Callable[..., RunConfig]
WORDS = "a goal, match, team; bank price: tax ? cup"
MODELS = tomllib.loads((Path(__file__).parent.parent / "docs" / "models.toml").read_text("utf-8"))["model"]
ROWS = [(model, task) for model in MODELS for task in model["tasks"]]
WORKING = [pytest.param(model, task, id=f"{model['shape']}-{task}") for model, task in ROWS]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small table or folder for each task."""
    folder = tmp_path_factory.mktemp("sources")
    draws = random.Random(1)
    texts = [" ".join(draws.choices(WORDS.split(), k=draws.randint(2, 6))) for _ in range(60)]
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, text.count("a") % 3) for text in texts)])
    said = [{"prompt": text, "response": text.split()[0]} for text in texts]
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said), "utf-8")
    return {
        "classify": folder / "texts.csv",
        "generate": folder / "said.jsonl",
        "image": draw(folder / "pictures", 20),
    }


@pytest.fixture
def made(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Make]:
    """Recipes of one architecture and task."""

    def of(shape: str, task: str) -> Make:
        path = build(shape, tmp_path_factory.mktemp(shape))

        def make(**train: Any) -> RunConfig:
            layers = {"layers": train.pop("layers", "all")}
            packing = {"packing": True} if train.pop("packing", False) else {}
            return parse_config(
                {
                    "seed": 2,
                    "model": {"path": str(path)},
                    "lora": {"rank": 2, "alpha": 4.0, "target_modules": "all-linear", **layers},
                    "task": {"name": task, "data": str(sources[task]), "validation_fraction": 0, **packing},
                    "partition": {"kind": "iid"},
                    "method": {"name": "fedrot"},
                    "train": {
                        "optimizer": "sgd",
                        "lr": 0.2,
                        "local_steps": 2,
                        "batch_size": 3,
                        "device": "cpu",
                        **train,
                    },
                    "federation": {"clients": 2, "rounds": 2, "evaluate_every": 2},
                    "output": {"report": False},
                }
            )

        return make

    return of


def trained(federation: Federation, groups: list[list[int]]) -> dict[str, Tensor]:
    """Every client's tensors after one round, trained in the given groups."""
    config, found = federation.config, {}
    start = federation.initial.map(lambda t: t + 0.02)  # away from b = 0, so that both factors move
    for group in groups:
        rows = [federation.partition.rows[client] for client in group]
        plan = plan_group(
            group, rows, config.train, seed=config.seed, round=1, lengths=federation.train.data.lengths
        )
        split = federation.train
        result = train_group(
            federation.model,
            federation.objective,
            split.data,
            start,
            plan,
            config.train,
            Trainable(),
            split.cache,
        )
        for index, client in enumerate(group):
            own = result.adapter.select(index).tensors()
            found |= {f"{client} {name}": tensor for name, tensor in own.items()}
    return found


def assert_close(mine: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=2e-5, msg=name)


def logits(module: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return module(**inputs).logits


def stacked_logits(federation: Federation, adapter: Adapter, inputs: dict[str, Tensor]) -> Tensor:
    federation.model.load(adapter.expand(1))
    found = logits(federation.model.module, inputs)
    federation.model.unload()
    return found


@pytest.mark.parametrize(("model", "task"), WORKING)
def test_it_trains_stacked_recomputed_and_cached_alike(
    made: Callable[[str, str], Make], model: dict[str, Any], task: str
) -> None:
    make = made(model["shape"], task)
    federation = prepare(make())
    alone = trained(federation, [[0], [1]])
    together = trained(federation, [[0, 1]])
    assert_close(together, alone)
    start = federation.initial.map(lambda t: t + 0.02).tensors()
    still = [name for name, tensor in together.items() if torch.equal(tensor, start[name.partition(" ")[2]])]
    assert not still, "every trained tensor moves"
    assert_close(trained(prepare(make(checkpointing=True)), [[0, 1]]), alone)
    if task == "generate" and model.get("packed", True):
        assert_close(trained(prepare(make(packing=True)), [[0, 1]]), alone)
    elif task == "generate":
        with pytest.raises(FedrotError, match=r"task\.packing = true: .*set task\.packing = false"):
            prepare(make(packing=True))
    if not model.get("cached", True):
        with pytest.raises(
            FedrotError, match=r"train\.cache_frozen = true: .*set .*train\.cache_frozen = false"
        ):
            prepare(make(layers="last:1", cache_frozen=True))
        return
    cached = prepare(make(layers="last:1", cache_frozen=True))
    assert_close(trained(cached, [[0, 1]]), trained(prepare(make(layers="last:1")), [[0, 1]]))


@pytest.mark.parametrize(("model", "task"), WORKING)
def test_a_run_with_alignment_exports_what_others_load(
    made: Callable[[str, str], Make], model: dict[str, Any], task: str, tmp_path: Path
) -> None:
    import transformers

    config = made(model["shape"], task)()
    result = run(config, out=tmp_path / "run")
    assert result.records[-1]["rotation"] > 0
    federation = prepare(config)
    inputs = federation.test.data.batch(torch.arange(4)).inputs
    ours = stacked_logits(federation, result.adapter, inputs)
    federation.model.close()
    plain = logits(federation.base.module, inputs)
    assert float((ours - plain).abs().max()) > 1e-3, "the adapter was expected to matter"
    adapter = tmp_path / "run" / "adapter"
    peft = PeftModel.from_pretrained(fedrot.load_base_for(adapter), str(adapter)).eval()
    torch.testing.assert_close(logits(peft, inputs), ours, rtol=1e-4, atol=2e-5)
    save_merged(tmp_path / "merged", federation.base, result.adapter)
    kind = {"classify": "SequenceClassification", "generate": "CausalLM", "image": "ImageClassification"}[
        task
    ]
    if federation.base.kind == ENCODER_DECODER:
        kind = "Seq2SeqLM"
    merged = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, inputs), ours, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", ["gpt2", "bert", "roberta"])
def test_texts_longer_than_the_learned_positions_are_refused(
    made: Callable[[str, str], Make], tmp_path: Path, shape: str
) -> None:
    config = made(shape, "classify")()
    places = {"gpt2": 64, "bert": 70, "roberta": 69}[
        shape
    ]  # RoBERTa's begin behind its padding token, number 0
    for size in (places, places + 1):
        rows = [("text", "label"), *(("a" * (size if row == 7 else row + 1), row % 2) for row in range(40))]
        with (tmp_path / "long.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        long = config.model_copy(
            update={"task": config.task.model_copy(update={"data": str(tmp_path / "long.csv")})}
        )
        if size == places:
            federation = prepare(long)
            longest = federation.train if federation.train.data.longest == size else federation.test
            assert longest.data.longest == size
            row = longest.data.lengths.argmax().view(1)
            federation.objective.observe(federation.model, longest.data.batch(row), None)
    with pytest.raises(
        FedrotError, match=rf"max_length = 128: an example of \w+ has {places + 1} .*max_length = {places}$"
    ):
        prepare(long)


def test_a_text_begins_at_the_first_position_whoever_shares_its_batch(
    made: Callable[[str, str], Make],
) -> None:
    """GPT-2 with a tokenizer that pads on the left, as many are saved for generating."""
    config = made("gpt2", "classify")()
    file = Path(config.model.path) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    federation = prepare(config)
    data, model = federation.test.data, federation.model
    order = data.lengths.argsort()
    short, long = order[:1], order[-1:]
    assert data.lengths[short] < data.lengths[long]
    together = federation.objective.observe(model, data.batch(torch.cat([short, long])), None)
    torch.testing.assert_close(together[:1], federation.objective.observe(model, data.batch(short), None))


@pytest.mark.parametrize("own", [0, -1, 7])
def test_a_decoder_scores_the_last_token_of_a_text_whatever_its_padding_was(
    made: Callable[[str, str], Make], tmp_path: Path, own: int
) -> None:
    """A tokenizer without a padding token lends its end token, and config.json names another, as Llama's do."""
    config = made("llama", "classify")()
    path = Path(config.model.path)
    settings = json.loads((path / "config.json").read_text()) | {"pad_token_id": own}
    (path / "config.json").write_text(json.dumps(settings))
    kept = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**kept, "pad_token": None}))
    federation = prepare(config)
    data, model = federation.test.data, federation.model
    order = data.lengths.argsort()
    short, long = order[:1], order[-1:]
    assert data.lengths[short] < data.lengths[long]
    together = federation.objective.observe(model, data.batch(torch.cat([short, long])), None)
    torch.testing.assert_close(together[:1], federation.objective.observe(model, data.batch(short), None))
    assert federation.base.tokenizer.pad_token_id is None
    save_peft(tmp_path, federation.initial, federation.base, config.lora, {})
    assert "pad_token_id=3" in (tmp_path / "README.md").read_text()
    save_merged(tmp_path / "merged", federation.base, federation.initial)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["pad_token_id"] == 3
    federation.model.close()


def test_rows_of_several_texts_are_refused_where_these_would_read_each_other(
    made: Callable[[str, str], Make],
) -> None:
    """OPT makes its own mask, whatever the positions say."""
    make = made("opt", "generate")
    prepare(make())
    with pytest.raises(
        ConfigError, match=r"task\.packing = true: .* each other's loss .*task\.packing = false"
    ):
        prepare(make(packing=True))


@pytest.mark.parametrize("shape", ["t5", "bart"])
def test_a_decoder_with_an_encoder_learns_the_answers_as_transformers_trains_it(
    made: Callable[[str, str], Make], shape: str
) -> None:
    """Loss in float64 against the model's own, from prompts and answers that its tokenizer closes."""
    federation = prepare(made(shape, "generate")())
    module: Any = federation.base.module.double()
    data, tokenizer = federation.test.data, federation.base.tokenizer
    observed = federation.objective.observe(federation.model, data.batch(torch.arange(len(data))), None)
    said = [json.loads(text) for text in federation.task.test["messages"]]
    for row, (asked, answer) in enumerate(said):
        prompt = tokenizer(asked["content"], return_tensors="pt")
        labels = tokenizer(text_target=answer["content"], return_tensors="pt").input_ids
        assert labels[0, -1] == tokenizer.eos_token_id
        loss = module(**prompt, labels=labels).loss
        torch.testing.assert_close(observed[row, 0] / observed[row, 2], loss)
        assert observed[row, 2] == labels.numel()
    assert len(data) > 3
    federation.model.close()


@pytest.mark.parametrize("shape", ["gemma2", "t5gemma", "recurrent-gemma", "granite"])
def test_scores_that_are_capped_or_scaled_count_as_the_model_gives_them(
    made: Callable[[str, str], Make], shape: str
) -> None:
    """The setting has another name in each, and lies in those of the decoder where there is an encoder."""
    federation = prepare(made(shape, "generate")())
    batch = federation.test.data.batch(torch.arange(4))
    assert batch.asked is not None
    observed = federation.objective.observe(federation.model, batch, None)[:, 0].sum()
    said = batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"]).flatten()
    own = logits(federation.base.module, batch.inputs).flatten(0, 1)
    loss = cross_entropy(own[batch.asked.place - 1], said[batch.asked.place], reduction="sum")
    torch.testing.assert_close(observed, loss, rtol=1e-5, atol=1e-4)
    federation.model.close()


def test_t5_is_shown_and_evaluated_as_decoders_are(made: Callable[[str, str], Make], tmp_path: Path) -> None:
    config = made("t5", "generate")()
    shown = config.model_copy(
        update={"output": config.output.model_copy(update={"samples": 2, "sample_tokens": 4})}
    )
    record = run(shown, out=tmp_path / "run").records[-1]
    texts = json.loads((tmp_path / "run" / "samples.json").read_text())["texts"]
    assert any(text["before"] != text["after"] for text in texts)
    plain: Any = fedrot.load_base_for(tmp_path / "run" / "adapter")
    tokenizer = prepare(config).base.tokenizer
    for text in texts:
        found = plain.generate(
            **tokenizer(text["prompt"], return_tensors="pt"), max_new_tokens=4, do_sample=False
        )
        assert text["before"] == tokenizer.decode(found[0], skip_special_tokens=True).strip()
    results = evaluate_directory(tmp_path / "run", ["perplexity", "exact-match"], Options(max_new_tokens=4))
    assert results[0].scores["perplexity"] == pytest.approx(record["perplexity"], rel=1e-4)
    peft: Any = PeftModel.from_pretrained(plain, str(tmp_path / "run" / "adapter")).eval()
    for said in results[1].said:
        found = peft.generate(
            **tokenizer(said["prompt"], return_tensors="pt"), max_new_tokens=4, do_sample=False
        )
        assert said["completions"] == (tokenizer.decode(found[0], skip_special_tokens=True),)
