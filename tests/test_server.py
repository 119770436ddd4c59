"""Who takes part, and what travels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrot.core import Adapter, Factors
from fedrot.errors import AdapterError
from fedrot.methods import Update, build
from fedrot.server import ServerState, aggregate, choose_clients
from fedrot.wire import decode, encode


def adapter(value: float = 1.0) -> Adapter:
    draw = torch.Generator().manual_seed(int(value * 10))
    sites = {
        f"layer.{i}": Factors(torch.randn(2, 5, generator=draw), torch.randn(4, 2, generator=draw))
        for i in (2, 10)
    }
    return Adapter(sites, {"head": torch.randn(3, generator=draw)}, scale=0.5)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100), st.integers(1, 500), st.integers(1, 200), st.floats(0.001, 1.0))
def test_participants_are_distinct_seeded_and_of_the_right_number(
    seed: int, round: int, clients: int, fraction: float
) -> None:
    chosen = choose_clients(seed, round, clients, fraction)
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(range(clients))
    assert max(1, fraction * clients - 1e-6) <= len(chosen) <= fraction * clients + 1
    assert chosen == choose_clients(seed, round, clients, fraction)


def test_every_client_takes_part_in_time() -> None:
    seen = {client for round in range(1, 200) for client in choose_clients(5, round, 40, 0.1)}
    assert seen == set(range(40))


def test_history_is_as_long_as_the_method_needs() -> None:
    states = [ServerState(0, adapter(0.1))]
    method = build("fedrot", {"reference": "two-back"}, 0)
    for round in range(1, 4):
        states.append(aggregate(method, states[-1], [Update(0, adapter(round), 1.0)]).state)
    assert [len(state.history) for state in states] == [0, 1, 1, 1]
    assert states[-1].broadcast(method.reference_lag) is states[-2].adapter
    plain = aggregate(build("fedit", {}, 0), states[0], [Update(0, adapter(1), 1.0)]).state
    assert plain.history == ()
    assert plain.broadcast(1) is plain.adapter


def test_history_serves_stale_clients_too() -> None:
    states = [ServerState(0, adapter(0.1))]
    for round in range(1, 6):
        step = aggregate(build("fedit", {}, 0), states[-1], [Update(0, adapter(round), 1.0)], history=3)
        states.append(step.state)
    assert [len(state.history) for state in states] == [0, 1, 2, 3, 3, 3]
    assert states[-1].broadcast(0) is states[-1].adapter
    assert states[-1].broadcast(2) is states[-3].adapter
    assert states[-1].broadcast(9) is states[-4].adapter, "the earliest that is still there"


def test_a_message_comes_back_to_the_bit_and_in_order() -> None:
    sent, received = adapter(1.0), adapter(2.0)
    back = decode(encode(sent), received)
    assert list(back.tensors()) == list(sent.tensors())
    assert all(torch.equal(tensor, sent.tensors()[key]) for key, tensor in back.tensors().items())
    assert back.scale == 0.5
    half = decode(encode(sent, a=False), received)
    assert torch.equal(half.sites["layer.10"].a, received.sites["layer.10"].a)
    assert torch.equal(half.sites["layer.10"].b, sent.sites["layer.10"].b)
    assert len(encode(sent, a=False)) < len(encode(sent))


def test_a_stack_member_is_encoded_as_itself() -> None:
    whole = Adapter.from_tensors({k: torch.stack([t, 2 * t]) for k, t in adapter().tensors().items()}, 0.5)
    assert encode(whole.select(0)) == encode(adapter())


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other sites"])
def test_messages_that_do_not_fit_are_refused(damage: str) -> None:
    message = encode(adapter())
    if damage == "truncated":
        message = message[:-8]
    elif damage == "foreign":
        message = b"\x80\x04K\x01."
    else:
        message = encode(Adapter({"elsewhere": Factors(torch.ones(2, 5), torch.ones(4, 2))}, scale=0.5))
    with pytest.raises(AdapterError):
        decode(message, adapter())
