"""What pages show is tried: TOML as a part of a recipe, `fedrot` commands on the command line, imports of Python."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import typer.main
from mkdocs.exceptions import PluginError

import fedrot
from fedrot import cli, config, partition_options
from fedrot.comparison import command, reading
from fedrot.engines import compat


def check_toml(block: str) -> None:
    """A part of a recipe, completed with what it leaves out."""
    data = tomllib.loads(block)
    data.setdefault("model", {}).setdefault("path", "models/mine")
    data.setdefault("task", {}).setdefault("data", "tweets")
    if (sweep := data.pop("compare", None)) is not None:
        data.setdefault("federation", {}).setdefault("clients", 2)
        reading.make_design(data, sweep, {})
    made = config.parse_config(data)
    compat.method_of(made)
    kind = partition_options.find_kind(made.partition.kind)
    needed = {"alpha": 0.5} if made.partition.kind == "dirichlet" and not made.partition.options else {}
    partition = made.partition.model_copy()
    partition.__pydantic_extra__.update(needed)
    partition_options.partitioner_arguments(partition, kind, made.federation.clients or 2, made.seed)


def check_commands(block: str) -> None:
    """Every `fedrot` command parses, and its `--set` keys suit the recipe it names."""
    group = typer.main.get_command(cli.app)
    for line in block.replace("\\\n", " ").splitlines():
        line = shlex.split(line, comments=True)
        if not line or line[0] != "fedrot":
            continue
        context = click.Context(group)
        command = group.get_command(context, line[1])
        if command is None:
            raise ValueError(f"no command {line[1]!r}")
        if isinstance(command, click.Group):
            if len(line) == 2:
                continue
            line = [line[0], *line[2:]]
            context = click.Context(command, parent=context)
            command = command.get_command(context, line[1])
            if command is None:
                raise ValueError(f"no command {line[1]!r}")
        given = command.make_context(line[1], line[2:], parent=context).params
        if line[1] == "compare":
            check_comparison(given)
            continue
        recipe = given.get("recipe")
        data: dict[str, Any] = {"model": {"path": "x"}, "task": {"data": "tweets"}}
        if recipe is not None and Path(recipe).exists():
            data = config.read_recipe(recipe)
        config.apply_overrides(data, given.get("set_") or ())
        made = config.parse_config(data)
        compat.method_of(made)


def check_comparison(given: dict[str, Any]) -> None:
    """The comparison that a command asks for can be made of the recipe it names."""
    if given["recipe"] is None:
        return
    names = inspect.signature(command.parse_options).parameters
    asked = command.parse_options(**{name: given[name] for name in names})
    recipe, table = reading.split_recipe(given["recipe"])
    reading.make_design(recipe, table, asked, given["set_"] or ())


def check_python(block: str) -> None:
    """It parses, and what it takes from fedrot exists."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedrot"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                getattr(module, alias.name)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fedrot":
            getattr(fedrot, node.attr)


CHECKS: dict[str, Callable[[str], None]] = {
    "toml": check_toml,
    "bash": check_commands,
    "python": check_python,
}


def check_blocks(markdown: str, where: str) -> None:
    """Try every fenced block and every `fedrot` command within a line."""
    blocks = re.findall(r"^```(toml|bash|python)[^\n]*\n(.*?)^```", markdown, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)
    blocks += [("bash", " ".join(line.split())) for line in re.findall(r"`(fedrot [^`]+)`", prose)]
    for language, block in blocks:
        try:
            CHECKS[language](block)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{where}: in the block\n{block}\n{type(error).__name__}: {error}") from error
