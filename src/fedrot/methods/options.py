"""Options of methods: typed and bounded where they are declared, checked where a method is made."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Protocol, Union, cast, get_args, get_origin, get_type_hints

from fedrot.errors import ConfigError, nearest

type_names: dict[object, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class Constraint(Protocol):
    """What `Annotated[type, constraint]` adds to a type."""

    @property
    def expected(self) -> str:
        """The values accepted, in words."""
        ...

    def accepts(self, value: object) -> bool:
        """Whether `value` is one of them."""
        ...


@dataclass(frozen=True)
class Between:
    """A number in the closed interval from `low` to `high`; `above=True` excludes `low` itself."""

    low: float
    high: float = math.inf
    above: bool = False

    @property
    def expected(self) -> str:
        """The interval, in words."""
        if math.isinf(self.high):
            return f"a number {'>' if self.above else '>='} {self.low:g}"
        return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"

    def accepts(self, value: object) -> bool:
        """Whether `value` is a number in the interval; NaN never is."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (
            (self.low < value if self.above else self.low <= value)
            and value <= self.high
            and math.isfinite(value)
        )


@dataclass(frozen=True)
class Stepwise:
    """A number, or `[[round, number], ...]`: piecewise constant from each round on; the first is 1."""

    values: Between

    @property
    def expected(self) -> str:
        """The form, in words."""
        return f"{self.values.expected}, or a schedule [[1, value], [round, value], ...] with rising rounds"

    def accepts(self, value: object) -> bool:
        """Whether `value` is a number in the interval or a well-formed schedule of them."""
        if not isinstance(value, list | tuple):
            return self.values.accepts(value)
        steps = [cast("Sequence[object]", step) for step in cast("Sequence[object]", value) if _is_pair(step)]
        rounds = [step[0] for step in steps if isinstance(step[0], int) and not isinstance(step[0], bool)]
        return (
            0 < len(cast("Sequence[object]", value)) == len(rounds)
            and rounds[0] == 1
            and all(early < late for early, late in pairwise(rounds))
            and all(self.values.accepts(step[1]) for step in steps)
        )


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(cast("Sequence[object]", value)) == 2


Schedule = float | Sequence[Sequence[float]]
"""A number, or a piecewise constant schedule by round (`Stepwise`)."""


def at(schedule: Schedule, round: int) -> float:
    """The value of `schedule` in `round` (1-based).

    >>> at([[1, 0.0], [10, 0.5]], 9), at([[1, 0.0], [10, 0.5]], 10), at(0.3, 4)
    (0.0, 0.5, 0.3)
    """
    if isinstance(schedule, int | float):
        return float(schedule)
    return float([value for start, value in schedule if start <= round][-1])


def expected(hint: object) -> str:
    """The values that an annotation accepts, in words, for messages and listings."""
    if get_origin(hint) is Annotated:
        return " and ".join(cast(Constraint, c).expected for c in get_args(hint)[1:])
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(expected(part) for part in get_args(hint))
    return type_names[hint]


def accepts(hint: object, value: object) -> bool:
    """Whether `value` fits an annotation: bool, int, float, str, Literal, a union of them, or Annotated."""
    if get_origin(hint) is Annotated:
        base, *constraints = get_args(hint)
        whole = base is not int or accepts(int, value)
        return whole and all(cast(Constraint, c).accepts(value) for c in constraints)
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return any(accepts(part, value) for part in get_args(hint))
    if expected(hint) == "a number":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return expected(hint) == type_names.get(type(value))


def option_hints(cls: type) -> dict[str, object]:
    """The options of a method class and their annotations, in order."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def check_options(options: object) -> None:
    """Refuse a value that its field's annotation does not accept.

    Raises:
        ConfigError: naming `method.<option>`, the value, what was expected, and the nearest choice.
    """
    for name, hint in option_hints(type(options)).items():
        value = getattr(options, name)
        if not accepts(hint, value):
            choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
            remedy = f"; {nearest(value, choices)}" if choices and isinstance(value, str) else ""
            raise ConfigError(f"method.{name} = {value!r}: expected {expected(hint)}{remedy}")
