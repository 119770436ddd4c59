"""How long the loops of a warm node wait."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.inflatable import inflatable_utils as utils
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedrot.engines.flower.deploy import patience
from fedrot.engines.flower.deploy.patience import ALERT, NEAR, Impatient, hurry_input


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
