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
from fedrot.comparison.store import Store
from fedrot.config import RunConfig
from fedrot.errors import ConfigError
from fedrot.model import BaseModel, fingerprint

Small = Callable[..., dict[str, Any]]
Make = Callable[..., RunConfig]


def change_weights(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("query.weight"))
    save_file(weights | {name: weights[name] * 1.5}, path, metadata={"format": "pt"})


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


def test_cells_from_before_there_were_digests_of_files_stay_good(
    small: Small, own_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    recipe = small(federation__rounds=1, model={"path": str(own_model), "pooling": "mean"})
    compare(recipe, methods=["fedit"], seeds=[3], out=out)
    for path in Store(out).cells.glob("*.json"):
        found = json.loads(path.read_text("utf-8"))
        del found["sources"]
        path.write_text(json.dumps(found), "utf-8")
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
