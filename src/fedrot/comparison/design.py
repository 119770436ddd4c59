"""What a comparison consists of: variants, grid points, candidate settings and seeds; and the recipe of each cell."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fedrot.comparison.options import Setting, shown
from fedrot.config import RunConfig, parse_config
from fedrot.engines.compat import suits
from fedrot.errors import ConfigError


@dataclass(frozen=True)
class Design:
    """A comparison, checked by `fedrot.comparison.check.check_design`.

    Attributes:
        recipe: the recipe as given, before variants and seeds.
        variants: settings by label, in the order to report.
        seeds: of the runs that are reported.
        grid: lists of values by recipe key.
        one_factor: vary every grid key alone, the others as in the recipe, instead of all combinations.
        listed: grid points as they are, where keys change together; instead of `grid`.
        tune: lists of values to choose from, by recipe key, for all variants.
        own_tune: further lists by variant.
        trials: candidate settings of each variant; 1 if nothing is tuned.
        tune_seeds: how many of the seeds, the first ones, choose.
        baseline: label of the variant that the others are compared with.
    """

    recipe: dict[str, Any]
    variants: dict[str, Setting]
    seeds: tuple[int, ...]
    baseline: str
    grid: dict[str, list[Any]] = field(default_factory=dict)
    one_factor: bool = False
    listed: list[Setting] = field(default_factory=list[Setting])
    tune: dict[str, list[Any]] = field(default_factory=dict)
    own_tune: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    trials: int = 1
    tune_seeds: int = 1

    @property
    def tuned(self) -> bool:
        """Whether there is anything to choose."""
        return bool(self.tune or self.own_tune)

    @property
    def choosing(self) -> tuple[int, ...]:
        """The seeds whose validation scores choose."""
        return self.seeds[: self.tune_seeds]

    @property
    def varied(self) -> dict[str, list[Any]]:
        """Every value that the grid points give a recipe key."""
        found = {key: list(values) for key, values in self.grid.items()}
        for key, value in (item for point in self.listed for item in point.items()):
            found.setdefault(key, []).append(value)
        return found

    @property
    def points(self) -> list[Setting]:
        """The grid points; one empty one without a grid."""
        if self.listed:
            return self.listed
        if self.one_factor and self.grid:
            return [{key: value} for key, values in self.grid.items() for value in values]
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]

    def arms(self) -> Iterator[Arm]:
        """Every variant at every grid point."""
        for point in self.points:
            for label in self.variants:
                yield Arm(label, point, tuple(candidates(self, label)), self.shown(point))

    def shown(self, setting: Setting) -> str:
        """A grid point or chosen setting in one line that no other one has."""
        own = (key for lists in self.own_tune.values() for key in lists)
        return shown(setting, {*self.varied, *self.tune, *own})

    def config(self, label: str, point: Setting, setting: Setting, seed: int) -> RunConfig:
        """The recipe of one cell.

        Options of the recipe's own method are left out where the variant names another method, and method options and
        `compat` keys of a grid point where they mean nothing with its method: there the point changes nothing.
        """
        data = copy.deepcopy(self.recipe)
        variant = self.variants[label]
        if variant.get("method.name", method_of(self.recipe)) != method_of(self.recipe):
            data["method"] = {}
        for key, value in variant.items():
            assign(data, key, value)
        for key, value in point.items():
            if concerns(key, method_of(data)):
                assign(data, key, value)
        for key, value in setting.items():
            assign(data, key, value)
        data["seed"] = seed
        output: dict[str, Any] = {"report": False, "probe": False}
        data["output"] = output
        return parse_config(data)


@dataclass(frozen=True)
class Arm:
    """A variant at a grid point, with the settings it may choose from."""

    variant: str
    point: Setting
    candidates: tuple[Setting, ...]
    where: str
    """The grid point in words; nothing without a grid."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.variant + (f" at {self.where}" if self.where else "")


def candidates(design: Design, label: str) -> list[Setting]:
    """The settings a variant chooses from: its product of lists, thinned out to `design.trials`."""
    lists = design.tune | design.own_tune.get(label, {})
    product = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    return thin_out(product, design.trials)


def thin_out(settings: list[Setting], count: int) -> list[Setting]:
    """`count` of a product of settings in which every value of every key occurs as equally often as can be.

    Greedy and deterministic: each step takes the setting whose values, and then whose pairs of values, were taken
    least so far, the first of equals. The order of `settings` is kept.

    >>> [tuple(s.values()) for s in thin_out([{"x": x, "y": y} for x in (1, 2, 3) for y in (4, 5, 6)], 3)]
    [(1, 4), (2, 5), (3, 6)]
    """
    if len(settings) <= count:
        return settings
    chosen: list[int] = []
    for _ in range(count):

        def crowding(index: int) -> tuple[int, int, int]:
            values = settings[index].items()
            alike = [[settings[c][key] == value for key, value in values] for c in chosen]
            counts = [sum(column) for column in zip(*alike, strict=True)]
            pairs = sum(sum(row) * (sum(row) - 1) for row in alike)
            return sum(n * n for n in counts), pairs, index

        chosen.append(min((i for i in range(len(settings)) if i not in chosen), key=crowding))
    return [settings[index] for index in sorted(chosen)]


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested tables, in place.

    Raises:
        ConfigError: a part of the key is a value, not a section.
    """
    *sections, last = key.split(".")
    table = data
    for section in sections:
        below: Any = table.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: {section!r} is a value, not a section")
        table = cast(dict[str, Any], below)
    table[last] = value


def method_of(data: Mapping[str, Any]) -> str:
    """The method a recipe names, or the default."""
    section: Any = data.get("method", {})
    return str(section.get("name", "fedrot")) if isinstance(section, Mapping) else "fedrot"


def concerns(key: str, method: str) -> bool:
    """Whether a recipe key can change what a method does; True for all but other methods' options and deviations."""
    section, _, name = key.partition(".")
    if section == "compat":
        return suits(name, method)
    return section != "method" or name in options_of(method)


def options_of(method: str) -> set[str]:
    """The options of a method; none for a name that does not exist, which is reported elsewhere."""
    import dataclasses

    from fedrot.methods import methods

    cls = methods().get(method)
    return {option.name for option in dataclasses.fields(cls)} if cls else set()
