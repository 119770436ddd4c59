"""Federated LoRA fine-tuning with rotational alignment.

The mathematics (`align`, `procrustes`, `aggregation_error`, ...) needs torch alone; running recipes (`run`) and base
models (`load_base_for`) load the rest of the library when first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# MKL otherwise picks code paths by how memory happens to be aligned, and a resumed run would differ from an
# uninterrupted one in the last bit. It is read once, so it must be set before torch first computes.
os.environ.setdefault("MKL_CBWR", "AUTO")

from fedrot.core import Adapter, Factors, aggregation_error, align, procrustes
from fedrot.errors import FedrotError
from fedrot.methods import methods

if TYPE_CHECKING:
    from fedrot.comparison import Comparison, compare
    from fedrot.config import RunConfig, load_config
    from fedrot.engines.local import RunResult
    from fedrot.engines.merge import MergeResult, merge
    from fedrot.engines.run import run
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
    "Comparison": "fedrot.comparison",
    "MergeResult": "fedrot.engines.merge",
    "compare": "fedrot.comparison",
    "RunConfig": "fedrot.config",
    "RunResult": "fedrot.engines.local",
    "load_base_for": "fedrot.model",
    "load_config": "fedrot.config",
    "merge": "fedrot.engines.merge",
    "run": "fedrot.engines.run",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fedrot' has no attribute {name!r}")
