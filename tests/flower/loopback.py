"""The in-process grid with messages that go to a ClientApp as bytes and come back as bytes, all of them kept."""

from __future__ import annotations

from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto

from fedrot.engines.flower.grid import InProcessGrid


def over_the_wire(message: Message) -> Message:
    sent = message_to_proto(message)
    return message_from_proto(type(sent).FromString(sent.SerializeToString()))


class Loopback(InProcessGrid):
    """Runs `app` on nodes that know their partition; `sent` is what they replied."""

    def __init__(self, app: ClientApp, nodes: int = 3, run_config: dict[str, Any] | None = None) -> None:
        self.sent: list[Message] = []

        def answer(message: Message, context: Context) -> Message:
            reply = over_the_wire(app(over_the_wire(message), context))
            self.sent.append(over_the_wire(reply))  # some strategies take the arrays out of theirs
            return reply

        places = [{"partition-id": index, "num-partitions": nodes} for index in range(nodes)]
        super().__init__(answer, places, run_config)  # pyright: ignore[reportArgumentType]
