"""Rounds in the tracker a team already looks at, by accelerate's layer over TensorBoard, W&B, MLflow and others."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrot.config import RunConfig
from fedrot.errors import ConfigError, nearest

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "fedrot"

Log = Callable[[Mapping[str, Any]], None]


def check_trackers(config: RunConfig) -> None:
    """Refuse trackers that do not exist or are not installed.

    Raises:
        ConfigError: names the tracker and what to install.
    """
    asked = config.output.trackers
    if not asked:
        return
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigError(
            f"output.trackers = {asked}: the package accelerate is not installed; pip install 'fedrot[trackers]'"
        )
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, here = (
        [str(name) for name in LOGGER_TYPE_TO_CLASS],
        [str(name) for name in get_available_trackers()],
    )
    for name in asked:
        if name not in known:
            raise ConfigError(f"output.trackers names {name!r}; {nearest(name, known)}")
        if name not in here:
            package = "comet-ml" if name == "comet_ml" else name
            raise ConfigError(
                f"output.trackers names {name!r}, which is not installed; pip install {package}"
            )


@contextmanager
def tracking(config: RunConfig, directory: Path, done: int, note: Callable[[str], None]) -> Iterator[Log]:
    """Within, a function that hands a round's record to every tracker of the recipe.

    A tracker that fails in between, as when its server cannot be reached, is told of and left; the run goes on.

    Args:
        config: the recipe, whose keys become the tracked run's settings.
        directory: of the run; its name is the tracked run's, and TensorBoard's files go there.
        done: rounds already finished.
        note: told of a tracker that fails.

    Raises:
        ConfigError: a tracker does not start.
    """
    trackers: dict[str, GeneralTracker] = {}

    def failed(name: str, when: str, error: Exception) -> None:
        note(f"tracker {name!r} failed {when} and is told no more: {type(error).__name__}: {error}")
        del trackers[name]

    def log(record: Mapping[str, Any]) -> None:
        for name, tracker in list(trackers.items()):
            try:
                tracker.log(figures(record), step=record["round"])
            except Exception as error:
                failed(name, f"in round {record['round']}", error)

    try:
        for name in dict.fromkeys(config.output.trackers):
            trackers[name] = _start(name, config, directory, done)
        yield log
    finally:
        for name, tracker in list(trackers.items()):
            try:
                tracker.finish()
            except Exception as error:
                failed(name, "at the end", error)


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record that a curve can be drawn of."""
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "round"
    }


def settings(config: RunConfig) -> dict[str, str | float | bool]:
    """The recipe's keys as `section.key`; lists and tables as JSON, unset keys and `[output]` left out."""
    found: dict[str, str | float | bool] = {}
    for section, value in config.model_dump(exclude={"output"}).items():
        for key, inner in value.items() if isinstance(value, dict) else ((None, value),):
            name = section if key is None else f"{section}.{key}"
            if inner is not None:
                found[name] = inner if isinstance(inner, str | int | float) else json.dumps(inner)
    return found


def _start(name: str, config: RunConfig, directory: Path, done: int) -> GeneralTracker:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    try:
        tracker: GeneralTracker
        if name == "tensorboard":
            # Rounds that are done again after an interruption replace their first attempt.
            tracker = kind("tensorboard", directory, purge_step=done + 1 if done else None)
        elif name == "mlflow":
            tracker = kind(PROJECT, run_name=directory.name)
        elif kind.requires_logging_directory:
            tracker = kind(PROJECT, directory)
        elif name in ("wandb", "trackio"):
            tracker = kind(PROJECT, name=directory.name)
        else:
            tracker = kind(PROJECT)
        tracker.start()
        tracker.store_init_configuration(settings(config))
    except Exception as error:
        raise ConfigError(
            f"output.trackers: {name!r} does not start ({type(error).__name__}: {error}); see its own documentation, "
            "or leave it out"
        ) from error
    return tracker
