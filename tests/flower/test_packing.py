"""Messages that travel as one value."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedrot.engines.flower import packing
from fedrot.engines.flower.packing import SHORT, PackedGrid, from_bytes, pack, packed, to_bytes, unpack
from fedrot.errors import AdapterError


def content() -> RecordDict:
    arrays = {f"site-{index}": Array(np.full((2, index + 1), index, np.float32)) for index in range(12)}
    told = ConfigRecord({"round": 3, "clients": [1, 2], "name": "node"})
    return RecordDict({"arrays": ArrayRecord(arrays), "told": told, "loss": MetricRecord({"loss": 0.5})})


@pytest.fixture(params=["short", "long"])
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether messages of this test count as short."""
    if request.param == "long":
        monkeypatch.setattr(packing, "SHORT", 0)
    return request.param


@pytest.mark.usefixtures("length")
def test_what_is_packed_comes_out_as_it_went_in():
    sent, got = content(), unpack(pack(to_bytes(content())), "a node")
    assert list(got) == list(sent)
    assert dict(got["told"]) == dict(sent["told"])
    assert dict(got["loss"]) == {"loss": 0.5}
    before, after = sent.array_records["arrays"], got.array_records["arrays"]
    assert list(before) == list(after)
    assert all((before[key].numpy() == after[key].numpy()).all() for key in before)


def test_a_message_is_a_few_objects_however_many_arrays_there_were(length: str):
    message = Message(pack(to_bytes(content())), 7, "train")
    assert len(get_all_nested_objects(message)) == {"short": 3, "long": 5}[length]


def test_a_short_message_is_in_one_piece_and_a_long_one_in_several():
    def largest(size: int) -> int:
        objects = get_all_nested_objects(pack(bytes(size))).values()
        return max(len(found.deflate()) for found in objects)

    assert largest(SHORT) > SHORT
    assert largest(3 * SHORT) < 2 * SHORT


def test_records_that_are_not_packed_are_left_alone():
    plain = content()
    assert unpack(plain, "a node") is plain
    assert packed(plain) is None


@pytest.mark.parametrize("data", [b"nonsense", b"\xff" * 100])
def test_bytes_that_are_no_records_are_refused_with_their_sender(data: bytes):
    with pytest.raises(AdapterError, match=r"node 'x': what was sent holds no records"):
        from_bytes(data, "node 'x'")


def test_a_message_beyond_the_limit_is_refused_with_its_size_and_the_remedy(monkeypatch: pytest.MonkeyPatch):
    size = len(to_bytes(content()))
    monkeypatch.setattr(packing, "LIMIT", size)
    to_bytes(content())
    monkeypatch.setattr(packing, "LIMIT", size - 1)
    with pytest.raises(AdapterError, match=rf"a message of {size} bytes.*lower lora\.rank"):
        to_bytes(content())


class Echo:
    """As much of a grid as is needed."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def push_messages(self, messages: list[Message]) -> list[str]:
        self.sent = messages
        return ["a"]

    def pull_messages(self, names: list[str]) -> list[Message]:
        return self.sent


def test_a_grid_packs_what_goes_and_unpacks_what_comes():
    echo = Echo()
    grid = PackedGrid(echo)  # pyright: ignore[reportArgumentType]
    given = content()
    grid.push_messages([Message(given, 7, "train", ttl=60, group_id="3")])
    [went] = echo.sent
    assert packed(went.content) is not None
    assert (went.metadata.dst_node_id, went.metadata.message_type, went.metadata.ttl) == (7, "train", 60)
    assert went.metadata.group_id == "3"
    [came] = grid.pull_messages(["a"])
    assert list(came.content) == list(given)


def test_a_reply_that_cannot_be_unpacked_reaches_its_reader_without_what_was_asked_for():
    echo = Echo()
    echo.sent = [Message(pack(b"nonsense"), 7, "train")]
    [came] = PackedGrid(echo).pull_messages(["a"])  # pyright: ignore[reportArgumentType]
    assert set(came.content) == {"packed"}
