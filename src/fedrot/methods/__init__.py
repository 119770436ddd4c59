"""Aggregation methods, one file each. A new one takes a file and a line here; the contract suite finds it."""

from fedrot.methods import (
    auto,
    fedex,
    fedit,
    fedmomentum,
    fedrot,
    fedsa,
    fedsvd,
    ffa,
    flexlora,
    flora,
    florist,
    hetlora,
    lora_fair,
    random_rotation,
    refit_or_mean,
    rescale,
    rolora,
)
from fedrot.methods.base import Method, MethodState, Trainable, Update, Upload
from fedrot.methods.laws import Laws
from fedrot.methods.registry import build, method, methods

__all__ = ["Laws", "Method", "MethodState", "Trainable", "Update", "Upload", "build", "method", "methods"]
CATALOGUE = (
    auto,
    fedex,
    fedit,
    fedmomentum,
    fedrot,
    fedsa,
    fedsvd,
    ffa,
    flexlora,
    flora,
    florist,
    hetlora,
    lora_fair,
    random_rotation,
    refit_or_mean,
    rescale,
    rolora,
)
