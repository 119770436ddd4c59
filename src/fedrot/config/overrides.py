"""`section.key=value` on top of a recipe."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any, cast

from fedrot.config.section import OpenSection
from fedrot.config.sections import MethodConfig, PartitionConfig
from fedrot.errors import ConfigError

NAMED: dict[str, tuple[str, type[OpenSection]]] = {
    "method": ("name", MethodConfig),
    "partition": ("kind", PartitionConfig),
}
"""The key that says what an open section's further keys belong to."""


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set `section.key=value` in place, in order, and leave out options that lost what they belong to.

    Where an override names another method or kind of partition, the options that the recipe itself has for the former
    one go; those that an override sets stay. Returns a line for each that went.

    >>> recipe = {"method": {"name": "fedrot", "strength": 0.5}}
    >>> apply_overrides(recipe, ["method.name=fedit"])
    ["method.strength = 0.5 belongs to 'fedrot' and is left out with 'fedit'"]
    >>> recipe
    {'method': {'name': 'fedit'}}
    """
    before = {section: dict(data.get(section) or {}) for section in NAMED if _is_table(data.get(section))}
    for override in overrides:
        apply_override(data, override)
    given = {override.partition("=")[0].strip() for override in overrides}
    left_out: list[str] = []
    for section, old in before.items():
        key, model = NAMED[section]
        table: dict[str, Any] = data[section]
        former = old.get(key, model.model_fields[key].default)
        now = table.get(key, former)
        for option in old.keys() - model.model_fields.keys() if now != former else ():
            if f"{section}.{option}" not in given:
                left_out.append(
                    f"{section}.{option} = {table.pop(option)!r} belongs to {former!r} and is left out with {now!r}"
                )
    return sorted(left_out)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in place. The value is TOML; a bare word is a string.

    >>> recipe = {}
    >>> apply_override(recipe, "method.strength=0.3")
    >>> apply_override(recipe, "method.anchor=joint")
    >>> recipe
    {'method': {'strength': 0.3, 'anchor': 'joint'}}
    """
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override!r}: expected section.key=value, for instance method.strength=0.3")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = data
    for part in parts[:-1]:
        below: Any = table.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
        table = cast(dict[str, Any], below)
    table[parts[-1]] = value
