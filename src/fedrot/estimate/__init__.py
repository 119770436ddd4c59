"""What a run will cost, said beforehand: memory, hours and bytes, from the recipe and the model's config.json alone."""

from fedrot.estimate.architectures import shape_of
from fedrot.estimate.devices import DEVICES, Device, this_cpu
from fedrot.estimate.forecast import Forecast, forecast
from fedrot.estimate.memory import Memory, group_that_fits, memory
from fedrot.estimate.shape import Shape

__all__ = [
    "DEVICES",
    "Device",
    "Forecast",
    "Memory",
    "Shape",
    "forecast",
    "group_that_fits",
    "memory",
    "shape_of",
    "this_cpu",
]
