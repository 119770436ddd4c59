"""A finished round of a run as a PEFT adapter or a merged model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedrot.checkpoint import load_checkpoint
from fedrot.config import RunConfig, load_config
from fedrot.engines.write import save_adapter
from fedrot.errors import OutputError
from fedrot.model import load_base, save_merged
from fedrot.participation import deal_ranks
from fedrot.partition import partition
from fedrot.rundir import RunDirectory, is_free
from fedrot.server import ServerState, represented
from fedrot.tasks import load_task, objective

if TYPE_CHECKING:
    from datasets import Dataset


def export(directory: str | Path, out: str | Path | None = None, *, merge: bool = False) -> Path:
    """Write the newest finished round of a run.

    Args:
        directory: a run directory, finished or not.
        out: where to write; default `merged/` or `adapter/` in the run directory. Must be new or empty for a merge.
        merge: write a whole model with `scale * b @ a` added to its weights, as they were before any quantisation.

    Raises:
        OutputError: no run, no finished round, `out` is occupied, or nothing to merge since clients have the rest.
    """
    run = RunDirectory(directory)
    if not run.config.exists():
        raise OutputError(f"'{run.path}' holds no run (no config.toml); give the directory of one")
    checkpoint = load_checkpoint(run.checkpoint)
    if checkpoint is None:
        raise OutputError(f"'{run.path}' has no finished round yet; continue it with --resume")
    config = load_config(run.config)
    if merge and checkpoint.state.apart is not None:
        raise OutputError(
            f"--merge: clients of method {config.method.name!r} keep a part of the model on their nodes, and what they "
            "share is no trained model without it; export the shared part without --merge"
        )
    target = Path(out) if out else run.path / ("merged" if merge else "adapter")
    if (out or merge) and not is_free(target):
        raise OutputError(f"'{target}' is not empty, or no folder; choose another --out")
    task = load_task(config.task, config.seed)
    base = load_base(
        config.model.model_copy(update={"quantization": "none"}),
        objective(config.task).outputs or task.labels,
        kind=objective(config.task).head,
        seed=config.seed,
        precision=config.train.precision,
        modules_to_save=config.lora.modules_to_save,
    )
    weights, ranks = _clients(config, task.train, checkpoint.state)
    if merge:
        save_merged(target, base, represented(checkpoint.state, weights, ranks))
    else:
        save_adapter(target, checkpoint.state, base, config, weights, ranks)
    return target


def _clients(
    config: RunConfig, train: Dataset, state: ServerState
) -> tuple[list[float], tuple[int | None, ...]]:
    """Every client's weight and rank, as in the run; needed only where clients have parts of their own."""
    if not state.personal:
        return [], ()
    rows = partition(train, config.partition, config.federation.clients, config.seed).rows
    samples = config.federation.weighting == "samples"
    weights = [float(len(own)) if samples else 1.0 for own in rows]
    return weights, deal_ranks(config.lora, len(rows), config.seed)
