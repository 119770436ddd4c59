"""The errors fedrot raises on purpose. Each message names the key, the value, what was expected and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedrotError(Exception):
    """Anything the user can mend. The command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 1


class ConfigError(FedrotError, ValueError):
    """A recipe, an option or a command-line argument is wrong."""

    exit_code = 2


class DataError(FedrotError, ValueError):
    """A corpus, a file or a partition cannot be used as asked."""

    exit_code = 3


class ModelError(FedrotError, ValueError):
    """A base model or a PEFT adapter cannot be used as asked."""

    exit_code = 4


class AdapterError(FedrotError, ValueError):
    """Adapters, factors or updates that do not fit together."""

    exit_code = 4


class OutputError(FedrotError, RuntimeError):
    """A run directory or a checkpoint cannot be written, read or resumed."""

    exit_code = 5


class TrainingError(FedrotError, RuntimeError):
    """Training cannot go on, for instance because every client of a round was rejected."""

    exit_code = 6


class SecureAggregationError(FedrotError, RuntimeError):
    """Secure aggregation cannot go on, or refuses a message; nothing is revealed."""

    exit_code = 7


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known one if there is one, and always the full list.

    >>> nearest("fedrott", ["fedit", "fedrot"])
    "did you mean 'fedrot'? (known: 'fedit', 'fedrot')"
    """
    choices = sorted(known)
    listing = f"known: {', '.join(repr(c) for c in choices)}" if choices else "none are known"
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? ({listing})" if close else listing


class Interrupted(Exception):
    """Work on a thread was given up because nobody waits for its result any more. No caller ever sees it."""
