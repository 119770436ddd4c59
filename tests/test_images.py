"""Image classification by a small vision transformer: whole runs, and the numbers of other libraries."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.client import plan_group, train_group
from fedrot.config import ModelConfig, RunConfig, load_config, parse_config
from fedrot.engines.evaluation import evaluate_state
from fedrot.engines.flower.node import NodeSettings, load_node
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from fedrot.errors import ConfigError, ModelError
from fedrot.methods import Trainable
from fedrot.model import fingerprint, load_base
from fedrot.server import ServerState
from fedrot.tasks.pixels import EncodedImages
from tests.ordinary import peft_parameters
from tests.overrides import recipe_with
from tests.pictures import CLASSES, draw
from tests.shapes import build

Make = Callable[..., RunConfig]
RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("vit", tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures") / "set", 40)


@pytest.fixture
def seen(vit: Path, pictures: Path) -> Make:
    """Build a small recipe; keywords `section__key=value` override it."""

    def make(**overrides: Any) -> RunConfig:
        data: dict[str, Any] = {
            "seed": 4,
            "model": {"path": str(vit)},
            "lora": {"rank": 2, "alpha": 4.0},
            "task": {"name": "image", "data": str(pictures), "test_fraction": 0.2},
            "partition": {"kind": "dirichlet", "alpha": 1.0, "min_size": 8},
            "train": {"lr": 0.01, "local_steps": 3, "batch_size": 4, "device": "cpu"},
            "federation": {"clients": 3, "rounds": 2},
            "output": {"report": False},
        }
        return recipe_with(data, overrides)

    return make


def test_stacked_training_equals_an_ordinary_peft_loop(seen: Make) -> None:
    """The same base model, adapter and pictures, through transformers' own image processor, in plain PEFT."""
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from transformers import AutoImageProcessor

    targets = ["q_proj", "v_proj", "fc1"]
    config = seen(lora__target_modules=targets, train__optimizer="sgd", train__lr=0.1, train__local_steps=4)
    federation = prepare(config)
    start = federation.initial.map(lambda t: t + 0.01)
    rows = list(federation.partition.rows)
    plan = plan_group(range(3), rows, config.train, seed=4, round=1)
    data = federation.train.data
    mine = train_group(federation.model, federation.objective, data, start, plan, config.train, Trainable())
    federation.model.close()
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=targets, modules_to_save=["classifier"])
    peft = get_peft_model(federation.base.module, lora).eval()
    trained = peft_parameters(peft, start)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    processor = AutoImageProcessor.from_pretrained(config.model.path, backend="pil")
    table = federation.task.train
    for rows in plan.rows[:, 1]:
        examples = [table[int(row)] for row in rows]
        pixels = processor([Image.open(e["image"]["path"]) for e in examples], return_tensors="pt")[
            "pixel_values"
        ]
        loss = peft(pixel_values=pixels, labels=torch.tensor([e["label"] for e in examples])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    moved = mine.adapter.select(1).tensors()
    for key, parameter in zip(start.tensors(), trained, strict=True):
        torch.testing.assert_close(moved[key], parameter.detach(), rtol=1e-4, atol=2e-5, msg=key)
        assert not torch.equal(moved[key], start.tensors()[key])


def test_a_run_learns_to_tell_pictures_apart(seen: Make, tmp_path: Path) -> None:
    config = seen(federation__rounds=3, train__local_steps=8, train__lr=0.02, output__probe=True)
    federation = prepare(config)
    before = evaluate_state(federation, ServerState(0, federation.initial))
    assert before["accuracy"] < 0.6
    result = run(config, out=tmp_path / "run")
    final = result.records[-1]
    assert final["accuracy"] > 0.8
    assert {"macro_f1", "local_accuracy", "validation_accuracy", "eval_loss"} <= final.keys()
    assert result.summary["labels"] == list(CLASSES)
    assert sum(map(sum, result.summary["partition"]["counts"])) == result.summary["examples"]["train"]
    assert 0 <= result.summary["probe"]["accuracy"] <= 1


def test_the_flower_engine_gives_the_same_adapter(seen: Make, tmp_path: Path) -> None:
    local = run(seen(), out=tmp_path / "local")
    flower = run(seen(engine__name="flower"), out=tmp_path / "flower")
    others = flower.adapter.tensors()
    assert max(float((t - others[key]).abs().max()) for key, t in local.adapter.tensors().items()) <= 1e-6


def test_clients_may_be_the_values_of_a_column(seen: Make, pictures: Path, tmp_path: Path) -> None:
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "camera"])
        for number, path in enumerate(sorted(pictures.glob("*/*.png"))):
            writer.writerow([path, path.parent.name, "abcd"[number % 4]])
    kind = {"kind": "natural-id", "partition_by": "camera"}
    config = seen(task__data=str(tmp_path / "table.csv"), federation__clients=None)
    federation = prepare(config.model_copy(update={"partition": seen().partition.model_validate(kind)}))
    cameras = federation.task.train["camera"][:]
    assert [{cameras[row] for row in rows} for rows in federation.partition.rows] == [
        {"a"},
        {"b"},
        {"c"},
        {"d"},
    ]


