"""Digests of what a run read from files, the same for every seed: two runs of a recipe must have read the same."""

from __future__ import annotations

import hashlib
import json

from fedrot.config import RunConfig
from fedrot.engines import compat
from fedrot.engines.setup import Federation
from fedrot.engines.shared import Shared, base_key, task_key
from fedrot.model import fingerprint
from fedrot.tasks.base import TaskData
from fedrot.tasks.catalogue import objective
from fedrot.tasks.columns import column_values

BASE, DATA = "base model", "data"
CONTENT = ("text", "text_pair", "messages", "image_digest", "label")
"""Columns that make an example, of those that a split may have."""
LIMITS = ("max_train", "max_validation", "max_test")
"""Keys of `[task]` that leave examples out by the seed."""


def sources(federation: Federation, shared: Shared) -> dict[str, str]:
    """What a run was built from, by name.

    Args:
        federation: the run.
        shared: where the run's parts come from; what is shared is digested once, however many runs share it.
    """
    config = federation.config
    return {
        BASE: shared.get("fingerprint", base_key(config), lambda: fingerprint(federation.base)),
        DATA: shared.get("data digest", task_key(config), lambda: _data(config, shared)),
    }


def named_by(config: RunConfig) -> dict[str, str]:
    """What in a recipe decides which source it means, by name: recipes that agree in it must find the same one."""
    head = objective(config.task).head
    keys = [config.model.model_dump(), compat.precision(config), config.lora.modules_to_save, head]
    return {BASE: json.dumps(keys, sort_keys=True), DATA: config.task.model_dump_json()}


def _data(config: RunConfig, shared: Shared) -> str:
    """Of all examples, in whichever split; read again where the recipe keeps a part of them, drawn by the seed."""
    goal = objective(config.task)
    if any(getattr(config.task, key) is not None for key in LIMITS):
        return digest_of(objective(config.task.model_copy(update=dict.fromkeys(LIMITS))).load(config.seed))
    return digest_of(shared.get("task", task_key(config), lambda: goal.load(config.seed)))


def digest_of(task: TaskData) -> str:
    """Of the examples of all splits together: the same for every seed, which only says what split they are in."""
    splits = (task.train, task.validation, task.test, *task.further.values())
    rows: list[bytes] = []
    for split in splits:
        if split is not None:
            columns = [column_values(split, name) for name in CONTENT if name in split.column_names]
            rows += [_digest(repr(row)) for row in zip(*columns, strict=True)]
    return _digest(repr(task.labels), *sorted(rows)).hex()


def _digest(text: str, *rest: bytes) -> bytes:
    digest = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16)
    for part in rest:
        digest.update(part)
    return digest.digest()
