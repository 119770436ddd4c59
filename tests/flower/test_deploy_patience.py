"""How long the loops of a warm node wait."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse  # pyright: ignore[reportAttributeAccessIssue]
from flwr.proto.runtime_pb2 import PullAppMessagesResponse  # pyright: ignore[reportAttributeAccessIssue]
from flwr.supercore.inflatable import inflatable_utils as utils
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid import http_grid

from fedrot.engines.flower.deploy import patience
from fedrot.engines.flower.deploy.patience import ALERT, NEAR, Impatient, end_in_time, hurry_input
from fedrot.engines.flower.messages import failure
from fedrot.engines.flower.until import waiting


def test_a_node_goes_on_asking_for_a_message_that_is_on_its_way_and_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pull = utils.pull_and_inflate_object_from_tree
    monkeypatch.setattr(pull, "__kwdefaults__", dict(pull.__kwdefaults__))
    monkeypatch.setattr(patience, "NEAR", 1e-4)
    hurry_input()
    content = RecordDict({"told": ConfigRecord({"round": 3})})
    there = {key: value.deflate() for key, value in get_all_nested_objects(content).items()}
    refusals = dict.fromkeys(there, utils.PULL_MAX_TRIES_PER_OBJECT + 10)  # Flower would have given up

    def ask(name: str) -> bytes:
        if refusals[name]:
            refusals[name] -= 1
            raise utils.ObjectUnavailableError(name)
        return there[name]

    received: list[str] = []
    found = pull(get_object_tree(content), ask, received.append, return_type=RecordDict)
    assert dict(found.config_records["told"]) == {"round": 3}
    assert not any(refusals.values())
    assert received == [content.object_id]


def test_a_node_asks_often_while_there_are_messages_and_at_flowers_pace_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=slept.append)
    monkeypatch.setattr(patience, "time", clock)
    loop = Impatient(0.2)
    loop.sleep(3)
    clock.now += ALERT + 1
    loop.sleep(3)
    loop.sleep(0.5)  # so Flower waits for an answer: there is a message
    loop.sleep(3)
    assert slept == [0.2, 3, NEAR, 0.2]


def reply(round: int) -> Message:
    """As it arrives from a node."""
    order = Message(RecordDict(), 5, "train", group_id=str(round))
    order.metadata.__dict__["_message_id"] = f"order {round}"
    answer = Message(RecordDict({"told": ConfigRecord({"round": round})}), reply_to=order)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    return answer


class HalfDelivered:
    """The SuperLink's answers to a server app: two replies, and no object of the first but the reply itself."""

    def __init__(self) -> None:
        self.replies = [reply(1), reply(2)]
        self.there = {key: value.deflate() for key, value in get_all_nested_objects(self.replies[1]).items()}
        self.confirmed: list[str] = []

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(one)) for one in self.replies],
            message_object_trees=[get_object_tree(one) for one in self.replies],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:
        name = request.object_id
        found = self.there.get(name)
        return PullObjectResponse(
            object_found=True, object_available=found is not None, object_content=found or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


def test_a_reply_whose_objects_do_not_come_is_given_up_at_the_deadline_and_the_others_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)
    end_in_time()
    grid, link = http_grid.HttpGrid(token="any"), HalfDelivered()
    grid.set_run(Run.create_empty(1))
    monkeypatch.setattr(grid, "_client", link)
    until = time.monotonic() + 0.3
    with waiting(until):
        lost, taken = grid.pull_messages(["order 1", "order 2"])
    assert time.monotonic() >= until
    assert lost.metadata.reply_to_message_id == "order 1"
    assert failure(lost) == "its answer was announced, but not all of it arrived in time"
    assert dict(taken.content.config_records["told"]) == {"round": 2}
    assert link.confirmed == [link.replies[1].object_id]
    with waiting(0.0):
        assert [one.has_error() for one in grid.pull_messages(["order 1", "order 2"])] == [True, False]
