"""Messages to nodes and their replies, until a deadline; who has not answered is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrot.engines.flower.messages import failure
from fedrot.engines.flower.records import message_bytes
from fedrot.engines.flower.roster import Peer
from fedrot.engines.flower.until import waiting


@dataclass(frozen=True)
class Request:
    """What a node is asked."""

    peer: Peer
    content: RecordDict


class Messenger:
    """Asks nodes over any Flower `Grid`, and counts what travels.

    Attributes:
        traffic: bytes of arrays sent and received since `start`.
    """

    def __init__(self, grid: Grid, deadline: float) -> None:
        """Nothing is sent yet.

        Args:
            grid: Flower's.
            deadline: seconds that nodes have to answer.
        """
        self.traffic = {"bytes_up": 0, "bytes_down": 0}
        self._grid, self._deadline = grid, deadline
        self._late: dict[str, int] = {}
        """Messages that were not answered in time, and the node each went to."""

    @property
    def busy(self) -> set[int]:
        """Nodes that have not answered an earlier message yet."""
        return set(self._late.values())

    def start(self) -> None:
        """A new round."""
        self.traffic = {"bytes_up": 0, "bytes_down": 0}
        self.forget()

    def await_one(self, nodes: set[int]) -> None:
        """Wait until one of `nodes` is not busy, for as long as nodes have to answer."""
        until, pause = time.monotonic() + self._deadline, 0.02
        while nodes <= self.busy and time.monotonic() < until:
            time.sleep(pause)
            pause = min(0.2, 1.5 * pause)
            self.forget()

    def forget(self) -> None:
        """Drop late messages that have been answered since, or whose node has left."""
        if not self._late:
            return
        with waiting(until=0.0):  # nobody uses what it brings
            found = list(self._grid.pull_messages(list(self._late)))
        for reply in found:
            self._late.pop(reply.metadata.reply_to_message_id, None)
        here = set(self._grid.get_node_ids())
        self._late = {name: node for name, node in self._late.items() if node in here}

    def ask(
        self,
        kind: str,
        requests: Sequence[Request],
        round: int,
        heard: Callable[[Request], None] = lambda request: None,  # noqa: ARG005
    ) -> list[RecordDict | str]:
        """Send requests, and wait until all are answered or time is up.

        Args:
            kind: Flower's type of message.
            requests: at most one a node is answered at a time; the others wait.
            round: counted from 1.
            heard: told of every reply as it comes.

        Returns:
            To each request the reply, or why there is none.
        """
        messages = [self._message(request, kind, round) for request in requests]
        names = {
            name: place for place, name in enumerate(self._grid.push_messages(messages) if messages else ())
        }
        replies: list[RecordDict | str] = [
            f"node {request.peer.name!r} did not answer within {self._deadline:g} s" for request in requests
        ]
        until, pause, missing = time.monotonic() + self._deadline, 0.02, set(names)
        while missing:
            with waiting(until):
                found = list(self._grid.pull_messages(missing))
            for reply in found:
                name = reply.metadata.reply_to_message_id
                if name not in names:
                    continue  # it does not say what it replies to, so it is no answer to anything that was asked
                missing.discard(name)
                request = requests[names[name]]
                replies[names[name]] = self._content(reply, request.peer)
                heard(request)
            if not missing or (not found and time.monotonic() >= until):
                break
            if not found:
                time.sleep(pause)
                pause = min(0.2, 1.5 * pause)
        self._late |= {name: requests[names[name]].peer.node for name in missing}
        return replies

    def _message(self, request: Request, kind: str, round: int) -> Message:
        self.traffic["bytes_down"] += _bytes(request.content)
        ttl = self._deadline + 60
        return Message(request.content, request.peer.node, kind, ttl=ttl, group_id=str(round))

    def _content(self, reply: Message, peer: Peer) -> RecordDict | str:
        if reply.has_error():
            where, reason = f"node {peer.name!r}", failure(reply)
            return reason if where in reason else f"{where}: {reason}"
        self.traffic["bytes_up"] += _bytes(reply.content)
        return reply.content


def _bytes(content: RecordDict) -> int:
    return sum(message_bytes(record) for record in content.array_records.values())
