"""Python calls with arguments of a wrong shape say which, and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedrot
from fedrot.errors import ConfigError

RECIPE = "[model]\npath = 'x'\n[task]\ndata = 'tweets'\n[federation]\nclients = 2\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"methods": "fedit,fedrot"},
            r"methods = 'fedit,fedrot': expected a list, such as methods=\['fedit'",
        ),
        ({"seeds": 1}, r"seeds = 1: expected a list, such as seeds=\[11, 12, 13\]"),
        (
            {"tune": {"train.lr": 1e-3}},
            r"tune\['train\.lr'\] = 0\.001: expected a list, such as tune=\{'train\.lr'",
        ),
        ({"grid": {"method.anchor": "joint"}}, r"grid\['method\.anchor'\] = 'joint': expected a list"),
        ({"grid": ["lora.rank"]}, r"grid = \['lora\.rank'\]: expected lists by recipe key"),
        (
            {"overrides": "train.lr=1e-3"},
            r"overrides = 'train\.lr=1e-3': expected a list, such as overrides=",
        ),
        ({"variants": ["fedit"]}, "variants: a table of label to settings"),
    ],
)
def test_arguments_of_compare(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE, "utf-8")
    asked: Any = {"methods": ["fedit"], "seeds": range(2)} | given
    with pytest.raises(ConfigError, match=message):
        fedrot.compare(file, out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_arguments_of_run(tmp_path: Path) -> None:
    recipe: Any = {"model": {"path": "x"}, "task": {"data": "tweets" * 20}}
    with pytest.raises(
        ConfigError, match=r"config = \{'model'.*\.\.\.: expected the path .*fedrot\.config\.parse_config"
    ):
        fedrot.run(recipe)
    overrides: Any = "train.lr=1e-3"
    with pytest.raises(ConfigError, match=r"overrides = 'train\.lr=1e-3': expected a list"):
        fedrot.run(tmp_path / "recipe.toml", overrides=overrides)
    overrides = [("train.lr", 1e-3)]
    with pytest.raises(ConfigError, match=r"expected 'section\.key=value'"):
        fedrot.run(tmp_path / "recipe.toml", overrides=overrides)


def test_weights_of_merge(tmp_path: Path) -> None:
    for weights, message in (
        ("1,2", r"weights = '1,2': expected a list"),
        (["a"], "weights: could not convert"),
    ):
        given: Any = weights
        with pytest.raises(ConfigError, match=message):
            fedrot.merge([adapter()], weights=given, out=tmp_path / "out")


def adapter() -> fedrot.Adapter:
    return fedrot.Adapter({"query": fedrot.Factors(torch.ones(1, 2), torch.ones(2, 1))}, {}, 1.0)
