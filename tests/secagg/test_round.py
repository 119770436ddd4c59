"""The whole protocol: the mean is right, whoever is lost at whatever stage, down to the threshold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrot.errors import SecureAggregationError
from fedrot.secagg import least_threshold
from tests.secagg.rounds import STAGES, expect_mean, play, session, vectors, weights

UNSIGNED = [stage for stage in STAGES if stage != "consents"]


def contributing(clients: tuple[int, ...], lost: dict[str, set[int]]) -> set[int]:
    """Whose vectors arrive: those not lost before or while sending them."""
    return set(clients) - lost.get("keys", set()) - lost.get("shares", set()) - lost.get("vectors", set())


@pytest.mark.parametrize("bits", [32, 64])
def test_the_mean_is_the_weighted_mean_to_quantisation(bits: int) -> None:
    rules = session(bits=bits)
    values, shares = vectors(rules), weights(rules)
    aggregate = play(rules, values, shares)
    expect_mean(aggregate, values, shares, rules.clients)
    assert aggregate.error < (2e-8 if bits == 32 else 1e-17)


def test_extreme_values_and_weights_do_not_overflow() -> None:
    rules = session(clients=range(7), threshold=4, max_weight=1000, clip=3.7)
    for sign in (-1, 1):
        values = {c: v * 0 + v.dtype.type(sign * 3.69999) for c, v in vectors(rules).items()}
        shares = dict.fromkeys(rules.clients, 1000)
        expect_mean(play(rules, values, shares), values, shares, rules.clients)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("stage", UNSIGNED)
def test_clients_lost_at_any_stage_do_not_change_the_mean_of_the_others(stage: str, number: int) -> None:
    rules = session(clients=(2, 3, 5, 7, 11), threshold=3)
    values, shares, lost = vectors(rules), weights(rules), {stage: {2, 7} if number == 2 else {5}}
    aggregate = play(rules, values, shares, lost)
    expect_mean(aggregate, values, shares, contributing(rules.clients, lost))


def test_one_client_lost_at_every_stage_leaves_the_threshold() -> None:
    rules = session(clients=range(9), threshold=5)
    values, shares = vectors(rules), weights(rules)
    lost = {stage: {2 * place} for place, stage in enumerate(UNSIGNED)}
    expect_mean(play(rules, values, shares, lost), values, shares, contributing(rules.clients, lost))


@pytest.mark.parametrize("stage", STAGES)
def test_signed_rounds_lose_clients_too(stage: str) -> None:
    rules = session(clients=range(6), threshold=5, signed=True)
    values, shares, lost = vectors(rules), weights(rules), {stage: {1}}
    expect_mean(play(rules, values, shares, lost), values, shares, contributing(rules.clients, lost))


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_the_round_is_given_up(stage: str) -> None:
    signed = stage == "consents"
    rules = session(clients=range(6), threshold=5, signed=signed)
    with pytest.raises(SecureAggregationError, match=r"4 of 6 clients are left .* threshold of 5"):
        play(rules, vectors(rules), weights(rules), {stage: {0, 3}})


def test_a_round_of_two_needs_both() -> None:
    rules = session(clients=(4, 9), threshold=2)
    values, shares = vectors(rules), weights(rules)
    expect_mean(play(rules, values, shares), values, shares, rules.clients)
    with pytest.raises(SecureAggregationError, match="1 of 2 clients"):
        play(rules, values, shares, {"vectors": {9}})


@st.composite
def rounds(draw: st.DrawFn) -> tuple[int, int, bool, dict[str, set[int]]]:
    number = draw(st.integers(2, 9))
    signed = draw(st.booleans())
    threshold = draw(st.integers(least_threshold(number, signed), number))
    stages = STAGES if signed else UNSIGNED
    fates = draw(st.lists(st.sampled_from([*stages, "", "", "", ""]), min_size=number, max_size=number))
    return number, threshold, signed, {s: {c for c, fate in enumerate(fates) if fate == s} for s in stages}


@settings(deadline=None, max_examples=60)
@given(rounds(), st.sampled_from([32, 64]), st.integers(0, 10**6))
def test_any_round_gives_the_mean_of_those_who_sent_a_vector_or_fails(
    drawn: tuple[int, int, bool, dict[str, set[int]]], bits: int, seed: int
) -> None:
    number, threshold, signed, lost = drawn
    rules = session(clients=range(number), threshold=threshold, bits=bits, signed=signed)
    values, shares = vectors(rules, seed), weights(rules, seed)
    finished = number - sum(len(clients) for clients in lost.values())
    if finished < threshold:
        with pytest.raises(SecureAggregationError, match="threshold"):
            play(rules, values, shares, lost, seed=seed)
        return
    aggregate = play(rules, values, shares, lost, seed=seed)
    expect_mean(aggregate, values, shares, contributing(rules.clients, lost))
