"""The paper's experiments as recipes: each builds and takes a step, and published figures stand beside ours."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from rich.console import Console

from fedrot.comparison import Comparison
from fedrot.comparison.command import figures_for, print_published
from fedrot.comparison.design import Design
from fedrot.comparison.published import beside, published_markdown, published_rows, read_published
from fedrot.comparison.reading import make_design, split_recipe
from fedrot.config import RunConfig, load_config
from fedrot.engines.run import run
from fedrot.errors import ConfigError
from fedrot.estimate import DEVICES, forecast
from fedrot.tasks.hub import GLUE

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
BASES = ("glue", "llama")
SWEEPS = sorted(p.stem for p in PAPER.glob("*.toml") if p.stem not in BASES)
LANGUAGES = ("go", "java", "javascript", "php", "python", "ruby")


def design_of(name: str) -> Design:
    return make_design(*split_recipe(PAPER / f"{name}.toml"), {})


def first(design: Design) -> RunConfig:
    """The last variant's recipe at the last grid point, with the first setting to choose from: the paper's method."""
    arm = list(design.arms())[-1]
    return design.config(arm.variant, arm.point, arm.candidates[0], design.seeds[0])


def texts(columns: tuple[str, ...], count: int, seed: int) -> dict[str, list[str]]:
    draw = random.Random(seed)
    words = [
        "a",
        "the",
        "value",
        "of",
        "print",
        "return",
        "list",
        "match",
        "score",
        "town",
        "seven",
        "goal",
        "market",
    ]
    return {name: [" ".join([*draw.choices(words, k=5), str(n)]) for n in range(count)] for name in columns}


def glue(task: str) -> DatasetDict:
    """Made-up data with the columns, splits and classes of a task of GLUE."""
    columns = tuple(name for name in GLUE[task] if name)
    classes = [f"class {n}" for n in range(3 if task == "mnli" else 2)]
    features = Features({name: Value("string") for name in columns} | {"label": ClassLabel(names=classes)})

    def table(count: int, seed: int) -> Dataset:
        labels = {"label": [n % len(classes) for n in range(count)]}
        return Dataset.from_dict(texts(columns, count, seed) | labels, features=features)

    held_out = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
    splits = {"train": table(120, 1), **{name: table(6, 2 + n) for n, name in enumerate(held_out)}}
    return DatasetDict(**splits)


def generated(name: str) -> DatasetDict:
    """Made-up data with the columns of GSM8K or CodeSearchNet."""
    if "gsm8k" in name:
        columns, more = ("question", "answer"), {}
    else:
        columns = ("func_documentation_string", "func_code_string")
        more = {"language": [LANGUAGES[n % 6] for n in range(48)]}
    splits = {
        "train": Dataset.from_dict(texts(columns, 48, 3) | more),
        "test": Dataset.from_dict(texts(columns, 6, 4) | {key: values[:6] for key, values in more.items()}),
    }
    return DatasetDict(**splits)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, configuration: str | None) -> DatasetDict:
        return glue(str(configuration)) if name == "nyu-mll/glue" else generated(name)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunConfig], Path]:
    """Random models of the recipes' architectures, one block of width 16, with the tokenizer of the tests' model."""
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        RobertaConfig,
        RobertaForMaskedLM,
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token="[SEP]")
    shape: dict[str, Any] = {
        **{"vocab_size": len(tokenizer), "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": tokenizer.pad_token_id},
    }
    made: dict[str, Path] = {}

    def model_for(config: RunConfig) -> Path:
        kind = config.task.name
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("paper") / kind
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model: Any = (
                    RobertaForMaskedLM(RobertaConfig(**shape))
                    if kind == "classify"
                    else LlamaForCausalLM(LlamaConfig(**shape))
                )
            model.save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return model_for


def small(config: RunConfig, model: Path) -> RunConfig:
    """One step of a round of what the recipe says, small enough for a test: sizes change, and nothing else."""
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": str(model)}),
            "task": config.task.model_copy(update={"max_length": 24, "max_train": None}),
            "train": config.train.model_copy(update={"local_steps": 1, "batch_size": 2, "device": "cpu"}),
            "federation": config.federation.model_copy(
                update={"rounds": 1, "clients": min(config.federation.clients or 2, 6), "evaluate_batch": 8}
            ),
        }
    )


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_builds_and_its_first_run_takes_a_step(
    name: str, hub: None, models: Callable[[RunConfig], Path], tmp_path: Path
) -> None:
    config = first(design_of(name))
    record = run(small(config, models(config)), out=tmp_path / "run").records[-1]
    assert record["clients"] == min(config.federation.clients or 2, 6)
    assert record["rejected"] == 0
    assert ("perplexity" if config.task.name == "generate" else "accuracy") in record


@pytest.mark.parametrize("name", BASES)
def test_what_a_base_recipe_takes_can_be_said_without_a_hub(name: str) -> None:
    config = load_config(PAPER / f"{name}.toml")
    found = forecast(config, DEVICES)
    assert found.shape.parameters == pytest.approx(8.03e9 if name == "llama" else 3.554e8, rel=1e-3)
    assert found.devices[0].group >= 1, "fits an H100"
    assert found.devices[0].hours is not None


@pytest.mark.parametrize("name", SWEEPS)
def test_every_published_figure_is_of_a_run_that_the_sweep_makes(name: str, tmp_path: Path) -> None:
    table, design = read_published(PAPER / "published.json", name), design_of(name)
    mean = {table.metric: {"mean": 0.5, "low": 0.4, "high": 0.6}}
    arms = [
        {"variant": arm.variant, "point": arm.point, "mean": mean, "keys": {"11": "k"}}
        for arm in design.arms()
    ]
    task, _, score = table.metric.partition(":")
    evaluated = {"results": [{"task": task, "scores": {score: 0.5}}]}
    (tmp_path / "adapters" / "k").mkdir(parents=True)
    (tmp_path / "adapters" / "k" / "eval.json").write_text(json.dumps(evaluated))
    lines = beside(table, {"arms": arms}, tmp_path)
    assert lines
    assert all(line.ours == 0.5 for line in lines)


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    figures = {"variant": "fedit", "values": [0.8, 0.9], "sd": {"2": 0.01}}
    sweep = {"title": "T", "metric": "accuracy", "columns": {"lora.rank": [2, 4]}, "rows": [figures]}
    file.write_text(json.dumps({"sweep": sweep}))
    table = read_published(file, "sweep")
    arm = {
        "variant": "fedit",
        "point": {"lora.rank": 2},
        "mean": {"accuracy": {"mean": 0.75, "low": 0.7, "high": 0.8}},
    }
    rows = published_rows(table, {"arms": [arm]})
    assert rows == [
        ["rank 2", "fedit", ".800 ± .010", ".750 ± .050", "\u22125.0"],
        ["rank 4", "fedit", ".900", "–", "–"],
    ]
    assert "| rank 2 | fedit | .800 ± .010 | .750 ± .050 | \u22125.0 |" in published_markdown(table, rows)
    console = Console(file=io.StringIO(), width=100)
    print_published(table, Comparison({"arms": [arm]}, [], tmp_path), console)
    assert (tmp_path / "published.md").read_text("utf-8") == published_markdown(table, rows)
    with pytest.raises(ConfigError, match="give the sweep's file as well"):
        figures_for(None, file)
    with pytest.raises(ConfigError, match=r"no table \[swep\].*did you mean 'sweep'"):
        read_published(file, "swep")
    del sweep["columns"]
    file.write_text(json.dumps({"sweep": sweep}))
    with pytest.raises(ConfigError, match=r"\[sweep\] fedit: 2 values for 1 columns"):
        read_published(file, "sweep")
