"""A Flower Grid in this process: messages go to a ClientApp as bytes and come back as bytes, without a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid


def over_the_wire(message: Message) -> Message:
    sent = message_to_proto(message)
    return message_from_proto(type(sent).FromString(sent.SerializeToString()))


@dataclass
class Loopback(Grid):
    """Runs `app` for nodes 1..nodes, one after another; what they sent is kept."""

    app: ClientApp
    nodes: int = 3
    run_config: dict[str, Any] = field(default_factory=dict)
    sent: list[Message] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(range(1, self.nodes + 1))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            config = {"partition-id": node - 1, "num-partitions": self.nodes}
            context = Context(1, node, config, RecordDict(), self.run_config)
            received = over_the_wire(message)
            try:
                reply = self.app(received, context)
            except Exception as error:  # as Flower's own workers do
                self.errors.append(error)
                reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=received)
            replies.append(over_the_wire(reply))
            self.sent.append(over_the_wire(reply))  # some strategies take the arrays out of theirs
        return replies
