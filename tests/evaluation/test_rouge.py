"""ROUGE against figures of the package rouge-score 0.1.2, and against its definition."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrot.evaluation.rouge import longest_common_subsequence, rouge

# predicted, expected, and rouge1, rouge2, rougeL F1 as rouge-score 0.1.2 computes them without stemming
REFERENCE = [
    ("the cat sat", "The cat sat down.", 0.8571428571428571, 0.8, 0.8571428571428571),
    ("", "", 0.0, 0.0, 0.0),
    ("a", "a", 1.0, 0.0, 1.0),
    ("x y z", "p q", 0.0, 0.0, 0.0),
    (
        "The quick brown fox jumps over the lazy dog.",
        "A quick brown dog jumps over the lazy fox; it's 3.5 metres!",
        *(0.6956521739130435, 0.380952380952381, 0.5217391304347826),
    ),
    ("police killed the gunman", "the gunman kill police", 0.75, 0.3333333333333333, 0.5),
    ("a a a b", "a b a a c a", 0.8, 0.5, 0.6),
    ("Straße naïve café", "strasse naive cafe", 0.0, 0.0, 0.0),
    ("one_two-three", "one two three", 1.0, 1.0, 1.0),
]


@pytest.mark.parametrize(("predicted", "expected", "one", "two", "longest"), REFERENCE)
def test_scores_are_those_of_the_reference_package(
    predicted: str, expected: str, one: float, two: float, longest: float
) -> None:
    found = rouge(predicted, expected)
    assert found == pytest.approx({"rouge1": one, "rouge2": two, "rougeL": longest}, abs=1e-15)


def slow_common_subsequence(a: list[str], b: list[str]) -> int:
    """By its definition: the longest subsequence of `a` that can be read off `b`."""
    for length in range(len(a), 0, -1):
        for chosen in combinations(a, length):
            rest = iter(b)
            if all(word in rest for word in chosen):
                return length
    return 0


letters = st.lists(st.sampled_from("abc"), max_size=8)


@given(letters, letters)
def test_the_longest_common_subsequence_is_the_longest(a: list[str], b: list[str]) -> None:
    assert longest_common_subsequence(a, b) == slow_common_subsequence(a, b)
