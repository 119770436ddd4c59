"""`fedrot eval`: from a directory and names of tasks to results, printed and kept."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedrot.errors import ConfigError
from fedrot.evaluation import harness
from fedrot.evaluation.catalogue import EVALUATORS, find, unknown
from fedrot.evaluation.options import GENERATION, Options
from fedrot.evaluation.place import Loaded, Place, open_place
from fedrot.evaluation.plan import Run
from fedrot.evaluation.results import Result, append_lines, append_result

FILE = "eval.json"
PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Finding:
    """A result, and where it was written."""

    result: Result
    file: Path


def evaluate_directory(
    directory: str | Path,
    tasks: Sequence[str],
    options: Options | None = None,
    *,
    base: str | None = None,
    precision: str | None = None,
    device: str = "auto",
    harness_only: bool = False,
    out: str | Path | None = None,
    completions: str | Path | None = None,
    told: Callable[[str, int, int], None] = lambda *_: None,
    found: Callable[[Finding], None] = lambda _: None,
) -> list[Result]:
    """Evaluate a run, an adapter or a merged model; each task's result is written as soon as it is there.

    Everything that can be refused without a model is refused before one is loaded.

    Args:
        directory: a run directory, an exported adapter, or a merged model.
        tasks: names of `EVALUATORS`; others are handed to lm-eval, if it is installed.
        options: how.
        base: where the base model lies, if it has moved.
        precision: of the arithmetic; that of the run unless given, else float32.
        device: `auto`, `cpu`, `cuda`.
        harness_only: hand also the tasks of these names to lm-eval.
        out: a file to add the results to; default `eval.json` in the directory.
        completions: a JSON Lines file to add every prompt and what the model said to; not of lm-eval's tasks, nor of
            those that complete nothing.
        told: told of a task how many of how many completions there are.
        found: told each result.

    Raises:
        FedrotError: what the user can mend.
    """
    options = options or Options()
    if not tasks:
        raise ConfigError(f"--tasks: name at least one; ours are {', '.join(EVALUATORS)}")
    theirs = [task for task in tasks if harness_only or task not in EVALUATORS]
    if theirs and not harness.is_installed():
        raise ConfigError(
            f"--harness lm-eval: it is not installed; {harness.INSTALL}"
            if harness_only
            else unknown(theirs[0])
        )
    ours = find([task for task in tasks if task not in theirs])
    options.check_taken({e.name: e.takes for e in ours} | dict.fromkeys(theirs, harness.TAKES))
    if completions is not None and not any(e.takes >= GENERATION for e in ours):
        raise ConfigError(
            f"--completions: none of {', '.join(tasks)} takes it, since none completes; leave it out"
        )
    place = open_place(directory, base, precision)
    manager = harness.check_tasks(theirs) if theirs else None
    plan: dict[str, Run] = {evaluator.name: evaluator.prepare(place, options) for evaluator in ours}
    loaded, results = place.load(device), list[Result]()
    file = Path(out) if out is not None else place.directory / FILE

    def keep(result: Result) -> None:
        append_result(file, {**result.record(), **_origin(place, loaded)})
        if completions is not None:
            append_lines(Path(completions), result.task, result.said)
        results.append(result)
        found(Finding(result, file))

    for name, run in plan.items():
        keep(run(loaded, lambda done, total, name=name: told(name, done, total)))
    for name in theirs:
        for result in harness.run_harness(loaded, name, options, manager):
            keep(result)
    return results


def _origin(place: Place, loaded: Loaded) -> dict[str, Any]:
    """What was evaluated, by what, on what, and when."""
    device = loaded.base.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {"python": platform.python_version(), "fedrot": importlib.metadata.version("fedrot")}
    return {
        "model": place.record(),
        "device": f"{device.type}: {name}",
        "versions": versions | {package: importlib.metadata.version(package) for package in PACKAGES},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run_command(
    directory: Path,
    tasks: Sequence[str],
    options: Options,
    *,
    console: Console,
    errors: Console,
    **places: Any,
) -> None:
    """Evaluate, print a table, and say where the results lie.

    Raises:
        FedrotError: as `evaluate_directory`.
    """
    files: list[Path] = []
    last = time.monotonic()

    def told(task: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10 or (errors.is_terminal and done == total):
            errors.print(f"{task}: {done} of {total}", soft_wrap=True)
            last = time.monotonic()

    results = evaluate_directory(
        directory, tasks, options, told=told, found=lambda finding: files.append(finding.file), **places
    )
    console.print(table(results))
    console.print(f"\nresults: {escape(str(files[-1]))}", soft_wrap=True)


def table(results: Sequence[Result]) -> Table:
    """One line for every score."""
    shown = Table(box=None, pad_edge=False)
    for header in ("task", "score", "", "± s.e.", "examples", "seconds", "tokens/s"):
        shown.add_column(header, justify="left" if header in ("task", "score") else "right")
    for result in results:
        for number, (name, value) in enumerate(result.scores.items()):
            error = result.standard_errors.get(name)
            once = _facts(result) if number == 0 else ("", "", "")
            shown.add_row(
                escape(result.task) if number == 0 else "",
                escape(name),
                f"{value:.4f}",
                "" if error is None or error != error else f"{error:.4f}",
                *once,
            )
    return shown


def _facts(result: Result) -> tuple[str, str, str]:
    examples = result.counts.get("examples")
    speed = result.tokens_per_second
    return (
        "" if examples is None else str(examples),
        f"{result.seconds:.1f}",
        "" if speed is None else f"{speed:.0f}",
    )
