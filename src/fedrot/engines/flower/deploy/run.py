"""`fedrot deploy run`: submit a recipe to a running server, and follow it to its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fedrot.config import RunConfig, load_config
from fedrot.engines.flower.deploy.bundle import OUT, RECIPE, RESUME
from fedrot.engines.flower.deploy.control import Control, RunInfo
from fedrot.engines.flower.deploy.layout import Server
from fedrot.engines.flower.node import FORMATS
from fedrot.errors import ConfigError, FedrotError, OutputError
from fedrot.rundir import RunDirectory, free_directory


@dataclass(frozen=True)
class Submitted:
    """A run that the server has taken."""

    id: int
    config: RunConfig
    directory: RunDirectory


class RemoteError(FedrotError):
    """A run failed on the server, with the words and the exit code of the error there."""

    def __init__(self, told: str, exit_code: int) -> None:
        super().__init__(told)
        self.exit_code = exit_code


def submit(
    control: Control,
    recipe: Path | None,
    *,
    out: Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    told: Callable[[str], None] | None = None,
) -> Submitted:
    """Hand a recipe to the server. Files that it names are the server's; nodes have their own.

    Args:
        control: of the server, on this machine.
        recipe: a TOML file; None only with `resume`: the stored one.
        out: run directory, on this machine; default as for `fedrot run`.
        resume: go on with the run in `out` from its newest whole checkpoint.
        overrides: `section.key=value` strings applied to the recipe; with `resume` and no recipe, to the stored one.
        told: hears which options an override made meaningless.

    Raises:
        ConfigError, OutputError: a wrong recipe, an occupied directory, or one that another run is writing to.
    """
    config = None if recipe is None else _absolute(load_config(recipe, overrides, told))
    path = out or (Path(config.output.dir) if config and config.output.dir else None)
    if resume:
        if path is None:
            raise ConfigError("--resume: name the run directory to continue, with --out DIR")
        directory, config = RunDirectory.reopen(path.absolute(), config, overrides)
    elif config is None or recipe is None:
        raise ConfigError("no recipe: give the path of a TOML file, or --resume --out DIR to continue a run")
    else:
        directory = RunDirectory((path or free_directory(f"{recipe.stem}-{config.method.name}")).absolute())
        directory.check_free()
    for other in control.runs():
        if other.out == str(directory.path) and other.status != "finished":
            raise OutputError(
                f"'{directory.path}': run {other.id} is writing there ({other.status}); wait for it, or stop it with "
                f"`fedrot deploy stop {other.id}`"
            )
    run = control.start({RECIPE: config.to_toml(), OUT: str(directory.path), RESUME: resume})
    return Submitted(run, config, directory)


def follow(
    control: Control,
    server: Server,
    run: Submitted,
    *,
    told: Callable[[str], None],
    finished: Callable[[Mapping[str, Any]], None],
) -> None:
    """Wait for the end of a run.

    Args:
        control: of the server.
        server: its folder.
        run: as submitted.
        told: hears what the server app says.
        finished: is given the record of every round that ends.

    Raises:
        RemoteError: the run failed; it has the error's own words and exit code.
        OutputError: the server ended, or the run was stopped.
    """
    log, outcome = _Tail(server.log(run.id)), server.outcome(run.id)
    seen = len(run.directory.records())
    asked = 0.0
    info: RunInfo | None = None
    while info is None or info.status != "finished":
        time.sleep(0.2)
        for line in log.lines():
            told(line)
        records = run.directory.records()
        for record in records[seen:]:
            finished(record)
        seen = min(seen, len(records)) if len(records) < seen else len(records)
        if outcome.exists() or time.monotonic() > asked + 2.0:
            asked = time.monotonic()
            info = _ask(control, run)
    for line in log.lines():
        told(line)
    for record in run.directory.records()[seen:]:
        finished(record)
    _judge(info, run, outcome)


def _ask(control: Control, run: Submitted) -> RunInfo:
    try:
        return control.run(run.id)
    except httpx.HTTPError as error:
        raise OutputError(
            f"the server went away during run {run.id} ({type(error).__name__}); finished rounds are kept: start it "
            f"again, then `fedrot deploy run --resume --out {run.directory.path}`"
        ) from error


def _judge(info: RunInfo, run: Submitted, outcome: Path) -> None:
    """Flower says how the server app's process ended, the note beside it how fedrot did; both must be content."""
    again = f"finished rounds are kept: `fedrot deploy run --resume --out {run.directory.path}` goes on"
    try:
        noted = json.loads(outcome.read_text("utf-8"))
    except (OSError, ValueError):
        noted = None
    if noted is not None and noted["exit_code"]:
        raise RemoteError(noted["message"], noted["exit_code"])
    if info.outcome == "stopped":
        raise OutputError(f"run {run.id} was stopped; {again}")
    if info.outcome != "completed" or noted is None:
        raise OutputError(
            f"run {run.id} ended as {info.outcome} ({info.details or 'without a word'}); {again}"
        )


def _absolute(config: RunConfig) -> RunConfig:
    """The recipe with the paths of existing files made absolute: the server app runs in another folder."""

    def placed(name: str | None) -> str | None:
        return (
            str(Path(name).expanduser().absolute())
            if name is not None and Path(name).expanduser().exists()
            else name
        )

    def table(name: str | None) -> str | None:
        return placed(name) if name is not None and name.endswith(FORMATS) else name

    model = config.model.model_copy(
        update={"path": placed(config.model.path), "adapter": placed(config.model.adapter)}
    )
    task = config.task.model_copy(
        update={"data": table(config.task.data), "test_data": table(config.task.test_data)}
    )
    return config.model_copy(update={"model": model, "task": task})


class _Tail:
    """The lines that a growing file has gained."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def lines(self) -> list[str]:
        """Whole lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            found = file.read()
        whole = found.rfind(b"\n") + 1
        self._position += whole
        return found[:whole].decode("utf-8", "replace").splitlines()
