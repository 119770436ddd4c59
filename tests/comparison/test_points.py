"""Sweep files that build on a recipe, and grid points that are listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedrot.comparison.reading import as_table, make_design, split_recipe
from fedrot.errors import ConfigError

BASE = """
[model]
path = "models/mine"
[task]
data = "tweets"
[train]
local_steps = 5
lr = 0.1
[federation]
clients = 4
"""
SWEEP = """
[train]
lr = 0.2
[compare]
base = "base.toml"
methods = ["fedit", "ffa"]
seeds = [1, 2]
listed = [
    { "train.local_steps" = 20, "federation.rounds" = 5 },
    { "train.local_steps" = 100, "federation.rounds" = 1 },
]
"""


def sweep(folder: Path, text: str = SWEEP) -> tuple[dict[str, Any], dict[str, Any]]:
    (folder / "base.toml").write_text(BASE, "utf-8")
    (folder / "sweep.toml").write_text(text, "utf-8")
    return split_recipe(folder / "sweep.toml")


def test_a_sweep_takes_from_its_base_what_it_does_not_set(tmp_path: Path) -> None:
    recipe, table = sweep(tmp_path)
    assert recipe["model"]["path"] == "models/mine"
    assert recipe["train"] == {"local_steps": 5, "lr": 0.2}
    assert "base" not in table


def test_keys_of_a_listed_point_change_together(tmp_path: Path) -> None:
    design = make_design(*sweep(tmp_path), {})
    configs = [design.config("ffa", point, {}, 1) for point in design.points]
    assert [(c.train.local_steps, c.federation.rounds) for c in configs] == [(20, 5), (100, 1)]
    assert make_design({**design.recipe}, as_table(design), {}).points == design.points


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("base.toml", "nowhere.toml", "nowhere.toml.*cannot be read"),
        ('"base.toml"', "3", "compare.base = 3: expected the path"),
        ('"federation.rounds" = 1 }', '"federation.round" = 1 }', "federation.round: unknown key.*rounds"),
        ("listed = [", 'grid = { "lora.rank" = [2] }\nlisted = [', "listed: there is a grid too"),
        ('100, "federation.rounds" = 1', '20, "federation.rounds" = 5', "listed: .*give each point once"),
    ],
)
def test_points_and_bases_that_cannot_be_used_are_refused(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = SWEEP.replace(old, new)
    with pytest.raises(ConfigError, match=said):
        make_design(*sweep(tmp_path, text), {})
