"""Whole runs with tensors on another device than the CPU: the same numbers, and no wait within a local step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from fedrot.config import RunConfig, parse_config
from fedrot.engines.run import run
from fedrot.methods import methods
from tests.language import rows, tiny_llama
from tests.pictures import draw
from tests.shapes import build

Make = Callable[..., RunConfig]
Recipe = dict[str, Any]
ROOT = Path(__file__).parent.parent

TRAINING: dict[str, Recipe] = {
    "plain": {},
    "longer": {"train": {"local_steps": 6}},
    "cached": {"lora": {"layers": "last:1"}, "train": {"cache_frozen": True}},
    "dropout": {"lora": {"dropout": 0.2}},
    "recomputed": {"train": {"checkpointing": True}},
    "epochs": {"train": {"local_epochs": 1, "local_steps": None}},
    "proximal": {"train": {"prox": 0.1, "accumulate": 2, "clip": "off"}},
    "momentum": {"train": {"optimizer": "momentum"}},
}
SERVER: dict[str, Recipe] = {
    **{name: {"method": {"name": name}} for name in sorted(methods()) if name != "fedrot"},
    "mixed ranks": {"lora": {"rank": 3, "ranks": [1, 2, 3, 3]}, "method": {"name": "auto"}},
    "stale": {"federation": {"fraction": 0.5, "stale": 0.5}},
    "refit": {"method": {"refit": 1}},
    "consensus": {"method": {"reference": "consensus"}},
    "guarded": {"method": {"guard": "server", "strength": 1.0}},
    "geodesic": {"method": {"path": "geodesic", "strength": 0.3}},
    "reflections": {"method": {"group": "orthogonal", "anchor": "joint"}},
    "adam": {"server": {"optimizer": "adam", "lr": 0.01}},
    "private": {
        "privacy": {"mechanism": "central", "noise": 0.5, "clip": 0.1, "noise_source": "seed"},
        "federation": {"weighting": "uniform"},
    },
    "measured": {"output": {"diagnostics": True, "probe": True}},
}
ALL_LINEAR: Recipe = {"lora": {"target_modules": "all-linear"}}
ANSWERS: Recipe = {
    **ALL_LINEAR,
    "task": {"name": "generate", "data": "exchanges", "max_length": 48},
    "partition": {"kind": "iid"},
    "model": {"path": "llama", "pooling": "model"},
}
PICTURES: Recipe = {
    **ALL_LINEAR,
    "task": {"name": "image", "data": "pictures", "max_length": None},
    "model": {"path": "vit", "pooling": "model"},
}
TASKS: dict[str, Recipe] = {
    "decoder": ANSWERS,
    "packed": {**ANSWERS, "task": {**ANSWERS["task"], "packing": True}},
    "encoder and decoder": {
        **ANSWERS,
        "model": {"path": "t5", "pooling": "model"},
        "task": {**ANSWERS["task"], "max_length": 160},
    },
    "pictures": PICTURES,
}
CASES = {**TRAINING, **SERVER, **TASKS}


@pytest.fixture(scope="module")
def recipes(
    tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Each case as a recipe; one worker, as on a GPU."""
    place = tmp_path_factory.mktemp("accelerator")
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows(90))), "utf-8")
    places = {
        "bert": str(tiny_model),
        "llama": str(tiny_llama(place / "llama")),
        "t5": str(build("t5", place / "t5")),
        "vit": str(build("vit", place / "vit")),
        "corpus": str(corpus),
        "exchanges": str(place / "rows.jsonl"),
        "pictures": str(draw(place / "set", 40)),
    }
    made: dict[str, dict[str, Any]] = {}
    for name, changes in CASES.items():
        recipe: Recipe = {
            "seed": 3,
            "model": {"path": "bert", "pooling": "mean"},
            "lora": {"rank": 2, "alpha": 4.0, "target_modules": ["query", "value"], "layers": "last:2"},
            "task": {"data": "corpus", "max_length": 24, "test_fraction": 0.2},
            "partition": {"kind": "dirichlet", "alpha": 1.0, "min_size": 8},
            "method": {"name": "fedrot"},
            "train": {"lr": 0.01, "local_steps": 3, "batch_size": 4, "device": "cpu"},
            "federation": {"clients": 4, "rounds": 2, "workers": 1},
            "output": {"report": False},
        }
        for section, values in changes.items():
            recipe[section] = {**recipe.get(section, {}), **values}
            recipe[section] = {key: value for key, value in recipe[section].items() if value is not None}
        if recipe["partition"]["kind"] == "iid":
            recipe["partition"] = {"kind": "iid"}
        for section, key in (("model", "path"), ("task", "data")):
            recipe[section][key] = places[recipe[section][key]]
        made[name] = recipe
    return made


@pytest.fixture(scope="module")
def found(recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every case did on the pretended device."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    cases, results = shared / "accelerator-cases.json", shared / "accelerator-found.json"
    with FileLock(shared / "accelerator.lock"):  # one worker runs them for all
        if not results.exists():
            cases.write_text(json.dumps(recipes), "utf-8")
            command = [sys.executable, "-m", "tests.on_accelerator", str(cases), str(results)]
            env = {**os.environ, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(results.read_text("utf-8"))
    return read


def numbers(record: Any, path: str = "") -> dict[str, float]:
    """All numbers of a record but times."""
    if isinstance(record, dict):
        parts = [numbers(value, f"{path}/{key}") for key, value in record.items() if "seconds" not in key]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(record, list):
        parts = [numbers(value, f"{path}/{index}") for index, value in enumerate(record)]
        return {key: value for part in parts for key, value in part.items()}
    return {path: record} if isinstance(record, (int, float)) else {}


@pytest.mark.parametrize("name", CASES)
def test_another_device_gives_the_same_numbers(
    name: str, recipes: dict[str, Recipe], found: dict[str, Any], tmp_path: Path
) -> None:
    assert "error" not in found[name], found[name]["error"]
    here = run(parse_config(recipes[name]), out=tmp_path / "run").records
    assert len(here) == len(found[name]["records"]) == 2
    for mine, theirs in zip(here, found[name]["records"], strict=True):
        assert numbers(theirs) == pytest.approx(numbers(mine), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("name", [*TRAINING, *(name for name in TASKS if name != "packed")])
def test_no_local_step_waits_for_the_device(name: str, found: dict[str, Any]) -> None:
    """What a group needs is sent once; packed batches wait inside transformers, which looks where texts begin."""
    allowed = {"copy to the device", "how many numbers a mask chooses"}  # before the first step
    waits = found[name]["waits"]
    assert {wait.split(" at ")[0] for wait in waits} <= allowed, waits
    assert len(waits) <= 2 * 6, waits  # rounds, of one group each


def test_waits_do_not_grow_with_the_number_of_steps(found: dict[str, Any]) -> None:
    assert len(found["longer"]["waits"]) == len(found["plain"]["waits"]) > 0
