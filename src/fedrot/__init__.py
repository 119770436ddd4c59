"""Federated LoRA fine-tuning with rotational alignment.

Every name is loaded when first used: the mathematics (`align`, `procrustes`, `aggregation_error`, ...) loads torch
alone, running recipes (`run`) and base models (`load_base_for`) the rest of the library, and `import fedrot` nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

# MKL otherwise picks code paths by how memory happens to be aligned, and a resumed run would differ from an
# uninterrupted one in the last bit. It is read once, so it must be set before torch first computes.
os.environ.setdefault("MKL_CBWR", "AUTO")

if TYPE_CHECKING:
    from fedrot.comparison import Comparison, compare
    from fedrot.config import RunConfig, load_config
    from fedrot.core import Adapter, Factors, aggregation_error, align, procrustes
    from fedrot.engines.merge import MergeResult, merge
    from fedrot.engines.rounds import RunResult
    from fedrot.engines.run import run
    from fedrot.errors import FedrotError
    from fedrot.methods import methods
    from fedrot.model import load_base_for

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Comparison",
    "Factors",
    "FedrotError",
    "MergeResult",
    "RunConfig",
    "RunResult",
    "aggregation_error",
    "align",
    "compare",
    "load_base_for",
    "load_config",
    "merge",
    "methods",
    "procrustes",
    "run",
]

_LAZY = {
    "Adapter": "fedrot.core",
    "Comparison": "fedrot.comparison",
    "Factors": "fedrot.core",
    "FedrotError": "fedrot.errors",
    "MergeResult": "fedrot.engines.merge",
    "RunConfig": "fedrot.config",
    "RunResult": "fedrot.engines.rounds",
    "aggregation_error": "fedrot.core",
    "align": "fedrot.core",
    "compare": "fedrot.comparison",
    "load_base_for": "fedrot.model",
    "load_config": "fedrot.config",
    "merge": "fedrot.engines.merge",
    "methods": "fedrot.methods",
    "procrustes": "fedrot.core",
    "run": "fedrot.engines.run",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fedrot' has no attribute {name!r}")


class _Package(ModuleType):
    """`fedrot.methods` is a function, and a package: importing the package would put it in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(
            name, value.methods if name == "methods" and isinstance(value, ModuleType) else value
        )


sys.modules[__name__].__class__ = _Package
