"""The figure that a run is judged by, in words and digits: accuracy unless the run says otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedrot.report.digits import decimal, fraction

_WORDS = {
    "macro_f1": "macro F1",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "pass_at_1": "pass@1",
}

_SIGNED = ("matthews", "pearson", "spearman", "score")
"""Correlations; and what a comparison calls scores of several names, one of which is then a correlation."""


@dataclass(frozen=True)
class Score:
    """A figure's name in records, and which way is better.

    Scores of which more is better are shares or correlations, and differences of them are told in points; others, such
    as perplexity, are plain numbers.
    """

    name: str = "accuracy"
    better: str = "higher"

    @classmethod
    def of(cls, found: Mapping[str, Any] | None) -> Score:
        """From `metric` in summary.json, a cell or results.json; accuracy where there is none, as of older runs."""
        return cls(found["name"], found["better"]) if found else cls()

    @property
    def validation(self) -> str:
        """The same figure of the validation split."""
        return f"validation_{self.name}"

    @property
    def words(self) -> str:
        """As a sentence has it."""
        return _WORDS.get(self.name, self.name.replace("_", " "))

    @property
    def title(self) -> str:
        """At the start of a title."""
        return self.words[:1].upper() + self.words[1:]

    @property
    def share(self) -> bool:
        """Whether it lies between 0 and 1, or -1 and 1."""
        return self.better == "higher"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value it can have."""
        return ((-1.0 if self.name in _SIGNED else 0.0), 1.0) if self.share else (-math.inf, math.inf)

    @property
    def range(self) -> str:
        """For a chart's axis: `, 0 to 1`; nothing where there are no bounds."""
        return f", {self.bounds[0]:g} to {self.bounds[1]:g}".replace("-", "−") if self.share else ""

    @property
    def axis(self) -> str:
        """Of a chart."""
        return f"Test {self.words}{self.range}"

    @property
    def scale(self) -> float:
        """What differences are multiplied by before they are shown."""
        return 100.0 if self.share else 1.0

    @property
    def unit(self) -> str:
        """Of a difference, with a space before it."""
        return " points" if self.share else ""

    def gain(self, value: float) -> float:
        """`value`, turned so that more is better; one that is not finite is worse than any other."""
        if not math.isfinite(value):
            return -math.inf
        return value if self.better == "higher" else -value

    def show(self, value: float | None, digits: int = 3) -> str:
        """The figure; a dash if there is none."""
        return fraction(value, digits) if self.share else decimal(value, digits)

    def change(self, value: float) -> str:
        """A difference, always with its sign: in points, or as it is."""
        digits = 1 if self.share else 3
        text = f"{self.scale * value:+.{digits}f}"
        zero = f"{0:.{digits}f}"
        return zero if text in (f"+{zero}", f"-{zero}") else text.replace("-", "−")


ACCURACY = Score()
"""What runs are judged by that do not say."""
