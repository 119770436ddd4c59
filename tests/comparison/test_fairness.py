"""Runs of one comparison read the same files, however often it is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fedrot.comparison import compare
from fedrot.comparison.sources import digest_of
from fedrot.comparison.store import Store
from fedrot.config import RunConfig
from fedrot.errors import ConfigError
from fedrot.model import BaseModel, fingerprint
from fedrot.tasks.catalogue import objective

Small = Callable[..., dict[str, Any]]
Make = Callable[..., RunConfig]


def change_weights(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("query.weight"))
    save_file(weights | {name: weights[name] * 1.5}, path, metadata={"format": "pt"})


def cells(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(Store(out).cells.glob("*.json"))]


@pytest.fixture
def own_model(recipe: Make, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(recipe().model.path, tmp_path / "model"))


@pytest.mark.parametrize("more", [{"methods": ["fedit", "ffa"]}, {"seeds": [3, 4]}])
def test_a_comparison_is_not_continued_on_other_base_weights(
    small: Small, own_model: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    out = tmp_path / "c"
    recipe = small(federation__rounds=1, model={"path": str(own_model), "pooling": "mean"})
    before = compare(recipe, methods=["fedit"], seeds=[3], out=out)
    (old,) = (key for arm in before.results["arms"] for key in arm["keys"].values())
    change_weights(own_model)
    with pytest.raises(ConfigError) as refusal:
        compare(None, out=out, resume=True, **more)
    said = str(refusal.value)
    assert "do not start alike (base model); the data or model files changed in between" in said
    assert f"'cells/{old}.json' or 'cells/" in said


@pytest.mark.parametrize("limits", [{}, {"max_train": 60, "max_test": 20}])
def test_a_comparison_is_not_continued_on_other_data(
    small: Small, corpus: Path, tmp_path: Path, limits: dict[str, int]
) -> None:
    own, out = Path(shutil.copy(corpus, tmp_path / "own.csv")), tmp_path / "c"
    task = {"data": str(own), "max_length": 24, "test_fraction": 0.2, **limits}
    compare(small(federation__rounds=1, task=task), methods=["fedit"], seeds=[3, 4], out=out)
    whole = {json.dumps(cell["sources"]) for cell in cells(out)}
    assert len(whole) == 1, "whatever the seed"
    text = own.read_text("utf-8")
    own.write_text(text + "one more goal for the team,sport\n", "utf-8")
    with pytest.raises(ConfigError) as refusal:
        compare(None, seeds=[3, 4, 5], out=out, resume=True)
    said = str(refusal.value)
    assert "'fedit', seed 3, and 'fedit', seed 5, do not start alike (data)" in said
    assert "the data or model files changed in between" in said
    own.write_text(text, "utf-8")
    (added,) = (cell for cell in cells(out) if cell["config"]["seed"] == 5)
    assert f"or 'cells/{added['key']}.json'" in said
    (out / "cells" / f"{added['key']}.json").unlink()
    assert compare(None, seeds=[3, 4, 5], out=out, resume=True).failed == []


@pytest.mark.parametrize("change", ["text", "label"])
def test_any_text_and_any_label_counts(recipe: Make, corpus: Path, tmp_path: Path, change: str) -> None:
    own = Path(shutil.copy(corpus, tmp_path / "own.csv"))
    goal = objective(recipe(task={"data": str(own)}).task)
    before = {digest_of(goal.load(seed)) for seed in (1, 2, 3)}
    header, first, *rest = own.read_text("utf-8").splitlines()
    text, _, label = first.rpartition(",")
    first = f"{text}x,{label}" if change == "text" else f"{text},{'money' if label != 'money' else 'code'}"
    own.write_text("\n".join([header, first, *rest]) + "\n", "utf-8")
    assert len(before) == 1
    assert digest_of(goal.load(1)) not in before


def test_cells_from_before_there_were_digests_of_files_stay_good(
    small: Small, own_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    recipe = small(federation__rounds=1, model={"path": str(own_model), "pooling": "mean"})
    compare(recipe, methods=["fedit"], seeds=[3], out=out)
    for found in cells(out):
        del found["sources"]
        Store(out).write_cell(found["key"], found)
    assert compare(None, methods=["fedit", "ffa"], seeds=[3], out=out, resume=True).failed == []


def test_variants_may_name_different_base_models(small: Small, own_model: Path, tmp_path: Path) -> None:
    change_weights(own_model)
    variants = {"as it was": {"method.name": "fedit"}, "other": {"model.path": str(own_model)}}
    recipe = small(federation__rounds=1) | {"method": {"name": "fedit"}}
    assert compare(recipe, variants=variants, seeds=[3], out=tmp_path / "c").failed == []


def test_the_weights_are_digested_once_for_all_runs_that_share_them(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def counted(base: BaseModel) -> str:
        found.append(fingerprint(base))
        return found[-1]

    monkeypatch.setattr("fedrot.comparison.sources.fingerprint", counted)
    grid = {"lora.target_modules": [["query"], "all-linear"]}
    recipe = small(federation__rounds=1)
    done = compare(recipe, methods=["fedit", "fedex"], seeds=[3, 4], grid=grid, out=tmp_path / "c")
    assert done.failed == []
    assert len(found) == 2, "once a seed, with which the base is loaded anew"
    assert len(set(found)) == 1, "whatever is adapted in it"
