"""`fedrot.run`: a recipe in, a run directory and a result out, whatever the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedrot.config import RunConfig, load_config
from fedrot.config.arguments import as_overrides
from fedrot.engines.local import run_local
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.engines.trackers import check_trackers
from fedrot.errors import ConfigError
from fedrot.rundir import RunDirectory, free_directory


def run(
    config: RunConfig | str | Path | None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    observer: Observer | None = None,
) -> RunResult:
    """Run a recipe.

    Args:
        config: a `RunConfig`, or the path of a TOML recipe; None only with `resume`: the stored one.
        out: run directory; default `output.dir`, else the first free `runs/<recipe>-<method>[-n]`.
        resume: continue the run in `out` from its newest whole checkpoint.
        overrides: `section.key=value` strings applied to a recipe file; with `resume` and no recipe, to the stored one.
        observer: told of progress.

    Raises:
        FedrotError: a wrong recipe, unusable data or model, an occupied directory, all clients rejected.
    """
    overrides = as_overrides(overrides)
    if not isinstance(config, RunConfig | str | Path | None):
        raise ConfigError(
            f"config = {_short(config)}: expected the path of a recipe or a RunConfig; "
            "fedrot.config.parse_config makes one of a nested dict"
        )
    stem = "run" if config is None or isinstance(config, RunConfig) else Path(config).stem
    if isinstance(config, str | Path):
        config = load_config(config, overrides, (observer or Observer()).note)
    elif overrides and config is not None:
        raise ConfigError("overrides: they apply to a recipe file; use RunConfig.model_copy for a RunConfig")
    if resume:
        path = out or (config.output.dir if config else None)
        if path is None:
            raise ConfigError(
                "resume: name the run directory to continue, with --out DIR (out=... in Python)"
            )
        directory, config = RunDirectory.reopen(path, config, overrides)
    elif config is None:
        raise ConfigError("no recipe: give the path of a TOML file, or --resume --out DIR to continue a run")
    else:
        directory = RunDirectory(out or config.output.dir or free_directory(f"{stem}-{config.method.name}"))
        directory.check_free()
    check_trackers(config)
    if config.engine.name == "flower":
        return _flower()(config, directory, resume=resume, observer=observer)
    return run_local(config, directory, resume=resume, observer=observer)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flower() -> Callable[..., RunResult]:
    try:
        from fedrot.engines.flower.run import run_flower
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"engine.name = 'flower': the package {error.name!r} is not installed; pip install 'fedrot[flower]'"
        ) from error
    return run_flower
