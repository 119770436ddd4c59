"""Whether every run of a comparison can deal its data to its clients, found out before the first of them trains."""

from __future__ import annotations

import json

from fedrot.comparison.design import Design
from fedrot.comparison.store import Store, cell_key
from fedrot.config import RunConfig
from fedrot.engines.setup import check_data_is_here
from fedrot.engines.shared import Shared, task_key
from fedrot.errors import ConfigError, FedrotError
from fedrot.partition import partition
from fedrot.tasks.catalogue import objective
from fedrot.tasks.named import named


def check_dealing(design: Design, store: Store) -> None:
    """Read the data of every run that is not done, and deal it, once for each seed and partition.

    A task that leaves out examples by their tokens is not dealt here: it would need the model's tokenizer.

    Raises:
        ConfigError: runs whose clients cannot be dealt; the first is named with the reason, the others are counted.
        DataError: data that cannot be read.
    """
    refused: list[str] = []
    shared = Shared()
    for name, config in _splits(design, store):
        check_data_is_here(config)
        goal = objective(config.task)
        if goal.leaves_out:
            continue
        task = shared.get("task", task_key(config), lambda goal=goal, seed=config.seed: goal.load(seed))
        try:
            with named("train", task.train):
                partition(task.train, config.partition, config.federation.clients, config.seed)
        except FedrotError as error:
            refused.append(f"{name}, seed {config.seed}: {error}")
    if refused:
        others = (
            f" ({len(refused) - 1} more of the partitions compared cannot be dealt)" if refused[1:] else ""
        )
        raise ConfigError(refused[0] + others)


def _splits(design: Design, store: Store) -> list[tuple[str, RunConfig]]:
    """One run for each seed and partition, those of one data set after each other, with the name of its arm."""
    found: dict[tuple[str, str], tuple[str, RunConfig]] = {}
    for seed in design.seeds:
        for arm in design.arms():
            for setting in arm.candidates:
                config = design.config(arm.variant, arm.point, setting, seed)
                if not store.done(cell_key(config)):
                    dealt = [config.partition.model_dump(), config.federation.clients]
                    found.setdefault((task_key(config), json.dumps(dealt)), (arm.name, config))
    return [found[key] for key in sorted(found)]
