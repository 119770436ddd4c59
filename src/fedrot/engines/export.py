"""A finished round of a run as a PEFT adapter or a merged model."""

from __future__ import annotations

from pathlib import Path

from fedrot.checkpoint import load_checkpoint
from fedrot.config import load_config
from fedrot.errors import OutputError
from fedrot.model import load_base, save_merged, save_peft
from fedrot.rundir import RunDirectory
from fedrot.tasks import load_task


def export(directory: str | Path, out: str | Path | None = None, *, merge: bool = False) -> Path:
    """Write the newest finished round of a run.

    Args:
        directory: a run directory, finished or not.
        out: where to write; default `merged/` or `adapter/` in the run directory. Must be new or empty for a merge.
        merge: write a whole model with `scale * b @ a` added to its weights.

    Raises:
        OutputError: no run, no finished round, or `out` is occupied.
    """
    run = RunDirectory(directory)
    if not run.config.exists():
        raise OutputError(f"'{run.path}' holds no run (no config.toml); give the directory of one")
    checkpoint = load_checkpoint(run.checkpoint)
    if checkpoint is None:
        raise OutputError(f"'{run.path}' has no finished round yet; continue it with --resume")
    config = load_config(run.config)
    target = Path(out) if out else run.path / ("merged" if merge else "adapter")
    if (out or merge) and target.exists() and any(target.iterdir()):
        raise OutputError(f"'{target}' is not empty; choose another --out")
    task = load_task(config.task, config.seed)
    base = load_base(
        config.model,
        task.labels,
        seed=config.seed,
        precision=config.train.precision,
        modules_to_save=config.lora.modules_to_save,
    )
    adapter = checkpoint.state.adapter
    if merge:
        save_merged(target, base, adapter)
    else:
        card = {
            "max_length": config.task.max_length,
            "method": config.method.name,
            "rounds": checkpoint.state.round,
        }
        save_peft(target, adapter, base, config.lora, card)
    return target
