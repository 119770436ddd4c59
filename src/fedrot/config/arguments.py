"""Arguments of Python calls whose shape is easily mistaken: a text is a sequence of letters, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from fedrot.errors import ConfigError


def as_list(value: object, name: str, example: str) -> list[Any]:
    """A list, tuple, range or array as a list.

    Args:
        value: as given.
        name: of the argument, for the message.
        example: of what is expected.

    Raises:
        ConfigError: a text, a mapping, or a single value.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} = {value!r}: expected a list, such as {name}={example}")
    return list(cast(Iterable[Any], value))


def as_lists(value: object, name: str, example: str) -> dict[str, list[Any]]:
    """A mapping of names to lists.

    Raises:
        ConfigError: no mapping, or something else than a list in it.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} = {value!r}: expected lists by recipe key, such as {name}={example}")
    found: dict[str, list[Any]] = {}
    for key, each in cast(Mapping[str, Any], value).items():
        if isinstance(each, str | bytes | Mapping) or not isinstance(each, Iterable):
            raise ConfigError(f"{name}[{key!r}] = {each!r}: expected a list, such as {name}={example}")
        found[key] = list(cast(Iterable[Any], each))
    return found


def as_overrides(value: object) -> list[str]:
    """A list of `section.key=value` strings.

    Raises:
        ConfigError: something else.
    """
    found = as_list(value, "overrides", "['train.lr=1e-3']")
    for each in found:
        if not isinstance(each, str):
            raise ConfigError(f"overrides = {value!r}: {each!r}: expected 'section.key=value'")
    return found
