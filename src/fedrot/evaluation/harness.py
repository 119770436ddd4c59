"""Tasks of lm-evaluation-harness, on the model that is loaded already."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedrot.errors import ConfigError, DataError, nearest
from fedrot.evaluation.catalogue import EVALUATORS
from fedrot.evaluation.options import Options
from fedrot.evaluation.place import Loaded
from fedrot.evaluation.results import Result

TAKES = frozenset({"limit", "k_shot", "sampling", "max_new_tokens"})
NAME = "lm-eval"
INSTALL = "run: pip install 'fedrot[eval]'"


def is_installed() -> bool:
    """Whether lm-eval can be imported."""
    return importlib.util.find_spec("lm_eval") is not None


def version() -> str:
    """Of lm-eval."""
    return importlib.metadata.version("lm_eval")


def check_tasks(tasks: Sequence[str]) -> Any:
    """Find the tasks before a model is loaded; returns lm-eval's own catalogue.

    Raises:
        ConfigError: lm-eval does not know a task.
    """
    if not is_installed():
        raise ConfigError(
            f"--tasks {','.join(tasks)}: these run in lm-eval, which is not installed; {INSTALL}"
        )
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]  # an extra

    manager = TaskManager()
    for task in tasks:
        if task not in manager.all_tasks:
            raise ConfigError(
                f"--tasks {task}: neither fedrot nor lm-eval has it; {_near(task, manager.all_tasks)}"
            )
    return manager


def _near(task: str, theirs: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(task, [*EVALUATORS, *theirs], n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"`lm-eval ls tasks` lists theirs, ours are {nearest('', EVALUATORS)}"


def run_harness(loaded: Loaded, task: str, options: Options, manager: Any) -> list[Result]:
    """Evaluate with `lm_eval.simple_evaluate`, which gets the loaded model, adapter included, and its tokenizer.

    Returns:
        One result; of a group of tasks, one for each and one for the group.

    Raises:
        DataError: a task's data cannot be had.
        ConfigError: a task refuses the settings; one that would run generated code is never given leave to.
    """
    import lm_eval  # pyright: ignore[reportMissingImports]  # an extra
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]  # an extra

    start = time.perf_counter()
    model = HFLM(pretrained=loaded.module, tokenizer=loaded.tokenizer, batch_size=options.batch_size)
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            num_fewshot=options.k_shot,
            limit=options.limit,
            gen_kwargs=_generation(options),
            task_manager=manager,
            log_samples=False,
            random_seed=options.seed,
            fewshot_random_seed=options.seed,
            torch_random_seed=options.sampling.seed if options.sampling else options.seed,
            verbosity="ERROR",
        )
    except ValueError as error:
        raise ConfigError(f"lm-eval refuses {task}: {_first_line(error)}") from error
    # The hub's client raises errors of many unrelated classes.
    except Exception as error:
        raise DataError(
            f"lm-eval could not evaluate {task}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    assert found is not None  # None is for the other processes of a distributed run
    seconds = time.perf_counter() - start
    return [_result(name, found, options, seconds) for name in found["results"]]


def _generation(options: Options) -> dict[str, Any] | None:
    chosen: dict[str, Any] = {}
    if options.max_new_tokens is not None:
        chosen["max_gen_toks"] = options.max_new_tokens
    if options.sampling is not None:
        drawn = options.sampling
        chosen |= {"do_sample": True, "temperature": drawn.temperature, "top_p": drawn.top_p}
        chosen |= {} if drawn.top_k is None else {"top_k": drawn.top_k}
    return chosen or None


def _result(task: str, found: Mapping[str, Any], options: Options, seconds: float) -> Result:
    # Figures are called METRIC,FILTER; the rest are counts and names.
    every = found["results"][task].items()
    figures = {name: value for name, value in every if "," in name and isinstance(value, int | float)}
    errors = {name.replace("_stderr", "", 1): value for name, value in figures.items() if "_stderr" in name}
    counts = found.get("n-samples", {}).get(task, {})
    return Result(
        task=task,
        scores={name: value for name, value in figures.items() if "_stderr" not in name},
        standard_errors=errors,
        counts={"examples": counts["effective"]} if "effective" in counts else {},
        settings={
            "limit": options.limit,
            "k_shot": found.get("n-shot", {}).get(task),
            "task_version": found.get("versions", {}).get(task),
            "generation": _generation(options) or "as the task says",
            "batch_size": options.batch_size,
            "seed": options.seed,
            "lm-eval": version(),
        },
        seconds=seconds,
        evaluator=NAME,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
