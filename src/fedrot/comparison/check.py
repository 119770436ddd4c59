"""From a sweep file and what was asked on top of it to a checked `Design`; every refusal names the key and a remedy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedrot.comparison.design import Design, assign, concerns, method_of, options_of
from fedrot.comparison.options import Setting, check_values, flat, shown
from fedrot.config import RunConfig, apply_overrides, parse_config, read_recipe
from fedrot.engines.compat import check_compat
from fedrot.engines.compat import method_of as method_of_run
from fedrot.errors import ConfigError, nearest
from fedrot.methods import methods
from fedrot.partition_options import find_kind, partitioner_arguments
from fedrot.tasks.catalogue import objective

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


def check_design(design: Design) -> None:
    """Refuse what cannot run or would not be fair, before anything is trained.

    Raises:
        ConfigError: see the messages.
    """
    if design.baseline not in design.variants:
        raise ConfigError(
            f"baseline = {design.baseline!r}: not among the variants; {nearest(design.baseline, design.variants)}"
        )
    if design.grid and design.listed:
        raise ConfigError("listed: there is a grid too; list every point, or leave one of the two out")
    _check_keys(design)
    _check_budget(design)
    directions: dict[str, str] = {}
    for arm in design.arms():
        for setting in arm.candidates:
            try:
                config = design.config(arm.variant, arm.point, setting, design.seeds[0])
                _check_open_sections(config)
            except ConfigError as error:
                raise ConfigError(f"{arm.name}: {error}") from None
            metric = objective(config.task).metric
            directions.setdefault(metric.better, metric.name)
            if design.tuned and config.task.validation_fraction == 0:
                raise ConfigError(
                    "tune: settings are chosen on the validation split, and task.validation_fraction = 0 leaves none; "
                    "set it to, for instance, 0.1, or leave --tune out"
                )
    if len(directions) > 1:
        raise ConfigError(
            f"compare: runs judged by {' and '.join(directions.values())} have no common scale, for more is better of "
            "one and less of the other; compare them in separate sweeps"
        )


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


def _check_keys(design: Design) -> None:
    """Every key exists, and is set in one place only."""
    for where, key, value in _used(design):
        section = key.split(".")[0]
        if key == "seed" or section in ("output", "engine"):
            remedy = "use --seeds" if key == "seed" else "it does not belong to what is compared; use --set"
            raise ConfigError(f"{where} {key}: cannot vary here; {remedy}")
        if section != "method":
            _check_key(design, where, key, value)
    for label, setting in design.variants.items():
        name = str(setting.get("method.name", method_of(design.recipe)))
        known = options_of(name)
        own = design.own_tune.get(label, {})
        for key in design.tune | own:
            option = key.removeprefix("method.")
            if key.startswith("method.") and option not in known:
                remedy = "" if key in own else f"; tune it for one variant alone: --tune VARIANT:{key}=..."
                raise ConfigError(
                    f"tune {key}: {label!r} has no such option; {nearest(option, known)}{remedy}"
                )
            if key in design.varied:
                raise ConfigError(f"tune {key}: it is a grid key too; a value is either varied or chosen")
        if twice := sorted(setting.keys() & (design.varied.keys() | design.tune.keys() | own.keys())):
            raise ConfigError(
                f"variant {label!r} sets {twice[0]}, which the grid or tuning sets too; leave one out"
            )
    everyones = {
        o
        for s in design.variants.values()
        for o in options_of(s.get("method.name", method_of(design.recipe)))
    }
    for key in design.varied:
        if key.startswith("method.") and (option := key.removeprefix("method.")) not in everyones:
            raise ConfigError(f"grid {key}: no variant has such an option; {nearest(option, everyones)}")
        names = [str(s.get("method.name", method_of(design.recipe))) for s in design.variants.values()]
        if key.startswith("compat.") and not any(concerns(key, name) for name in names):
            raise ConfigError(
                f"grid {key}: it means nothing with {', '.join(names)}; see docs/published-code.md"
            )


def _used(design: Design) -> Iterable[tuple[str, str, Any]]:
    for where, lists in (
        ("grid", design.varied),
        ("tune", design.tune),
        *(("tune", own) for own in design.own_tune.values()),
    ):
        for key, values in lists.items():
            yield from ((where, key, value) for value in values)
    for label, setting in design.variants.items():
        yield from ((f"variant {label!r}:", key, value) for key, value in setting.items())


def _check_key(design: Design, where: str, key: str, value: Any) -> None:
    """The recipe with this key alone changed is a recipe."""
    import copy

    data = copy.deepcopy(design.recipe)
    try:
        assign(data, key, value)
        parse_config(data)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from None


def _check_budget(design: Design) -> None:
    if design.tune_seeds > len(design.seeds):
        raise ConfigError(
            f"tune_seeds = {design.tune_seeds}: there are {len(design.seeds)} seeds; expected at most that"
        )
    for label in design.variants:
        lists = design.tune | design.own_tune.get(label, {})
        settings = math.prod(len(values) for values in lists.values())
        if settings < design.trials:
            raise ConfigError(
                f"trials = {design.trials}: {label!r} has {settings} settings to choose from, and every variant gets "
                f"the same number; lower --trials to {settings}, or give it more: --tune {label}:KEY=v1,v2"
            )
        if design.trials == 1 and settings > 1:
            raise ConfigError(
                f"trials = 1: {label!r} has {settings} settings but could try one; every variant gets the same number: "
                "give all something to choose, for instance --tune train.lr=1e-3,3e-3, and --trials"
            )


def _check_open_sections(config: RunConfig) -> None:
    method_of_run(config)
    check_compat(config)
    kind = find_kind(config.partition.kind)
    partitioner_arguments(config.partition, kind, config.federation.clients, config.seed)


def as_table(design: Design) -> dict[str, Any]:
    """The design as a `[compare]` table: what `make_design` reads."""
    own = {
        f"{label}:{key}": values for label, lists in design.own_tune.items() for key, values in lists.items()
    }
    table = dataclasses.asdict(design)
    del table["recipe"], table["own_tune"]
    return table | {"seeds": list(design.seeds), "tune": design.tune | own}
