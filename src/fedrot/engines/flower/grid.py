"""A Flower `Grid` whose nodes live in this process: no server, no sockets, no copies of the base model."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

NodeConfig = Mapping[str, bool | float | int | str]

RUN = 1
"""The number of the one run that such a grid serves."""


class InProcessGrid(Grid):
    """Calls a `ClientApp` for one message at a time, when replies are asked for.

    A node keeps its `Context` from message to message. An exception in the app becomes an error reply, as in a
    deployed federation; the exception itself is kept in `raised`.

    Attributes:
        raised: what the app raised last on each node.
    """

    def __init__(
        self, app: ClientApp, nodes: Sequence[NodeConfig], run_config: NodeConfig | None = None
    ) -> None:
        """Make the nodes.

        Args:
            app: what every node runs.
            nodes: the configuration of each.
            run_config: what Flower calls the run's configuration.
        """
        # Flower stamps every message with the process' own identity; here the process is the server.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SUPERLINK_NODE_ID, RUN
        self._app = app
        first = SUPERLINK_NODE_ID + 1
        self._contexts = {
            first + index: Context(
                run_id=RUN,
                node_id=first + index,
                node_config=dict(config),
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for index, config in enumerate(nodes)
        }
        self._run = Run.create_empty(RUN)
        self._waiting: dict[str, Message] = {}
        self._done: dict[str, Message] = {}
        self.raised: dict[int, Exception] = {}

    def set_run(self, run: Run) -> None:
        """Take note of the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node; Flower prefers `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self._contexts)

    def remove(self, node: int) -> None:
        """Take a node away: what was sent to it is never answered, and it is no longer listed."""
        del self._contexts[node]
        self._waiting = {name: m for name, m in self._waiting.items() if m.metadata.dst_node_id != node}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Lay messages down; nothing runs yet."""
        names: list[str] = []
        for message in messages:
            name = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = name
            self._waiting[name] = message
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to some messages; if none is ready, one waiting node does its work first."""
        wanted = list(message_ids)
        if not any(name in self._done for name in wanted):
            name = next((name for name in wanted if name in self._waiting), None)
            if name is not None:
                self._done[name] = self._answer(self._waiting.pop(name))
        return [self._done.pop(name) for name in wanted if name in self._done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """All replies. There is nothing to wait for, so `timeout` has no effect."""
        del timeout
        names = set(self.push_messages(messages))
        replies: list[Message] = []
        while found := list(self.pull_messages(names)):
            replies += found
            names -= {reply.metadata.reply_to_message_id for reply in found}
        return replies

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            error = Error(ErrorCode.NODE_UNAVAILABLE, f"there is no node {node}")
            return _named(Message(error, reply_to=message))
        try:
            reply = self._app(message, self._contexts[node])
        except Exception as raised:
            self.raised[node] = raised
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(raised)}:<'{raised}'>")
            reply = Message(error, reply_to=message)
        return _named(reply)


def _named(reply: Message) -> Message:
    reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    return reply
