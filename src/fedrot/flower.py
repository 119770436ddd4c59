"""fedrot in other people's Flower apps: a mod for clients, a strategy for servers, PEFT adapters as records.

Needs the extra `flower`: `pip install fedrot[flower]`.
"""

from fedrot.engines.flower.mod import FedRotMod
from fedrot.engines.flower.strategy import FedRotStrategy

__all__ = ["FedRotMod", "FedRotStrategy"]
