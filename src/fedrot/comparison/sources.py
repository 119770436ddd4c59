"""Digests of what a run read from files, the same for every seed: two runs of a recipe must have read the same."""

from __future__ import annotations

import json

from fedrot.config import RunConfig
from fedrot.engines import compat
from fedrot.engines.setup import Federation
from fedrot.engines.shared import Shared, base_key
from fedrot.model import fingerprint
from fedrot.tasks.catalogue import objective

BASE = "base model"


def sources(federation: Federation, shared: Shared) -> dict[str, str]:
    """What a run was built from, by name.

    Args:
        federation: the run.
        shared: where the run's parts come from; what is shared is digested once, however many runs share it.
    """
    config = federation.config
    return {BASE: shared.get("fingerprint", base_key(config), lambda: fingerprint(federation.base))}


def named_by(config: RunConfig) -> dict[str, str]:
    """What in a recipe decides which source it means, by name: recipes that agree in it must find the same one."""
    head = objective(config.task).head
    keys = [config.model.model_dump(), compat.precision(config), config.lora.modules_to_save, head]
    return {BASE: json.dumps(keys, sort_keys=True)}
