"""What a comparison must be to run and to be fair; every refusal names the key and a remedy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

from fedrot.comparison.design import Design, assign, concerns, method_of, options_of
from fedrot.config import RunConfig, parse_config
from fedrot.engines.compat import check_compat
from fedrot.engines.compat import method_of as method_of_run
from fedrot.errors import ConfigError, nearest
from fedrot.partition_options import find_kind, partitioner_arguments
from fedrot.tasks.catalogue import objective


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
