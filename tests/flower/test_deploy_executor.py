"""How a node takes a message, without a server: what happens if it does not arrive whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import context_to_proto, fab_to_proto, message_to_proto, run_to_proto
from flwr.proto.message_pb2 import PullObjectResponse  # pyright: ignore[reportAttributeAccessIssue]
from flwr.proto.runtime_pb2 import (  # pyright: ignore[reportAttributeAccessIssue]
    PullAppMessagesResponse,
    PullTaskInputResponse,
)
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.run import Run

from fedrot.engines.flower.deploy.executor import Executor, TaskLost
from fedrot.engines.flower.deploy.runtime import Runtime, Task
from fedrot.engines.flower.deploy.warm import GaveUp, WarmWorker


def order() -> Message:
    """As it arrives from the server."""
    message = Message(RecordDict({"told": ConfigRecord({"round": 3})}), 5, "train", group_id="3")
    message.metadata.__dict__["_run_id"] = 1
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


class HalfThere:
    """The answers of a SuperNode that has announced a message, but has none of its objects."""

    def __init__(self, *, known: bool) -> None:
        self.order, self.known = order(), known
        self.asked = threading.Event()

    def PullTaskInput(self, request: Any) -> PullTaskInputResponse:
        context = Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={})
        return PullTaskInputResponse(
            context=context_to_proto(context),
            run=run_to_proto(Run.create_empty(1)),
            fab=fab_to_proto(Fab("", b"", {})),
            task_id=7,
        )

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(self.order))],
            message_object_trees=[get_object_tree(self.order)],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:
        self.asked.set()
        return PullObjectResponse(object_found=self.known, object_available=False)

    def ConfirmMessageReceived(self, request: Any) -> None:
        raise AssertionError("it did not arrive")


def taking(link: HalfThere, given_up: Callable[[], bool]) -> None:
    """Have an executor take the message there."""
    unused = cast(Any, None)
    executor = Executor(cast(Runtime, unused), cast(WarmWorker, unused), "node-0", given_up)
    executor._answer(cast(Any, link), Task(7, 1, "token"))


def test_a_node_that_is_to_end_waits_no_longer_for_objects_of_its_message() -> None:
    link = HalfThere(known=True)
    with pytest.raises(GaveUp):
        taking(link, link.asked.is_set)
    assert link.asked.is_set()


def test_a_message_that_the_supernode_has_dropped_is_a_lost_task_that_names_the_run() -> None:
    with pytest.raises(TaskLost, match=r"run 1: a message did not arrive whole \(.*could not be found"):
        taking(HalfThere(known=False), lambda: False)
