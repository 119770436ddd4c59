"""Secure aggregation between the records of a server and of its nodes, without a model and without a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedrot.engines.flower.secagg.driver import SecureRound
from fedrot.engines.flower.secagg.layout import Layout
from fedrot.engines.flower.secagg.parties import Parties
from fedrot.engines.flower.secagg.wire import RULES, STEP, Rules, pack_rules, unpack_rules
from fedrot.errors import AdapterError, SecureAggregationError
from fedrot.secagg import Aggregate, FixedPoint, Session, Signer
from tests.secagg.rounds import signers

NODES = {10: (0, 1), 20: (2,), 30: (3, 4, 5)}
HOSTS = {client: node for node, clients in NODES.items() for client in clients}
SHAPES = {"sites/q/a": (4, 6), "sites/q/b": (5, 4), "head/bias": (3,)}
Update = dict[str, Tensor]


def updates(rank_of: Mapping[int, int] | None = None) -> dict[int, Update]:
    draw = torch.Generator().manual_seed(3)
    ranks = dict.fromkeys(HOSTS, 4) | dict(rank_of or {})
    return {
        client: {
            "sites/q/a": torch.randn(rank, 6, generator=draw),
            "sites/q/b": torch.randn(5, rank, generator=draw),
            "head/bias": torch.randn(3, generator=draw),
        }
        for client, rank in ranks.items()
    }


def rules(*, threshold: int = 4, signed: bool = False, round: int = 1, weight: int = 50) -> Session:
    layout = Layout(SHAPES)
    numbers = FixedPoint(len(HOSTS), 8.0, weight)
    return Session(
        "run", round, tuple(HOSTS), threshold, layout.length, numbers, bytes(16), signed, layout.text()
    )


class Network:
    """Nodes that answer, and those that are gone from some step on."""

    def __init__(self, session: Session, *, signer: Signer | None = None) -> None:
        self.session = session
        self.nodes = {node: Parties(f"node {node}", signer) for node in NODES}
        self.gone: dict[str, int] = {}
        self.change: Callable[[str, int, RecordDict], None] = lambda step, node, reply: None

    def run(self, trained: Mapping[int, Update | str]) -> tuple[Aggregate, SecureRound]:
        server = SecureRound(self.session, HOSTS, self.exchange)
        for node, clients in NODES.items():
            reply, order = RecordDict(), RecordDict({RULES: pack_rules(Rules.of(self.session))})
            told = unpack_rules(order, "test")
            assert told is not None
            share = {c: u if isinstance(u := trained[c], str) else (u, c + 1) for c in clients}
            self.nodes[node].join(reply, told.session(self.session.round), share)
            server.join(reply, clients, f"node {node}")
        return server.finish(), server

    def exchange(self, kind: str, messages: Mapping[int, RecordDict]) -> dict[int, RecordDict | str]:
        assert kind == "train.secure"
        replies: dict[int, RecordDict | str] = {}
        for node, content in messages.items():
            step = str(content.config_records[STEP]["step"])
            if self.gone.get(step) == node:
                replies[node] = f"node {node} did not answer"
                continue
            reply = self.nodes[node].handle(content)
            self.change(step, node, reply)
            replies[node] = reply
        return replies


def mean(trained: Mapping[int, Update], clients: set[int]) -> Update:
    """The weighted mean in float64, smaller ranks filled up with zeros."""
    total = sum(client + 1 for client in clients)
    result = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in SHAPES.items()}
    for client in clients:
        for key, tensor in trained[client].items():
            result[key][tuple(map(slice, tensor.shape))] += tensor.double() * (client + 1) / total
    return result


def expect(aggregate: Aggregate, trained: Mapping[int, Update], clients: set[int]) -> None:
    found, wanted = Layout(SHAPES).unpack(aggregate.mean), mean(trained, clients)
    assert set(aggregate.clients) == clients
    assert aggregate.weight == sum(client + 1 for client in clients)
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), wanted[key], rtol=2e-7, atol=aggregate.error)


def test_the_server_gets_the_weighted_mean_of_all_clients_of_all_nodes() -> None:
    trained = updates()
    aggregate, server = Network(rules()).run(trained)
    expect(aggregate, trained, set(HOSTS))
    assert (server.lost, server.late) == ({}, {})


def test_clients_of_smaller_rank_are_filled_up_with_zeros() -> None:
    trained = updates({1: 2, 4: 3})
    aggregate, _ = Network(rules()).run(trained)
    expect(aggregate, trained, set(HOSTS))


@pytest.mark.parametrize("step", ["share", "mask"])
def test_a_node_lost_before_its_vectors_came_is_not_in_the_mean(step: str) -> None:
    trained, network = updates(), Network(rules())
    network.gone = {step: 10}
    aggregate, server = network.run(trained)
    expect(aggregate, trained, {2, 3, 4, 5})
    assert server.lost == {0: "node 10 did not answer", 1: "node 10 did not answer"}


def test_a_node_lost_after_its_vectors_came_is_in_the_mean() -> None:
    trained, network = updates(), Network(rules())
    network.gone = {"reveal": 10}
    aggregate, server = network.run(trained)
    expect(aggregate, trained, set(HOSTS))
    assert server.lost == {}
    assert set(server.late) == {0, 1}


@pytest.mark.parametrize("step", ["share", "mask", "reveal"])
def test_with_too_few_left_nothing_comes_out(step: str) -> None:
    network = Network(rules())
    network.gone = {step: 30}
    with pytest.raises(SecureAggregationError, match=r"3 of 6 clients are left .* threshold of 4"):
        network.run(updates())


def test_signed_rounds_work_and_a_node_may_leave_before_it_consents() -> None:
    trained, network = updates(), Network(rules(threshold=5, signed=True), signer=signers(list(HOSTS))[0])
    # All clients of a node sign with its key; here one key serves the whole federation.
    signer = Signer(signers([0])[0].private, dict.fromkeys(HOSTS, signers([0])[0].identities[0]))
    network.nodes = {node: Parties(f"node {node}", signer) for node in NODES}
    network.gone = {"consent": 20}
    aggregate, server = network.run(trained)
    expect(aggregate, trained, set(HOSTS))
    assert set(server.late) == {2}


def test_a_node_without_identity_joins_no_signed_round_and_one_with_it_no_unsigned_one() -> None:
    with pytest.raises(SecureAggregationError, match="0 of 6 clients"):
        Network(rules(threshold=5, signed=True)).run(updates())
    with pytest.raises(SecureAggregationError, match="0 of 6 clients"):
        Network(rules(), signer=signers(list(HOSTS))[0]).run(updates())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "non-finite update"),
        (float("-inf"), "non-finite update"),
        (8.5, r"1 values are beyond privacy\.secure_range = 8, the first in 'sites/q/b'"),
    ],
)
def test_a_client_whose_numbers_cannot_be_summed_leaves_and_says_why(value: float, reason: str) -> None:
    trained = updates()
    trained[2]["sites/q/b"][1, 2] = value
    aggregate, server = Network(rules()).run(trained)
    expect(aggregate, trained, {0, 1, 3, 4, 5})
    assert set(server.refused) == {2}
    assert re.search(reason, server.refused[2])


def test_a_client_that_failed_to_train_leaves_with_its_reason() -> None:
    trained = updates()
    aggregate, server = Network(rules()).run({**trained, 1: "non-finite loss or update"})
    expect(aggregate, trained, {0, 2, 3, 4, 5})
    assert server.refused == {1: "non-finite loss or update"}


def test_a_process_that_ends_after_every_message_is_refused_by_name() -> None:
    network = Network(rules())
    cold = network.exchange

    def exchange(kind: str, messages: Mapping[int, RecordDict]) -> dict[int, RecordDict | str]:
        network.nodes = {node: Parties(f"node {node}") for node in NODES}
        return cold(kind, messages)

    network.exchange = exchange  # type: ignore[method-assign]
    with pytest.raises(SecureAggregationError, match="run warm clients"):
        network.run(updates())


def test_the_vector_of_one_client_is_not_taken_for_anothers() -> None:
    trained, network = updates(), Network(rules())

    def swap(step: str, node: int, reply: RecordDict) -> None:
        if step == "mask" and node == 30:
            reply["secure-3"], reply["secure-4"] = reply["secure-4"], reply["secure-3"]

    network.change = swap
    aggregate, server = network.run(trained)
    expect(aggregate, trained, {0, 1, 2, 5})
    assert "sent a message of client 4 as that of 3" in server.refused[3]


def test_a_reply_without_a_message_loses_the_client() -> None:
    trained, network = updates(), Network(rules())

    def drop(step: str, node: int, reply: RecordDict) -> None:
        if step == "share" and node == 20:
            del reply["secure-2"]

    network.change = drop
    aggregate, server = network.run(trained)
    expect(aggregate, trained, {0, 1, 3, 4, 5})
    assert "no message of secure aggregation under 'secure-2'" in server.refused[2]


def test_a_new_round_ends_the_one_before() -> None:
    first, network = rules(), Network(rules())
    later = rules(round=2)
    node, reply = network.nodes[20], RecordDict()
    node.join(reply, first, {2: (updates()[2], 1)})
    node.join(reply, later, {2: (updates()[2], 1)})
    step = ConfigRecord({"step": "share", "clients": [2], "session": first.digest})
    with pytest.raises(SecureAggregationError, match="in no such round"):
        node.handle(RecordDict({STEP: step}))


def test_rules_are_the_same_after_a_journey_and_checked() -> None:
    session = rules(signed=True, threshold=5)
    record = pack_rules(Rules.of(session))
    read = unpack_rules(RecordDict({RULES: record}), "test")
    assert read is not None
    assert read.session(1).digest == session.digest
    assert unpack_rules(RecordDict(), "test") is None
    for key, wrong in {"clip": 8, "signed": 1, "threshold": True, "layout": b"x"}.items():
        changed = ConfigRecord({**record, key: wrong})
        with pytest.raises(SecureAggregationError, match=f"secure-rules.{key} = "):
            unpack_rules(RecordDict({RULES: changed}), "test")


@pytest.mark.parametrize("text", ["", "7", '[["a", [0]]]', '[["a", ["x"]]]', '[["a", [2]], ["a", [2]]]'])
def test_a_layout_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SecureAggregationError, match="layout"):
        Layout.read(text)


def test_uploads_that_do_not_fit_the_layout_are_refused() -> None:
    layout, good = Layout(SHAPES), updates()[0]
    with pytest.raises(AdapterError, match="head/bias"):
        layout.pack({key: t for key, t in good.items() if key != "head/bias"}, "client 0")
    with pytest.raises(AdapterError, match="their order"):
        layout.pack(dict(reversed(good.items())), "client 0")
    for shape in [(5, 6), (4, 5), (3, 5), (4, 6, 1)]:
        with pytest.raises(AdapterError, match=r"'sites/q/a' of shape .*, the server expects \(4, 6\)"):
            layout.pack({**good, "sites/q/a": torch.zeros(shape)}, "client 0")


def test_a_layout_names_the_tensor_of_every_position() -> None:
    layout = Layout(SHAPES)
    names = [layout.key_of(position) for position in range(layout.length)]
    assert names == ["sites/q/a"] * 24 + ["sites/q/b"] * 20 + ["head/bias"] * 3
    packed = layout.pack(updates()[0], "client 0")
    assert packed.dtype == np.float32
    torch.testing.assert_close(layout.unpack(packed.astype(np.float64)), updates()[0], rtol=0, atol=0)
