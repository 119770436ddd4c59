"""A node that sends what it should not, and fails. Run as `python -m tests.flower.misbehaving FOLDER`."""

from __future__ import annotations

import math
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from fedrot.engines.flower.deploy.node_supervisor import NodeSupervisor
from fedrot.engines.flower.messages import FACTS, TRAIN, upload_name
from fedrot.engines.flower.node import NodeSettings, load_node
from fedrot.engines.flower.worker import Worker


class Misbehaving:
    """Its last client sends NaN in the first round and another shape in the second; the third raises."""

    def __init__(self, settings: NodeSettings) -> None:
        self.worker, self.name = Worker(settings), upload_name(settings.clients[-1])

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        round = int(str(content.config_records[FACTS]["round"])) if message_type == TRAIN else 0
        if round == 3:
            raise KeyError("the patient's name")
        reply = self.worker.handle(message_type, content)
        if round in (1, 2):
            reply[self.name] = spoiled(reply.array_records[self.name], nan=round == 1)
        return reply


def spoiled(record: ArrayRecord, *, nan: bool) -> ArrayRecord:
    first = next(iter(record))
    values = record[first].numpy()
    wrong = np.full_like(values, math.nan) if nan else values[:, :-1].copy()
    return ArrayRecord({key: Array(wrong) if key == first else array for key, array in record.items()})


if __name__ == "__main__":
    NodeSupervisor(load_node(sys.argv[1]), "tests.flower.misbehaving:Misbehaving").run()
