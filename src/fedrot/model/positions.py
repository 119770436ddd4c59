"""Positions that a model has learned one by one, so that texts have a longest length."""

from __future__ import annotations

from typing import Any

from torch import nn


def learned_positions(module: nn.Module) -> int | None:
    """How many tokens of a text have a learned position; None where positions are computed from their numbers.

    Some tables begin later: RoBERTa's behind the number of the padding token, OPT's and BART's at an offset.
    """
    found: list[int] = []
    for name, child in module.named_modules():
        if isinstance(child, nn.Embedding) and _about_positions(name.rpartition(".")[2]):
            table: Any = child
            behind = 0 if child.padding_idx is None else child.padding_idx + 1
            found.append(child.num_embeddings - max(behind, getattr(table, "offset", 0)))
    return min(found, default=None)


def _about_positions(name: str) -> bool:
    return name == "wpe" or ("position" in name and "relative" not in name)
