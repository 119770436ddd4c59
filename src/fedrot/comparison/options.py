"""What a user writes on the command line or in `[compare]`, as plain values."""

from __future__ import annotations

import shlex
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from fedrot.errors import ConfigError

Setting = dict[str, Any]
"""Dotted recipe keys with their values."""


def parse_value(text: str) -> Any:
    """A TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def parse_values(text: str) -> list[Any]:
    """Values between commas.

    >>> parse_values("3, 10, 50")
    [3, 10, 50]
    >>> parse_values("alternate,joint")
    ['alternate', 'joint']
    >>> parse_values("[2, 4], [4, 8]")
    [[2, 4], [4, 8]]
    """
    try:
        return tomllib.loads(f"value = [{text}]")["value"]
    except tomllib.TOMLDecodeError:
        return [parse_value(part) for part in text.split(",")]


def parse_list(text: str, what: str) -> list[Any]:
    """`KEY=v1,v2` split in two is the caller's; this is the list, which must not be empty or repeat a value."""
    return check_values(parse_values(text) if text.strip() else [], what)


def check_values(values: Any, what: str) -> list[Any]:
    """A list of at least one value, all different."""
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{what} = {values!r}: expected at least one value, for instance {what}=1,2")
    values = cast(list[Any], values)
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ConfigError(f"{what}: {value!r} is given twice; give each value once")
    return values


def parse_assignments(given: Sequence[str], option: str) -> dict[str, list[Any]]:
    """`--grid` and `--tune`: several `KEY=v1,v2`."""
    lists: dict[str, list[Any]] = {}
    for text in given:
        key, separator, values = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(
                f"{option} {text!r}: expected section.key=v1,v2, for instance federation.clients=3,10"
            )
        if key in lists:
            raise ConfigError(f"{option} {key}: given twice; put all values into one list")
        lists[key] = parse_list(values, f"{option} {key}")
    return lists


def parse_variant(text: str) -> tuple[str, Setting]:
    """`--variant "label: key=value key=value"`.

    >>> parse_variant("hard: method.name=fedrot method.strength=1")
    ('hard', {'method.name': 'fedrot', 'method.strength': 1})
    """
    label, separator, rest = text.partition(":")
    setting: Setting = {}
    for part in shlex.split(rest, posix=False):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ConfigError(f"--variant {text!r}: {part!r}: expected section.key=value")
        setting[key] = parse_value(value)
    if not separator or not label.strip() or not setting:
        raise ConfigError(
            f'--variant {text!r}: expected "label: section.key=value ...", for instance '
            '"hard: method.name=fedrot method.strength=1"'
        )
    return label.strip(), setting


def flat(table: Mapping[str, Any], prefix: str = "") -> Setting:
    """Nested tables as dotted keys; a key that is dotted already stays.

    >>> flat({"method": {"name": "fedit"}, "train.lr": 0.1})
    {'method.name': 'fedit', 'train.lr': 0.1}
    """
    setting: Setting = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            setting.update(flat(cast(Mapping[str, Any], value), f"{prefix}{key}."))
        else:
            setting[prefix + key] = value
    return setting


def shown(setting: Mapping[str, Any], varied: Iterable[str] = ()) -> str:
    """A setting in one line, keys without their section where that leaves no doubt.

    Args:
        setting: dotted keys with their values.
        varied: all keys that the comparison varies, of which two may end alike.

    >>> shown({"federation.clients": 10, "train.lr": 0.003})
    'clients = 10, lr = 0.003'
    >>> shown({"partition.alpha": 1}, ["partition.alpha", "lora.alpha"])
    'partition.alpha = 1'
    """
    ends = Counter(_end(key) for key in {*varied, *setting})
    return ", ".join(
        f"{_end(key) if ends[_end(key)] == 1 else key} = {show_value(value)}"
        for key, value in setting.items()
    )


def varied_keys(compare: Mapping[str, Any]) -> set[str]:
    """The keys that a comparison varies or chooses, from its `[compare]` table."""
    listed = (key for point in compare.get("listed", ()) for key in point)
    tuned = (key.rpartition(":")[2] for key in compare.get("tune", ()))
    return {*compare.get("grid", ()), *listed, *tuned}


def _end(key: str) -> str:
    return key.rpartition(".")[2]


def show_value(value: object) -> str:
    """A value as TOML would write it, strings without quotes."""
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
