"""Recipes: typed, strict, loaded from TOML, overridden with `section.key=value`, written back fully resolved.

A leaf: it imports no other part of fedrot but the errors. `[method]` and `[partition]` take options that belong to the
named method or partitioner; those are checked against it when it is built (`fedrot.methods.build`,
`fedrot.partition`), with the same strictness.
"""

from fedrot.config.compat import CompatConfig
from fedrot.config.load import differences, load_as, load_config, parse_as, parse_config, read_recipe
from fedrot.config.overrides import apply_override, apply_overrides
from fedrot.config.private import PrivacyConfig
from fedrot.config.sections import (
    FederationConfig,
    LoraSettings,
    ModelConfig,
    PartitionConfig,
    RunConfig,
    TrainConfig,
)
from fedrot.config.task import TaskConfig

__all__ = [
    "CompatConfig",
    "FederationConfig",
    "LoraSettings",
    "ModelConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "RunConfig",
    "TaskConfig",
    "TrainConfig",
    "apply_override",
    "apply_overrides",
    "differences",
    "load_as",
    "load_config",
    "parse_as",
    "parse_config",
    "read_recipe",
]
