"""What the server sees of one client looks like noise, and the bytes of messages are checked."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedrot.errors import SecureAggregationError
from fedrot.secagg import (
    Advert,
    Inbox,
    Masked,
    Reveal,
    Roster,
    Sealed,
    Session,
    Survivors,
    decode,
    encode,
    threshold_of,
)
from fedrot.secagg.masks import add_mask
from fedrot.secagg.messages import Consent, Message
from tests.secagg.rounds import play, session, vectors, weights

FLOOR = 1e-3
"""With fixed seeds a p-value below it means that something is wrong, not that the draw was unlucky."""


def masked_of(client: int, seen: list[bytes], rules: Session) -> np.ndarray:
    for data in seen:
        if data[5] == 4 and (message := decode(data, Masked, rules)).client == client:
            return message.vector
    raise AssertionError(client)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("constant", [0.0, 4.0])
def test_a_masked_vector_is_uniform_whatever_is_in_it(bits: int, constant: float) -> None:
    rules, seen = session(length=40_000, bits=bits, clip=4.0), list[bytes]()
    values = {client: np.full(rules.length, constant, np.float32) for client in rules.clients}
    play(rules, values, weights(rules), seen=seen)
    vector = masked_of(2, seen, rules)
    # Highest and lowest bytes, and how values follow one another.
    for shift in (0, bits - 8):
        byte = (vector >> np.array(shift, vector.dtype)) & np.array(255, vector.dtype)
        assert stats.chisquare(np.bincount(byte.astype(np.int64), minlength=256)).pvalue > FLOOR
    top = (vector >> np.array(bits - 4, vector.dtype)).astype(np.int64)
    assert stats.chisquare(np.bincount(16 * top[:-1] + top[1:], minlength=256)).pvalue > FLOOR


def test_masked_vectors_of_the_same_client_in_two_rounds_are_unrelated() -> None:
    first, second, seen, later = session(length=20_000), session(length=20_000, round=2), [], []
    play(first, vectors(first), weights(first), seen=seen)
    play(second, vectors(first), weights(first), seen=later)
    difference = masked_of(1, seen, first) - masked_of(1, later, second)
    assert stats.chisquare(np.bincount(difference >> 24, minlength=256)).pvalue > FLOOR


def test_the_same_keys_in_another_round_give_another_mask() -> None:
    first, second, seen, later = session(), session(round=2), [], []
    play(first, vectors(first), weights(first), seed=7, seen=seen)
    play(second, vectors(first), weights(first), seed=7, seen=later)
    adverts = [decode(seen[0], Advert, first), decode(later[0], Advert, second)]
    assert adverts[0].mask_key == adverts[1].mask_key
    assert (masked_of(0, seen, first) != masked_of(0, later, second)).any()


def test_a_mask_added_and_taken_away_leaves_nothing() -> None:
    for dtype, size in (("<u4", 300_001), ("<u8", 150_001), ("<u4", 1)):
        total = np.arange(size, dtype=dtype)
        add_mask(total, b"k" * 32, 1)
        assert (total != np.arange(size, dtype=dtype)).any()
        add_mask(total, b"k" * 32, -1)
        np.testing.assert_array_equal(total, np.arange(size, dtype=dtype))


def test_masks_do_not_repeat_from_block_to_block() -> None:
    total = np.zeros(1 << 19, "<u4")
    add_mask(total, b"k" * 32, 1)
    assert len(np.unique(total.reshape(2, -1)[:, :1000].ravel())) > 1990


RULES = session()
D = RULES.digest
MESSAGES: list[Message] = [
    Advert(D, 1, b"m" * 32, b"s" * 32, b"c" * 32),
    Roster(D, (Advert(D, 1, b"m" * 32, b"s" * 32, b"c" * 32), Advert(D, 2, b"n" * 32, b"t" * 32, b"d" * 32))),
    Sealed(D, 2, {0: b"x" * 94, 3: b"y" * 94}),
    Inbox(D, 2, {0: b"x" * 94, 3: b"y" * 94}),
    Masked(D, 4, np.arange(19, dtype="<u4")),
    Survivors(D, (0, 2, 3), {0: b"z" * 64}),
    Consent(D, 3, b"z" * 64),
    Reveal(D, 3, {0: b"a" * 33}, {4: b"b" * 33}),
]
NAMES = [type(message).__name__ for message in MESSAGES]


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_a_message_is_the_same_after_a_journey_as_bytes(message: Message) -> None:
    data = encode(message)
    assert encode(decode(data, type(message), RULES)) == data


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_every_message_cut_short_or_too_long_is_refused(message: Message) -> None:
    data = encode(message)
    for size in range(len(data)):
        with pytest.raises(SecureAggregationError):
            decode(data[:size], type(message), RULES)
    with pytest.raises(SecureAggregationError, match="1 bytes too long"):
        decode(data + b"\0", type(message), RULES)


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_a_message_of_another_round_kind_or_version_is_refused(message: Message) -> None:
    data, kind = encode(message), type(message)
    with pytest.raises(SecureAggregationError, match="not of round 2"):
        decode(data, kind, session(round=2))
    with pytest.raises(SecureAggregationError, match="expected"):
        decode(data, Consent if kind is Advert else Advert, RULES)
    with pytest.raises(SecureAggregationError, match="kind 200"):
        decode(data[:5] + bytes([200]) + data[6:], kind, RULES)
    with pytest.raises(SecureAggregationError, match="of this version"):
        decode(b"FRSA\x01" + data[5:], kind, RULES)


def test_strangers_repetitions_and_inflated_counts_are_refused() -> None:
    sealed = encode(Sealed(D, 2, {0: b"x" * 94, 3: b"y" * 94}))
    body = 38
    with pytest.raises(SecureAggregationError, match="names client 9"):
        decode(sealed[:body] + (9).to_bytes(4, "little") + sealed[body + 4 :], Sealed, RULES)
    count = body + 4
    with pytest.raises(SecureAggregationError, match="announces 4294967295 entries for 5 clients"):
        decode(sealed[:count] + b"\xff" * 4 + sealed[count + 4 :], Sealed, RULES)
    first = count + 4
    with pytest.raises(SecureAggregationError, match="names a client twice"):
        decode(sealed[:first] + (3).to_bytes(4, "little") + sealed[first + 4 :], Sealed, RULES)


@pytest.mark.parametrize(
    ("share", "clients", "signed", "expected"),
    [
        (0.67, 100, False, 67),
        (0.67, 3, False, 3),
        (0.5, 10, False, 6),
        (0.67, 10, True, 7),
        (1.0, 4, True, 4),
        (0.07, 100, False, 51),
        (0.6, 5, False, 3),
        (0.9, 2, False, 2),
    ],
)
def test_the_threshold_is_the_share_rounded_up_and_never_unsafe(
    share: float, clients: int, signed: bool, expected: int
) -> None:
    assert threshold_of(share, clients, signed) == expected
