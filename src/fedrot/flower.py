"""fedrot in other people's Flower apps: a mod for clients, a strategy for servers, PEFT adapters as records.

Needs the extra `flower`: `pip install fedrot[flower]`.
"""

from fedrot.engines.flower.mod import FedRotMod
from fedrot.engines.flower.peft_records import peft_to_record, record_to_peft
from fedrot.engines.flower.strategy import FedRotStrategy

__all__ = ["FedRotMod", "FedRotStrategy", "peft_to_record", "record_to_peft"]
