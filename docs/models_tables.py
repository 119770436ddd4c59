"""The table of models, made from what the tests try."""

from __future__ import annotations

import tomllib
from pathlib import Path


def models() -> str:
    """A row for each model of `models.toml`, which tests/test_models.py holds to be so."""
    table = tomllib.loads((Path(__file__).parent / "models.toml").read_text("utf-8"))["model"]
    lines = ["| model | tasks | `train.cache_frozen` | `task.packing` |", "| --- | --- | --- | --- |"]
    for model in table:
        tasks = ", ".join(f"`{task}`" for task in model["tasks"])
        cached, packed = ("yes" if model.get(key, True) else "refused" for key in ("cached", "packed"))
        lines.append(
            f"| {model['name']} | {tasks} | {cached} | {packed if 'generate' in model['tasks'] else '–'} |"
        )
    return "\n".join(lines) + "\n"
