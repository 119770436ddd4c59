"""What an evaluator is: everything that can go wrong without a model first, then the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedrot.evaluation.options import Options
from fedrot.evaluation.place import Loaded, Place
from fedrot.evaluation.results import Result

Tell = Callable[[int, int], None]
"""Told how many of how many completions there are."""

Run = Callable[[Loaded, Tell], Result]

Prepare = Callable[[Place, Options], Run]
"""Reads and checks data, consent and confinement, before any model is loaded."""


@dataclass(frozen=True)
class Evaluator:
    """One task that models can be evaluated on."""

    name: str
    summary: str
    needs: str
    metrics: tuple[str, ...]
    takes: frozenset[str]
    """Names of `Options` that only some tasks take."""
    prepare: Prepare
