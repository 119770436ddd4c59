"""Answers found in generated text, and when two of them are the same.

Numbers follow the conventions of GSM8K, whose solutions end in `#### 42`. The two ways to find one have the names they
have in lm-evaluation-harness: `strict-match` and `flexible-extract`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

# A sign counts as one only where nothing stands before it that it could subtract from: 10-5 ends in 5, not in -5.
_SIGN = r"(?:(?<![\w.)\]%])[-+−])?"
_CURRENCY = r"(?:[$€£¥]\s?(?P<inner>[-+−]?))?"
# A comma groups thousands only between groups of three digits: 3,4 are two numbers, 1,234 is one.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+"
NUMBER = re.compile(rf"(?P<sign>{_SIGN}){_CURRENCY}(?P<digits>{_DIGITS})")
MARKED = re.compile(rf"####\s*(?=[-+−$€£¥.\d])(?:{NUMBER.pattern})")


def strict_match(text: str) -> Decimal | None:
    """The number right after the first `####` that a number follows, as GSM8K's own solutions end.

    >>> strict_match("3 * 6 = 18\\n#### $1,018.00.")
    Decimal('1018.00')
    >>> strict_match("The answer is 18.") is None
    True
    """
    found = MARKED.search(text)
    return _value(found) if found else None


def flexible_extract(text: str) -> Decimal | None:
    """The last number of the text, wherever it stands. A fraction such as 1/2 ends in its denominator.

    >>> flexible_extract("so 20 - 2 = 18 apples, and that's -$1,018.50 in all.")
    Decimal('-1018.50')
    """
    found = list(NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _value(found: re.Match[str]) -> Decimal:
    value = Decimal(found["digits"].replace(",", ""))
    signs = found["sign"] + (found["inner"] or "")
    return -value if "-" in signs or "−" in signs else value


EXTRACTORS: Mapping[str, Callable[[str], Decimal | None]] = {
    "strict-match": strict_match,
    "flexible-extract": flexible_extract,
}


def same_number(predicted: Decimal | None, expected: Decimal) -> bool:
    """Whether both are one number: 42, 42.0 and +42 are. No number at all is wrong."""
    return predicted is not None and predicted == expected


def normalised(text: str) -> str:
    """Text as it is compared: letter case folded, runs of white space one space, ends and a last full stop cut off.

    >>> normalised("  The   Answer is\\nYes. ")
    'the answer is yes'
    """
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def exact_match(predicted: str, expected: str) -> bool:
    """Whether two texts are the same once normalised."""
    return normalised(predicted) == normalised(expected)