def test_reduced_precision_is_that_of_the_model(seen: Make) -> None:
    federation = prepare(seen(train__precision="bfloat16"))
    data = federation.train.data
    assert isinstance(data, EncodedImages)
    logits = federation.model.logits(data.batch(torch.arange(3)))
    exact = prepare(seen()).model.logits(data.batch(torch.arange(3)))
    assert logits.dtype == torch.float32
    assert 0 < float((logits - exact).abs().max()) < 0.2


def test_a_head_of_other_classes_is_replaced(pictures: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    path = build("vit", tmp_path)
    AutoModelForImageClassification.from_pretrained(path, num_labels=7).save_pretrained(path)
    first, again, other = (
        load_base(ModelConfig(path=str(path)), CLASSES, kind="image-classification", seed=seed)
        for seed in (1, 1, 2)
    )
    weights = [base.module.get_parameter("classifier.weight") for base in (first, again, other)]
    assert weights[0].shape == (3, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert fingerprint(first) == fingerprint(other), "the head travels with the adapter"
    first.processor.image_mean = [0.1, 0.1, 0.1]
    assert fingerprint(first) != fingerprint(other), "other pixels are another model"


def test_models_that_do_not_fit_are_refused(
    seen: Make, tiny_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    with pytest.raises(
        ModelError, match=r"cannot be loaded as an image classifier; .*preprocessor_config\.json"
    ):
        prepare(seen(model__path=str(tiny_model)))
    with pytest.raises(
        ConfigError, match=r"model\.pooling = 'mean': an image classifier pools in its own way"
    ):
        prepare(seen(model__pooling="mean"))
    path = build("vit", tmp_path)
    settings = path / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"size": {"height": 16, "width": 16}}))
    with pytest.raises(ModelError, match=r"does not take the colour images .*\(Input image size \(16\*16\)"):
        prepare(seen(model__path=str(path)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"the package pillow, which is not installed; run `pip install 'fedrot\[image\]'`"
    ):
        load_base(ModelConfig(path=str(path)), CLASSES, kind="image-classification")


def test_the_recipe_of_digits_runs_on_a_tiny_model(vit: Path, tmp_path: Path) -> None:
    small = [f"model.path={vit}", "task.max_train=40", "task.max_test=20", "task.max_validation=10"]
    quick = [
        "federation.clients=2",
        "federation.rounds=1",
        "train.local_steps=1",
        "train.batch_size=2",
        "output.report=false",
    ]
    config = load_config(RECIPES / "digits.toml", overrides=[*small, *quick, "partition.min_size=1"])
    result = run(config, out=tmp_path / "run")
    assert result.summary["labels"] == list("0123456789")


def test_a_node_may_bring_a_folder_of_pictures(pictures: Path, tmp_path: Path) -> None:
    draw(tmp_path / "own", 3)
    (tmp_path / "node.toml").write_text(
        'name = "node-0"\nclients = [0]\nsuperlink = "fed.example.org:8000"\ndata = "own"\n', "utf-8"
    )
    assert load_node(tmp_path).settings.data == str(tmp_path / "own")
    recipe = {"model": {"path": "package:x"}, "task": {"name": "image", "data": "digits"}}
    assert NodeSettings("node-0", (0,)).admit(parse_config(recipe)).task.data == "digits"
