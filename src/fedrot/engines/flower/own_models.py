"""What a node does with its clients' own models beside training them: it tests them, and writes them down."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.engines.evaluation import see
from fedrot.engines.flower.kept import Kept
from fedrot.engines.flower.marks import pack_marks
from fedrot.engines.flower.messages import Order
from fedrot.engines.flower.node_data import Local
from fedrot.engines.setup import Federation
from fedrot.engines.write import save_own
from fedrot.errors import OutputError
from fedrot.server import own_model

Parts = Mapping[int, Mapping[str, Tensor]]
"""By client, what it keeps to itself."""


def examine(federation: Federation, received: Adapter, own: Parts) -> RecordDict:
    """What each client's own model scores on the splits of this node."""
    reply = RecordDict()
    for client in own:
        model = own_model(received, own, client, None)
        for name, split in federation.tested.items():
            for record, marks in pack_marks(client, name, see(federation, model, split)).items():
                reply[record] = marks
    federation.crew.unload()
    return reply


def write(kept: Kept, order: Order, local: Local, received: Adapter, own: Parts) -> None:
    """Write each client's own model in PEFT's format, as `adapter/` beside what it keeps.

    Raises:
        OutputError: this node has no folder for it.
    """
    for client in own:
        folder = kept.folder(order.run, client)
        if folder is None:
            raise OutputError(
                "this node keeps its clients' parts in memory; give it a folder of its own (fedrot deploy init)"
            )
        model = own_model(received, own, client, None)
        save_own(
            folder / "adapter", model, local.initial, local.model, local.clients.config, order.round, client
        )
