"""How to evaluate: what the user may choose, and which of it a task takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

from fedrot.errors import ConfigError, DataError
from fedrot.evaluation.generation import Decoding
from fedrot.evaluation.sandbox import Confinement, Limits
from fedrot.model.generation import Sampling

Row = TypeVar("Row")

FLAGS = {
    "limit": "--limit",
    "k_shot": "--k-shot",
    "data": "--data",
    "template": "--template",
    "sampling": "--temperature",
    "samples": "--samples",
    "max_new_tokens": "--max-new-tokens",
    "allow_code": "--run-code",
    "confinement": "--confinement",
}
"""Options that only some tasks take, and what they are called on the command line."""

GENERATION = frozenset({"limit", "sampling", "samples", "max_new_tokens"})


@dataclass(frozen=True)
class Options:
    """Every setting has the value that means nobody chose it as its default."""

    limit: int | None = None
    """Only the first so many examples."""
    k_shot: int | None = None
    """Solved examples before each question; unset, as many as the task usually has."""
    data: Mapping[str, str] = field(default_factory=dict[str, str])
    """Files or folders, by task."""
    template: str | None = None
    """Prompt template, for data that comes without a run; as `task.template`."""
    sampling: Sampling | None = None
    """None is greedy."""
    samples: int = 1
    max_new_tokens: int | None = None
    batch_size: int = 16
    seed: int = 0
    """Chooses the solved examples; sampling has its own."""
    allow_code: bool = False
    confinement: Confinement = "namespaces"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: expected at least 1")
        if self.k_shot is not None and self.k_shot < 0:
            raise ConfigError(f"--k-shot {self.k_shot}: expected 0 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens {self.max_new_tokens}: expected at least 1")

    def check_taken(self, takes: Mapping[str, frozenset[str]]) -> None:
        """Refuse a setting that none of the tasks takes, and data for a task that is not asked for.

        Args:
            takes: of every task, the settings it takes.

        Raises:
            ConfigError: naming the flag and the tasks that would take it.
        """
        unset = {item.name: getattr(Options(), item.name) for item in fields(Options)}
        for name, flag in FLAGS.items():
            if getattr(self, name) != unset[name] and not any(name in taken for taken in takes.values()):
                raise ConfigError(f"{flag}: none of {', '.join(takes)} takes it; leave it out")
        for task in self.data:
            if task not in takes:
                raise ConfigError(f"--data {task}=...: this task is not in --tasks {','.join(takes)}")

    def decoding(self, max_new_tokens: int) -> Decoding:
        """How completions are made, where the task usually takes `max_new_tokens`."""
        return Decoding(
            max_new_tokens=max_new_tokens if self.max_new_tokens is None else self.max_new_tokens,
            batch_size=self.batch_size,
            samples=self.samples,
            sampling=self.sampling,
        )

    def limited(self, rows: Sequence[Row], task: str) -> Sequence[Row]:
        """The first `limit` rows.

        Raises:
            DataError: there are none.
        """
        if not rows:
            raise DataError(f"{task}: its test split is empty; give it examples with --data {task}=PATH")
        return rows[: self.limit]


def parse_data(given: Iterable[str]) -> dict[str, str]:
    """`TASK=PATH` strings as a mapping.

    >>> parse_data(["gsm8k=data/gsm8k"])
    {'gsm8k': 'data/gsm8k'}

    Raises:
        ConfigError: another form, or a task twice.
    """
    found: dict[str, str] = {}
    for text in given:
        task, equals, path = text.partition("=")
        if not (task and equals and path):
            raise ConfigError(f"--data {text!r}: expected TASK=PATH, such as gsm8k=data/gsm8k")
        if task in found:
            raise ConfigError(f"--data {task}=...: given twice")
        found[task] = path
    return found
