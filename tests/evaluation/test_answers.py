"""Numbers and texts found in generated answers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrot.evaluation.answers import exact_match, flexible_extract, same_number, strict_match


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18 eggs.\n#### 18", "18"),
        ("####18", "18"),
        ("#### -1,234.50.", "-1234.50"),
        ("#### $18.\n\nQuestion: another?\nAnswer: #### 7", "18"),
        ("#### unknown\n#### 5", "5"),
        ("The answer is 18.", None),
        ("", None),
    ],
)
def test_the_strict_answer_is_the_number_after_the_first_mark(text: str, expected: str | None) -> None:
    assert strict_match(text) == (None if expected is None else Decimal(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20 - 2 = 18 apples.", "18"),
        ("it is 10-5", "5"),  # a subtraction, not minus five
        ("so x = -3", "-3"),
        ("−4", "-4"),
        ("a loss of -$1,018.50 in all.", "-1018.50"),
        ("a loss of $-3", "-3"),
        ("between 3,4", "4"),  # two numbers: no thousands
        ("1,234,567 people", "1234567"),
        ("12,34", "34"),
        ("about .5", "0.5"),
        ("50%", "50"),
        ("version 9.", "9"),
        ("none", None),
    ],
)
def test_the_flexible_answer_is_the_last_number(text: str, expected: str | None) -> None:
    assert flexible_extract(text) == (None if expected is None else Decimal(expected))


@given(st.decimals(-(10**12), 10**12, places=2), st.sampled_from(["{:,}", "{}"]))
def test_every_written_number_is_read_back(value: Decimal, style: str) -> None:
    written = style.format(value)
    assert flexible_extract(f"Thus we get {written}.") == value
    assert strict_match(f"Thus.\n#### {written}") == value


def test_numbers_are_the_same_however_they_are_written() -> None:
    assert same_number(Decimal("42.00"), Decimal(42))
    assert not same_number(Decimal("42.01"), Decimal(42))
    assert not same_number(None, Decimal(0))


def test_texts_match_up_to_case_white_space_and_a_full_stop() -> None:
    assert exact_match(" Not\n entailment. ", "not entailment")
    assert not exact_match("not entailment", "entailment")
