"""ROUGE F1 (Lin 2004): how many words, pairs of words, or words in order two texts share.

Words are as in the package rouge-score without its stemmer: runs of the ASCII letters and digits of the lower-cased
text. Other scripts have no words under this rule, and such references are refused by the evaluator.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NAMES = ("rouge1", "rouge2", "rougeL")


def rouge(predicted: str, expected: str) -> dict[str, float]:
    """F1 of words, of pairs of neighbours, and of the longest common subsequence of words.

    >>> rouge("the cat sat", "The cat sat down.")["rougeL"]
    0.8571428571428571
    """
    ours, theirs = words(predicted), words(expected)
    common = longest_common_subsequence(ours, theirs)
    return {
        "rouge1": _overlap(ours, theirs, 1),
        "rouge2": _overlap(ours, theirs, 2),
        "rougeL": f1(common, len(ours), len(theirs)),
    }


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return re.findall(r"[a-z0-9]+", text.lower())


def f1(common: int, predicted: int, expected: int) -> float:
    """Harmonic mean of `common / predicted` and `common / expected`; 0 where nothing is common.

    >>> f1(2, 4, 2)
    0.6666666666666666
    """
    if common == 0:
        return 0.0
    precision, recall = common / predicted, common / expected
    return 2 * precision * recall / (precision + recall)


def _overlap(ours: Sequence[str], theirs: Sequence[str], n: int) -> float:
    mine, other = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (ours, theirs))
    return f1((mine & other).total(), mine.total(), other.total())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence that both contain in order, not necessarily in one piece.

    One row of the usual table is the bits of one integer, a zero for every step up (Hyyrö 2004): `len(b)` operations on
    integers of `len(a)` bits.

    >>> longest_common_subsequence("abcbdab", "bdcaba")
    4
    """
    where: dict[str, int] = {}
    for place, word in enumerate(a):
        where[word] = where.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & where.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()
