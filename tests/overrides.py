"""Recipes of tests, with single keys changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrot.config import RunConfig, parse_config


def recipe_with(data: dict[str, Any], overrides: Mapping[str, Any]) -> RunConfig:
    """A recipe's sections with `section__key=value`, or a key outside of them, set."""
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            data.setdefault(section, {})[name] = value
        else:
            data[section] = value
    return parse_config(data)
