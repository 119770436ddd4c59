"""What test workers do instead of training."""

from __future__ import annotations

import os
import signal
import time

from flwr.app import ConfigRecord, RecordDict

from fedrot.engines.flower.node import NodeSettings
from fedrot.errors import DataError


class Obliging:
    """Does what the message type says."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.handled = 0

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        self.handled += 1
        if message_type == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if message_type == "slow":
            time.sleep(1.0)
        if message_type == "mistake":
            raise KeyError("the patient's name")
        if message_type == "refuse":
            raise DataError("data = 'x.csv': no such file; give another")
        answer = ConfigRecord({"pid": os.getpid(), "handled": self.handled, "name": self.settings.name})
        return RecordDict({"answer": answer, **content})
