"""Flower's loop of a node where a run ends in the middle of a message; its own state and object store, no server."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from fedrot.engines.flower.deploy.ended import last_beyond_runs


def order(round: int) -> Message:
    """As it arrives from the server."""
    message = Message(RecordDict({"told": ConfigRecord({"round": round})}), 5, "train", group_id=str(round))
    message.metadata.__dict__["_run_id"] = round
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def refused(*given: object) -> None:
    raise RunNotRunningException


class Node:
    """A SuperNode's loop, step by step, and what it sends."""

    def __init__(self) -> None:
        factory = ObjectStoreFactory()
        self.state, self.store = NodeStateFactory(factory).state(), factory.store()
        self.state.set_node_id(5)
        self.loop: Any = start_client_internal
        self.sent: list[str] = []

    def fetch(self, message: Message, **given: Any) -> int | None:
        self.state.store_run(Run.create_empty(message.metadata.run_id))
        there = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
        usual: dict[str, Any] = {
            "receive": lambda: (remove_content_from_message(message), get_object_tree(message)),
            "pull_object": lambda _, name: there[name],
            "confirm_message_received": lambda *_: None,
        }
        return self.loop._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            get_run=refused,
            get_fab=refused,
            trusted_entities=None,
            **usual | given,
        )

    def answer(self, message: Message) -> None:
        reply = Message(RecordDict(), reply_to=message)
        self.loop._insert_message(reply, self.state, self.store)

    def push(self) -> None:
        def send(reply: Message, *_: object) -> tuple[set[str], str]:
            self.sent.append(reply.metadata.reply_to_message_id)
            return set(), "session"

        self.loop._push_messages(
            state=self.state, object_store=self.store, send=send, push_object=lambda *_: None
        )


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    loop: Any = start_client_internal
    for name in ("_pull_and_store_message", "_push_messages"):
        monkeypatch.setattr(loop, name, getattr(loop, name))
    last_beyond_runs()
    return Node()


@pytest.mark.parametrize("at", ["pull_object", "confirm_message_received"])
def test_a_message_whose_run_ended_while_it_was_fetched_is_dropped_with_its_task(node: Node, at: str) -> None:
    first, second = order(1), order(2)
    assert node.fetch(first, **{at: refused}) is None
    assert not node.state.get_messages_legacy(is_reply=False)
    assert not [name for name in get_all_nested_objects(first) if name in node.store]
    assert [task.status.sub_status for task in node.state.get_tasks()] == ["failed"]
    assert node.fetch(second) == 2
    assert len(node.state.get_messages_legacy(is_reply=False)) == 1


def test_a_late_reply_to_a_dropped_message_does_not_pass_for_the_reply_to_the_next(node: Node) -> None:
    first, second = order(1), order(2)
    node.fetch(first, confirm_message_received=refused)
    node.fetch(second)
    node.answer(first)
    pushing = threading.Thread(target=node.push, daemon=True)
    pushing.start()
    pushing.join(0.7)  # it looks every half second
    assert node.sent == [first.object_id]
    assert pushing.is_alive()
    node.answer(second)
    pushing.join(10)
    assert node.sent == [first.object_id, second.object_id]
