"""Recipes from TOML, every problem named at once; and how two recipes differ."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from fedrot.config.overrides import apply_overrides
from fedrot.config.sections import RunConfig
from fedrot.errors import ConfigError, nearest

Settings = TypeVar("Settings", bound=BaseModel)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), told: Callable[[str], None] | None = None
) -> RunConfig:
    """Read a TOML recipe and apply `section.key=value` overrides in order, see `apply_overrides`.

    Args:
        path: of the recipe.
        overrides: applied to it.
        told: hears which of the recipe's options an override made meaningless.

    Raises:
        ConfigError: unreadable file, bad TOML, unknown key (the nearest name is offered) or a value out of range.
    """
    data = read_recipe(path)
    if "compare" in data:
        raise ConfigError(
            f"recipe '{path}': has a table [compare], which describes many runs; run it with `fedrot compare {path}`, "
            "or take the table out to run the recipe once"
        )
    for note in apply_overrides(data, overrides):
        if told is not None:
            told(note)
    return parse_config(data)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe file as it stands, not yet validated.

    Raises:
        ConfigError: unreadable file or bad TOML.
    """
    return _read_toml(Path(path), f"recipe '{path}'", "give the path of a TOML file")


def load_as(kind: type[Settings], path: Path, remedy: str) -> Settings:
    """Read a TOML file as settings of `kind`, as strictly as a recipe.

    Args:
        kind: what to make of it.
        path: of the file.
        remedy: what to do if it is not there.

    Raises:
        ConfigError: unreadable file, bad TOML, or problems, all listed.
    """
    table = _read_toml(path, f"'{path}'", remedy)
    try:
        return parse_as(kind, table, f"add it to {path.name}")
    except ConfigError as error:
        raise ConfigError(f"'{path}':\n{error}") from None


def _read_toml(path: Path, what: str, remedy: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{what}: cannot be read ({error.strerror}); {remedy}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: not valid TOML: {error}") from error


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping as a recipe. All problems are listed in one ConfigError."""
    return parse_as(RunConfig, data, "add it to the recipe or give --set {name}=...")


def parse_as(kind: type[Settings], data: Mapping[str, Any], missing: str = "add it") -> Settings:
    """Validate a nested mapping as settings of `kind`, as strictly as a recipe.

    Args:
        kind: what to make of it.
        data: the mapping, as read from TOML.
        missing: the remedy for a missing key; `{name}` stands for the key.

    Raises:
        ConfigError: lists all problems.
    """
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, kind, missing) for problem in error.errors())) from None


def differences(old: RunConfig, new: RunConfig, ignore: Sequence[str] = ()) -> list[str]:
    """Lines `section.key: old -> new` for every key that differs, except the dotted names in `ignore`."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    keys = [key for key in sorted(before.keys() | after.keys()) if key not in ignore]
    return [
        f"{key}: {before.get(key, '(unset)')!r} -> {after.get(key, '(unset)')!r}"
        for key in keys
        if before.get(key, "(unset)") != after.get(key, "(unset)")
    ]


_JUDGED = (
    "what a run is judged by follows from its task and stands in summary.json, with the task's other scores; leave the "
    "key out"
)


def _explain(problem: Any, kind: type[BaseModel], missing: str) -> str:
    location = [str(part) for part in problem["loc"]]
    fields = _fields_at(kind, location[:-1])
    name = ".".join(
        part for part in location if part not in ("str", "int", "float") and not part.startswith("literal[")
    )
    if problem["type"] == "extra_forbidden":
        if location[-1] in ("metric", "metrics"):
            return f"{name}: unknown key; {_JUDGED}"
        return f"{name}: unknown key; {nearest(location[-1], fields)}"
    if problem["type"] == "missing":
        return f"{name}: missing; {missing.format(name=name)}"
    message = problem["msg"].removeprefix("Value error, ")
    value: Any = problem.get("input")
    key, colon, rest = message.partition(": ")
    if colon and isinstance(value, Mapping) and key in _fields_at(kind, location):
        section: Mapping[str, Any] = problem["input"]  # whose validator names the key itself
        name, message, value = f"{name}.{key}", rest, section.get(key, section)
    shown = "" if isinstance(value, (Mapping, BaseModel)) else f" = {value!r}"
    return f"{name}{shown}: {_reworded(message)}"


def _reworded(message: str) -> str:
    for theirs, ours in (
        ("Input should be ", "expected "),
        ("Input should ", "expected to "),
        ("String should ", "expected to "),
    ):
        if message.startswith(theirs):
            return ours + message.removeprefix(theirs)
    return message


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(cast(Mapping[str, Any], item), f"{prefix}{key}."))
        else:
            flat[prefix + key] = item
    return flat
