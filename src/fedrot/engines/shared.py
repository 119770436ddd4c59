"""What runs in one process may share: data, base model, encoded splits and frozen states of the run before."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from fedrot.config import RunConfig
from fedrot.engines import compat

T = TypeVar("T")


class Shared:
    """The newest of each kind of thing that is costly to build, for the next run that needs the very same.

    A thing is used again only if every key of the recipe that it is built from agrees, the seed included. What is
    shared is never changed by a run, but for frozen states, which are filled on demand with numbers that do not depend
    on who asked (see `FrozenCache`): a run gives the same bits with and without. After a run that failed, `clear`.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, object]] = {}
        self.hits: dict[str, int] = {}

    def get(self, kind: str, key: str, build: Callable[[], T]) -> T:
        """The thing of this kind and key that the last run had, or a new one."""
        held = self._held.get(kind)
        if held is not None and held[0] == key:
            self.hits[kind] = self.hits.get(kind, 0) + 1
            return held[1]  # type: ignore[return-value]  # the kind fixes the type
        self._held.pop(kind, None)  # let go of the old one first: two base models may not fit
        thing = build()
        self._held[kind] = (key, thing)
        return thing

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()


def task_key(config: RunConfig) -> str:
    """Of the split data."""
    return _key(config, "seed", "task")


def base_key(config: RunConfig) -> str:
    """Of the base model; a new head takes its labels from the data and its weights from the seed."""
    train = [compat.precision(config), config.train.device]
    return _key(config, "seed", "task", "model") + json.dumps([*train, config.lora.modules_to_save])


def frozen_key(config: RunConfig) -> str:
    """Of the encoded splits with the states of the frozen blocks below the first adapted one."""
    lora = [config.lora.target_modules, config.lora.layers, config.lora.rslora]
    return base_key(config) + json.dumps([*lora, config.train.cache_frozen, config.train.cache_limit_mb])


def _key(config: RunConfig, *sections: str) -> str:
    return json.dumps(config.model_dump(include=set(sections)), sort_keys=True)
