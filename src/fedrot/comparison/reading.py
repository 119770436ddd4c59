"""From a sweep file and what was asked on top of it to a `Design`, and back to a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedrot.comparison.check import check_design
from fedrot.comparison.design import Design, assign
from fedrot.comparison.options import Setting, check_values, flat, shown
from fedrot.config import apply_overrides, read_recipe
from fedrot.errors import ConfigError, nearest
from fedrot.methods import methods

KEYS = (
    *("methods", "variants", "seeds", "baseline"),
    *("grid", "one_factor", "listed"),
    *("tune", "trials", "tune_seeds"),
)
"""What `[compare]` may hold, besides `base`."""


def split_recipe(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe without its `[compare]` table, and that table.

    `compare.base`, a path beside the file, names a recipe whose keys hold where the file does not set them.
    """
    data = dict(source) if isinstance(source, Mapping) else read_recipe(source)
    table = data.pop("compare", {})
    if not isinstance(table, dict):
        raise ConfigError(f"compare = {table!r}: expected a table [compare]")
    table = dict(cast(dict[str, Any], table))
    if (base := table.pop("base", None)) is not None:
        if not isinstance(base, str):
            raise ConfigError(f"compare.base = {base!r}: expected the path of a recipe beside this file")
        folder = Path() if isinstance(source, Mapping) else Path(source).parent
        recipe = read_recipe(folder / base)
        if "compare" in recipe:
            raise ConfigError(f"compare.base = {base!r}: it has a table [compare] too; name a plain recipe")
        for key, value in flat(data).items():
            assign(recipe, key, value)
        data = recipe
    return data, table


def make_design(
    recipe: dict[str, Any],
    table: Mapping[str, Any],
    given: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> Design:
    """The comparison that `table` describes, each key replaced by that of `given` where there is one.

    Args:
        recipe: as read; changed in place by `overrides`.
        table: the sweep file's `[compare]`.
        given: the same keys from the command line or a call; None is not given.
        overrides: `section.key=value` for the recipe.

    Raises:
        ConfigError: an unknown key, variant, method or value; see `check_design`.
    """
    for key in table:
        if key not in KEYS:
            raise ConfigError(f"compare.{key}: unknown key; {nearest(key, KEYS)}")
    apply_overrides(recipe, overrides)
    asked = dict(table) | {key: value for key, value in given.items() if value is not None}
    variants = _variants(asked)
    tune, own = _tune(asked.get("tune", {}), variants)
    design = Design(
        recipe=recipe,
        variants=variants,
        seeds=_seeds(asked.get("seeds")),
        baseline=str(asked.get("baseline", "fedit" if "fedit" in variants else next(iter(variants)))),
        grid=_lists(asked.get("grid", {}), "grid"),
        one_factor=_flag(asked.get("one_factor", False)),
        listed=_listed(asked.get("listed", [])),
        tune=tune,
        own_tune=own,
        trials=_count(asked, "trials", math.prod(len(values) for values in tune.values())),
        tune_seeds=_count(asked, "tune_seeds", 1),
    )
    check_design(design)
    return design


def as_table(design: Design) -> dict[str, Any]:
    """The design as a `[compare]` table: what `make_design` reads."""
    own = {
        f"{label}:{key}": values for label, lists in design.own_tune.items() for key, values in lists.items()
    }
    table = dataclasses.asdict(design)
    del table["recipe"], table["own_tune"]
    return table | {"seeds": list(design.seeds), "tune": design.tune | own}


def _variants(asked: Mapping[str, Any]) -> dict[str, Setting]:
    names = asked.get("methods", [])
    table = asked.get("variants", {})
    if not isinstance(names, list) or not isinstance(table, Mapping):
        raise ConfigError("methods: expected a list of names, and variants: a table of label to settings")
    variants: dict[str, Setting] = {}
    if names:
        for name in cast(list[Any], check_values(names, "methods")):
            if name not in methods():
                raise ConfigError(f"methods: no method {name!r}; {nearest(str(name), methods())}")
            variants[name] = {"method.name": name}
    for label, setting in cast(Mapping[str, Any], table).items():
        if not isinstance(setting, Mapping) or not setting:
            raise ConfigError(f"variants.{label} = {setting!r}: expected a table of recipe keys")
        flattened = flat(cast(Mapping[str, Any], setting))
        if variants.setdefault(label, flattened) != flattened:
            raise ConfigError(
                f"variants.{label}: a method of this name is compared too; choose another label"
            )
    if not variants:
        raise ConfigError(
            "methods: nothing to compare; give --methods fedit,fedrot or --variant, or put them in [compare]"
        )
    return variants


def _seeds(seeds: Any) -> tuple[int, ...]:
    if not seeds:
        raise ConfigError("seeds: none given; give at least one, better three or more: --seeds 11,12,13")
    seeds = check_values(seeds, "seeds")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"seeds: {seed!r}: expected whole numbers from 0 on")
    return tuple(seeds)


def _lists(table: Any, what: str) -> dict[str, list[Any]]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{what} = {table!r}: expected a table of recipe key to list of values")
    return {key: check_values(values, f"{what} {key}") for key, values in _flat_lists(table)}


def _flat_lists(table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return flat(table).items()


def _tune(
    table: Any, variants: Mapping[str, Setting]
) -> tuple[dict[str, list[Any]], dict[str, dict[str, list[Any]]]]:
    common: dict[str, list[Any]] = {}
    own: dict[str, dict[str, list[Any]]] = {}
    for key, values in _lists(table, "tune").items():
        label, colon, rest = key.rpartition(":")
        if not colon:
            common[key] = values
        elif label in variants:
            own.setdefault(label, {})[rest] = values
        else:
            raise ConfigError(f"tune {key}: no variant {label!r}; {nearest(label, variants)}")
    return common, own


def _listed(points: Any) -> list[Setting]:
    if not isinstance(points, list) or not all(isinstance(p, Mapping) for p in cast(list[Any], points)):
        raise ConfigError(f"listed = {points!r}: expected grid points, each a table of recipe keys")
    listed = [flat(cast(Mapping[str, Any], point)) for point in cast(list[Any], points)]
    for number, point in enumerate(listed):
        if not point or point in listed[:number]:
            raise ConfigError(f"listed: {shown(point) or 'a point without keys'}: give each point once")
    return listed


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"one_factor = {value!r}: expected true or false")
    return value


def _count(asked: Mapping[str, Any], key: str, default: int) -> int:
    value = asked.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} = {value!r}: expected a whole number from 1 on")
    return value
