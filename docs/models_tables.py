"""The table of models, made from what the tests try."""

from __future__ import annotations

import tomllib
from pathlib import Path


def models() -> str:
    """A row for each model and task of `models.toml`, which tests/test_models.py holds to be so."""
    table = tomllib.loads((Path(__file__).parent / "models.toml").read_text("utf-8"))["model"]
    lines = ["| model | task | trains | `cache_frozen` | instead |", "| --- | --- | --- | --- | --- |"]
    for model in table:
        tasks = ", ".join(f"`{task}`" for task in model["tasks"])
        if "refused" in model:
            lines.append(f"| {model['name']} | {tasks} | refused: {model['refused']} | – | {model['remedy']} |")
        else:
            cached = "yes" if model.get("cached", True) else "refused"
            lines.append(f"| {model['name']} | {tasks} | yes | {cached} | |")
    return "\n".join(lines) + "\n"
