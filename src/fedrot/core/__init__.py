"""The mathematics of federated LoRA: torch only, pure functions, any leading batch dimensions."""

from fedrot.core.adapter import Adapter, Factors, stack, weighted_mean
from fedrot.core.alignment import SiteRotation, align_adapter
from fedrot.core.consensus import consensus
from fedrot.core.measure import (
    AggregationError,
    adapter_aggregation_error,
    adapter_broadcast_error,
    aggregation_error,
    broadcast_error,
)
from fedrot.core.procrustes import Rotation, align, procrustes, rotate
from fedrot.core.refit import refit
from fedrot.core.rng import derive, generator
from fedrot.core.softening import soften

__all__ = [
    "Adapter",
    "AggregationError",
    "Factors",
    "Rotation",
    "SiteRotation",
    "adapter_aggregation_error",
    "adapter_broadcast_error",
    "aggregation_error",
    "align",
    "align_adapter",
    "broadcast_error",
    "consensus",
    "derive",
    "generator",
    "procrustes",
    "refit",
    "rotate",
    "soften",
    "stack",
    "weighted_mean",
]
