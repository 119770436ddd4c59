"""Secret sharing: enough shares give the secret, fewer could be of any."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrot.errors import SecureAggregationError
from fedrot.secagg import shamir
from tests.secagg.rounds import seeded


@settings(deadline=None, max_examples=60)
@given(
    st.binary(min_size=32, max_size=32),
    st.integers(1, 12),
    st.integers(0, 6),
    st.randoms(use_true_random=False),
)
def test_any_threshold_of_the_shares_gives_the_secret(
    secret: bytes, threshold: int, more: int, draw: object
) -> None:
    points = list(range(1, threshold + more + 1))
    shares = dict(zip(points, shamir.split(secret, threshold, points, seeded(3)), strict=True))
    chosen = draw.sample(points, threshold)  # type: ignore[attr-defined]
    assert shamir.combine({point: shares[point] for point in chosen}) == secret


def test_the_largest_secret_survives() -> None:
    shares = shamir.split(b"\xff" * 32, 2, [1, 2], seeded(1))
    assert shamir.combine({1: shares[0], 2: shares[1]}) == b"\xff" * 32


@pytest.mark.parametrize("other", [bytes(32), b"\x01" * 32, b"\xff" * 32])
def test_one_share_too_few_could_be_of_any_secret(other: bytes) -> None:
    points = [1, 2, 3, 4]
    shares = shamir.split(b"\x07" * 32, 4, points, seeded(2))
    known = dict(zip(points[:3], shares[:3], strict=True))
    # For each other secret there is a fourth share which, with the three known ones, gives exactly that secret.
    factors = shamir.at_zero(points)
    rest = int.from_bytes(other, "big") - sum(
        factor * int.from_bytes(share, "big") for factor, share in zip(factors, known.values(), strict=False)
    )
    last = rest * pow(factors[3], -1, shamir.PRIME) % shamir.PRIME
    assert shamir.combine({**known, 4: last.to_bytes(33, "big")}) == other


def test_shares_of_one_secret_look_uniform() -> None:
    draw = seeded(4)
    tops = [shamir.split(bytes(32), 3, [1, 2, 3], draw)[0][1] for _ in range(512)]
    counts = [sum(top >> 4 == nibble for top in tops) for nibble in range(16)]
    assert sum((count - 32) ** 2 / 32 for count in counts) < 37.7  # chi-square, 15 degrees of freedom, 0.1 %


def test_wrong_shares_are_refused_or_give_another_secret() -> None:
    shares = shamir.split(b"\x07" * 32, 2, [1, 2], seeded(2))
    with pytest.raises(SecureAggregationError, match="33 bytes"):
        shamir.combine({1: shares[0][1:], 2: shares[1]})
    with pytest.raises(SecureAggregationError, match="33 bytes"):
        shamir.combine({1: b"\xff" * 33, 2: shares[1]})
    with pytest.raises(SecureAggregationError, match="distinct"):
        shamir.at_zero([1, 1])
    with pytest.raises(SecureAggregationError, match="expected 32"):
        shamir.split(b"short", 1, [1], seeded(0))
    with pytest.raises(SecureAggregationError, match="threshold = 3"):
        shamir.split(bytes(32), 3, [1, 2], seeded(0))
    with pytest.raises(SecureAggregationError, match="distinct points"):
        shamir.split(bytes(32), 1, [0, 1], seeded(0))
