"""Recipes are strict: what is not understood is refused with the nearest name, and what is resolved reads back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrot.config import RunConfig, apply_override, apply_overrides, differences, load_config, parse_config
from fedrot.errors import ConfigError

MINIMAL: dict[str, Any] = {"model": {"path": "m"}, "task": {"data": "tweets"}}


def test_a_resolved_recipe_reads_back_equal(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = recipe(method__strength=0.25, train__clip="off", lora__target_modules=["query"])
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), "utf-8")
    assert load_config(path) == config
    assert tomllib.loads(path.read_text())["method"]["strength"] == 0.25


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"trian": {}}, r"trian: unknown key; did you mean 'train'"),
        ({"train": {"lrr": 1.0}}, r"train\.lrr: unknown key; did you mean 'lr'"),
        (
            {"task": {"data": "x", "metric": "f1"}},
            r"^task\.metric: unknown key; what a run is judged by follows from its task .* leave the key out$",
        ),
        ({"lora": {"rank": "4"}}, r"lora\.rank = '4': expected"),
        ({"lora": {"rank": 0}}, r"lora\.rank = 0: expected .*greater than 0"),
        ({"train": {"local_steps": 3, "local_epochs": 1}}, "local_steps or local_epochs, not both"),
        ({"train": {"clip": -1.0}}, r"^train\.clip = -1\.0: expected a positive norm or 'off'"),
        (
            {"federation": {"group_size": 0}},
            r"^federation\.group_size = 0: expected a positive integer or 'auto'",
        ),
        ({"federation": {"fraction": 0.0}}, r"federation\.fraction = 0\.0"),
        ({"task": {}}, r"task\.data: missing; .*--set task\.data="),
        ({"seed": -1}, r"seed = -1"),
    ],
)
def test_bad_recipes_name_key_value_and_remedy(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({**MINIMAL, **data})


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, "train": {"lr": -1.0, "batch_size": 0}})
    assert "train.lr" in str(caught.value)
    assert "train.batch_size" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.strength=0.3", 0.3),
        ("method.strength=[[1, 0.0], [5, 0.5]]", [[1, 0.0], [5, 0.5]]),
        ("method.strength=joint", "joint"),
        ("method.strength='0.3'", "0.3"),
        ("method.strength = true", True),
    ],
)
def test_override_takes_any_toml_value_or_a_bare_word(override: str, expected: object) -> None:
    data: dict[str, Any] = {}
    apply_override(data, override)
    assert data == {"method": {"strength": expected}}


def test_options_of_a_method_that_is_replaced_are_left_out_and_named() -> None:
    data: dict[str, Any] = {
        "method": {"name": "fedrot", "strength": 0.5, "anchor": "a"},
        "partition": {"kind": "dirichlet", "alpha": 0.5, "min_size": 8},
    }
    said = apply_overrides(data, ["method.name=fedit", "method.anchor=b", "partition.kind=iid"])
    assert data == {"method": {"name": "fedit", "anchor": "b"}, "partition": {"kind": "iid", "min_size": 8}}
    assert said == [
        "method.strength = 0.5 belongs to 'fedrot' and is left out with 'fedit'",
        "partition.alpha = 0.5 belongs to 'dirichlet' and is left out with 'iid'",
    ]


def test_options_stay_where_the_method_stays() -> None:
    data: dict[str, Any] = {"method": {"strength": 0.5}}
    assert apply_overrides(data, ["method.name=fedrot", "seed=3"]) == []
    assert data == {"method": {"name": "fedrot", "strength": 0.5}, "seed": 3}


@pytest.mark.parametrize("override", ["method.strength", "=3", "method..x=1", "seed.x=1"])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_override({"seed": 1}, override)


def test_differences_name_both_values() -> None:
    old = parse_config({**MINIMAL, "method": {"name": "fedrot", "strength": 0.5}})
    new = parse_config({**MINIMAL, "method": {"name": "fedrot"}, "seed": 4})
    assert differences(old, new) == ["method.strength: 0.5 -> '(unset)'", "seed: 0 -> 4"]
    assert differences(old, new, ["seed", "method.strength"]) == []


def test_unreadable_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml.*cannot be read"):
        load_config(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3", "utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")


def test_every_shipped_recipe_is_valid() -> None:
    recipes = sorted(Path("recipes").rglob("*.toml"))
    assert recipes
    for path in recipes:
        if "compare" not in tomllib.loads(path.read_text("utf-8")):
            assert load_config(path).task.data


@settings(deadline=None, max_examples=50)
@given(
    lr=st.floats(1e-8, 10),
    rank=st.integers(1, 512),
    clip=st.one_of(st.just("off"), st.floats(1e-3, 100)),
    seed=st.integers(0, 2**62),
)
def test_any_valid_recipe_survives_toml(lr: float, rank: int, clip: float | str, seed: int) -> None:
    config = parse_config(
        {**MINIMAL, "train": {"lr": lr, "clip": clip}, "lora": {"rank": rank}, "seed": seed}
    )
    assert parse_config(tomllib.loads(config.to_toml())) == config
