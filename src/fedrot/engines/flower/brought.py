"""What comes with an order: the broadcast, and the parts of the model from which the node's own clients go on."""

from __future__ import annotations

from flwr.app import RecordDict
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.engines.flower.kept import Kept
from fedrot.engines.flower.messages import Order, unpack_adapter
from fedrot.engines.flower.node_data import Local
from fedrot.errors import AdapterError, ConfigError, ModelError
from fedrot.server import own_parts


def broadcast_of(order: Order, local: Local, content: RecordDict, where: str) -> Adapter:
    """The broadcast that came with an order, on the node's device.

    Args:
        order: held against what the node has.
        local: that.
        content: of the message.
        where: the node, for messages.

    Raises:
        ModelError: another base model than the node's.
        ConfigError: a client that is not hosted here, or numbers of rounds that cannot be.
        AdapterError: no broadcast, or one that does not fit.
    """
    if order.base != local.base:
        raise ModelError(
            f"{where}: its base model has digest {local.base[:12]}, the server's {order.base[:12]}; "
            "give both the same files and train.precision"
        )
    if foreign := [client for client in order.clients if client not in local.clients.rows]:
        raise ConfigError(f"{where}: asked for client {foreign[0]}, which it does not host")
    if len(order.kept) != len(order.clients) or any(not 0 <= kept <= order.round for kept in order.kept):
        raise ConfigError(
            f"{where}: asked to go on in round {order.round} from what clients {order.clients} kept of "
            f"rounds {order.kept}: expected one round for each, from 0 to the order's own"
        )
    where = f"{where}, round {order.round}"
    received = unpack_adapter(content, "received", local.initial, order.scale, where)
    if received is None:
        raise AdapterError(f"{where}: no adapter came with the order")
    return received.map(lambda tensor: tensor.to(local.device))


def parts_of(
    kept: Kept, order: Order, local: Local, received: Adapter
) -> tuple[dict[int, dict[str, Tensor]], dict[int, str]]:
    """What each client goes on from beside the broadcast, and why some cannot.

    What was kept under one recipe must not leave under another, so nothing is loaded that would be uploaded.
    """
    method = local.clients.method
    stays = own_parts(method, received, order.round) if method.laws.personal else {}
    own: dict[int, dict[str, Tensor]] = {}
    refused: dict[int, str] = {}
    for client, round in zip(order.clients, order.kept, strict=True):
        try:
            own[client] = kept.load(order.run, client, round, stays)
        except AdapterError as error:
            refused[client] = str(error)
    return own, refused
