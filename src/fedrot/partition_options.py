"""The options of `[partition]`, checked against the partitioner class of flwr-datasets that they are for."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import numpy as np

from fedrot.config import PartitionConfig
from fedrot.core.rng import derive
from fedrot.errors import ConfigError, nearest
from fedrot.methods.options import accepts, expected

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_REFUSED = {
    "vertical-even": "it gives clients columns, not examples",
    "vertical-size": "it gives clients columns, not examples",
    "id-to-size-fnc": "it takes a Python function, which a recipe cannot hold (linear, square, exponential "
    "and size are "
    "its ready-made forms)",
}
_EXAMPLES = {
    "alpha": "0.5",
    "strictness": "0.5",
    "group_size": "5",
    "num_classes_per_partition": "2",
    "partition_sizes": "[100, 200]",
    "partition_by": '"user"',
    "num_unique_labels_per_partition": "2",
    "preassigned_num_samples_per_label": "5",
    "distribution_array": "[[0.7, 0.3], [0.5, 0.5]]",
}


def kinds() -> dict[str, type[Partitioner]]:
    """The partitioners of flwr-datasets that a recipe may name, by `partition.kind`."""
    partitioner = _partitioners()
    names = [name for name in partitioner.__all__ if name != "Partitioner"]
    found = {_kebab(name): getattr(partitioner, name) for name in names}
    return {kind: found[kind] for kind in sorted(found) if kind not in _REFUSED}


def _partitioners() -> types.ModuleType:
    """`flwr_datasets.partitioner` without the rest of its package, whose plots load seaborn and scipy for 1.5 s.

    Who imports `flwr_datasets`, before or after, gets the whole package, with these very classes.
    """
    package, name = "flwr_datasets", "flwr_datasets.partitioner"
    found = None if name in sys.modules or package in sys.modules else importlib.util.find_spec(package)
    if found is None:
        return importlib.import_module(name)
    sys.modules[package] = importlib.util.module_from_spec(found)  # it knows its folder; its code is not run
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(package, None)


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name.removesuffix("Partitioner")).lower()


def find_kind(kind: str) -> type[Partitioner]:
    """The partitioner class that `partition.kind` names.

    Raises:
        ConfigError: no such class, or one that gives clients something else than rows.
    """
    if kind in _REFUSED:
        raise ConfigError(f"partition.kind = {kind!r}: not possible here, since {_REFUSED[kind]}")
    known = kinds()
    if kind not in known:
        raise ConfigError(f"partition.kind = {kind!r}: unknown kind; {nearest(kind, known)}")
    return known[kind]


def partitioner_arguments(
    config: PartitionConfig, kind_class: type[Partitioner], clients: int | None, seed: int
) -> dict[str, Any]:
    """The arguments of the partitioner's constructor, complete and of the right types.

    Raises:
        ConfigError: an unknown, missing or ill-typed option, or no `clients` where the class does not fix
            their number.
    """
    parameters = dict(inspect.signature(kind_class.__init__).parameters)
    parameters.pop("self")
    own_count = parameters.pop("num_partitions", None) is None
    options = config.options
    if "num_partitions" in options:
        raise ConfigError("partition.num_partitions: set federation.clients instead")
    for key, value in options.items():
        if not parameters:
            raise ConfigError(f"partition.{key}: kind {config.kind!r} takes no options; leave it out")
        if key not in parameters:
            raise ConfigError(f"partition.{key}: unknown key; {nearest(key, parameters)}")
        hint = parameters[key].annotation
        if not _accepts(hint, value):
            raise ConfigError(f"partition.{key} = {value!r}: expected {_expected(hint)}")
    if "partition_by" in parameters:
        options.setdefault("partition_by", "label")
    if "seed" in parameters:
        options.setdefault("seed", derive(seed, "partition") % 2**32)
    if "min_partition_size" in parameters:
        options.setdefault("min_partition_size", config.min_size)
    for key, parameter in parameters.items():
        if key not in options and parameter.default is parameter.empty:
            example = _EXAMPLES.get(key, "...")
            raise ConfigError(
                f"partition.{key}: missing; kind {config.kind!r} needs it, for instance {key} = {example}"
            )
    if not own_count and clients is None:
        raise ConfigError(
            f"federation.clients: missing; partition.kind {config.kind!r} needs it, for instance clients = 10"
        )
    return options if own_count else {**options, "num_partitions": clients}


def _accepts(hint: Any, value: object) -> bool:
    """Whether a value from TOML fits an annotation of flwr-datasets, where lists stand for arrays."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_accepts(choice, value) for choice in get_args(hint))
    if origin is np.ndarray:
        return isinstance(value, list) and all(accepts(float, item) or _accepts(hint, item) for item in value)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_accepts(get_args(hint)[0], item) for item in value)
    return accepts(hint, value)


def _expected(hint: Any, plural: bool = False) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        choices = [choice for choice in choices if not (choice is int and float in choices)]
        return " or ".join(dict.fromkeys(_expected(choice, plural) for choice in choices))
    if origin is np.ndarray:
        return "a list of numbers"
    if origin in (list, Sequence):
        return f"a list of {_expected(get_args(hint)[0], plural=True)}"
    return {int: "integers", float: "numbers", str: "strings"}.get(hint, "") if plural else expected(hint)
