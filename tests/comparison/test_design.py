"""What a comparison consists of, and every request that is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrot.comparison.cells import expected_cells
from fedrot.comparison.design import Design, candidates, thin_out
from fedrot.comparison.options import parse_assignments, parse_variant
from fedrot.comparison.reading import as_table, make_design, split_recipe
from fedrot.comparison.run import plan
from fedrot.config import load_config
from fedrot.errors import ConfigError

RECIPE: dict[str, Any] = {
    "model": {"path": "models/mine"},
    "task": {"data": "tweets"},
    "method": {"name": "fedrot", "strength": 0.25},
    "federation": {"clients": 4},
}


def design(table: dict[str, Any] | None = None, *overrides: str, **given: Any) -> Design:
    recipe = {key: dict(value) for key, value in RECIPE.items()}
    asked = {"methods": ["fedit", "fedrot"], "seeds": [1, 2]} | (table or {})
    return make_design(recipe, asked, given, overrides)


def test_the_recipes_options_belong_to_its_own_method() -> None:
    made = design()
    assert made.config("fedrot", {}, {}, 7).method.options == {"strength": 0.25}
    assert made.config("fedit", {}, {}, 7).method.options == {}
    assert made.config("fedit", {}, {}, 7).seed == 7


def test_a_grid_is_a_product_or_one_factor_at_a_time() -> None:
    grid = {"lora.rank": [2, 4], "federation.clients": [3, 10, 50]}
    assert len(design({"grid": grid}).points) == 6
    points = design({"grid": grid, "one_factor": True}).points
    assert points == [{"lora.rank": 2}, {"lora.rank": 4}, *({"federation.clients": n} for n in (3, 10, 50))]
    assert design({"one_factor": True}).points == design().points == [{}], (
        "without a grid, the recipe as it is"
    )


def test_a_method_without_an_option_is_the_same_run_along_its_grid() -> None:
    made = design({"grid": {"method.strength": [0, 0.5, 1]}})
    assert expected_cells(made) == (2 * (1 + 3), 0), "fedit once a seed, fedrot three times"
    assert made.config("fedit", {"method.strength": 1}, {}, 1) == made.config("fedit", {}, {}, 1)


def test_cells_are_counted_beforehand() -> None:
    made = design({"tune": {"train.lr": [1e-3, 3e-3, 1e-2]}, "seeds": [1, 2, 3]})
    assert expected_cells(made) == (2 * (3 + 2), 0), "three trials on seed 1, then the two other seeds"


def test_every_variant_tries_equally_many_settings() -> None:
    table = {"tune": {"train.lr": [1, 2, 3], "fedrot:method.strength": [0.25, 0.5, 1.0]}}
    made = design(table)
    assert made.trials == 3
    assert [len(candidates(made, label)) for label in ("fedit", "fedrot")] == [3, 3]
    tried = candidates(made, "fedrot")
    assert {s["train.lr"] for s in tried} == {1, 2, 3}
    assert {s["method.strength"] for s in tried} == {0.25, 0.5, 1.0}


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), count=st.integers(1, 20))
def test_thinning_out_takes_every_value_about_equally_often(sizes: list[int], count: int) -> None:
    import itertools

    keys = "xyz"[: len(sizes)]
    product = [dict(zip(keys, v, strict=True)) for v in itertools.product(*map(range, sizes))]
    kept = thin_out(product, count)
    assert len(kept) == min(count, len(product))
    assert all(setting in product for setting in kept)
    assert kept == sorted(kept, key=product.index)
    for key, size in zip(keys, sizes, strict=True):
        uses = Counter(setting[key] for setting in kept)
        assert max(uses.values()) - min(uses[value] for value in range(size)) <= 1 + len(sizes)


def test_a_stored_design_is_read_back_as_it_was() -> None:
    made = design(
        {"grid": {"lora.rank": [2]}, "tune": {"train.lr": [1, 2], "fedrot:method.strength": [0, 1]}}
    )
    again = make_design(made.recipe, as_table(made), {})
    assert again == made


def test_a_sweep_file_is_split_and_overridden_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'model.path = "m"\ntask.data = "tweets"\nfederation.clients = 4\n[compare]\nmethods = ["fedit"]\nseeds = [1]\n'
        '[compare.grid]\n"lora.rank" = [2, 4]\n'
        '[compare.variants.hard]\n"method.name" = "fedrot"\nmethod.strength = 1\n',
        "utf-8",
    )
    made, _ = plan(path, {"seeds": [5, 6], "grid": None})
    assert made.seeds == (5, 6)
    assert made.points == [{"lora.rank": 2}, {"lora.rank": 4}]
    assert made.variants == {
        "fedit": {"method.name": "fedit"},
        "hard": {"method.name": "fedrot", "method.strength": 1},
    }
    assert split_recipe(path)[0].keys() == {"model", "task", "federation"}
    with pytest.raises(ConfigError, match=r"\[compare\].*fedrot compare"):
        load_config(path)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"seeds": []}, "seeds: none given"),
        ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
        ({"seeds": [-1]}, "expected whole numbers"),
        ({"methods": ["fedit", "fedrott"]}, "did you mean 'fedrot'"),
        ({"methods": ["fedit", "fedit"]}, "'fedit' is given twice"),
        ({"methods": [], "variants": {}}, "nothing to compare"),
        ({"baseline": "fedrod"}, "not among the variants; did you mean 'fedrot'"),
        ({"grid": {"federation.client": [3]}}, "grid federation.client: unknown key; did you mean 'clients'"),
        (
            {"grid": {"method.strenght": [0.5]}},
            "grid method.strenght: no variant has such an option; did you mean",
        ),
        ({"grid": {"lora.rank": [2, 0]}}, "grid lora.rank = 0: expected greater than 0"),
        ({"grid": {"lora.rank": []}}, "expected at least one value"),
        ({"grid": {"seed": [1]}}, "grid seed: cannot vary here; use --seeds"),
        ({"grid": {"train.lr": [1]}, "tune": {"train.lr": [1, 2]}}, "tune train.lr: it is a grid key too"),
        ({"tune": {"method.strength": [0, 1]}}, "'fedit' has no such option"),
        ({"tune": {"fedrt:train.lr": [1, 2]}}, "no variant 'fedrt'; did you mean 'fedrot'"),
        ({"tune": {"fedrot:method.strength": [0, 1]}}, "give all something to choose"),
        ({"tune": {"train.lr": [1, 2]}, "trials": 3}, "lower --trials to 2"),
        ({"tune": {"train.lr": [1, 2]}, "tune_seeds": 3}, "there are 2 seeds"),
        (
            {"variants": {"hard": {"method.strength": 1}}, "grid": {"method.strength": [0]}},
            "variant 'hard' sets",
        ),
        ({"variants": {"fedit": {"method.name": "ffa"}}}, "choose another label"),
        ({"variants": {"far": {"partition.kind": "dirichlet"}}}, "far: partition"),
        ({"seed": [1]}, "compare.seed: unknown key; did you mean 'seeds'"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        design(table)
    assert said in str(refusal.value)


def test_tuning_needs_a_validation_split() -> None:
    with pytest.raises(ConfigError, match=r"validation_fraction = 0.*set it to"):
        design({"tune": {"train.lr": [1, 2]}}, "task.validation_fraction=0")
    assert design(None, "task.validation_fraction=0").trials == 1


@pytest.mark.parametrize("text", ["train.lr", "=1", "train.lr=", "train.lr=1,1"])
def test_lists_on_the_command_line_are_read_strictly(text: str) -> None:
    with pytest.raises(ConfigError, match="--grid"):
        parse_assignments([text], "--grid")


@pytest.mark.parametrize("text", ["hard", "hard:", ": method.name=fedit", "hard: strength"])
def test_a_variant_needs_a_label_and_settings(text: str) -> None:
    with pytest.raises(ConfigError, match="--variant"):
        parse_variant(text)


SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_read(path: Path) -> None:
    data, table = split_recipe(path)
    if table:
        assert expected_cells(make_design(data, table, {}))[0] > 1
    else:
        assert load_config(path).federation.rounds >= 1
