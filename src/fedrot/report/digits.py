"""Digits as the reports write them."""

from __future__ import annotations

import math

MISSING = "–"


def fraction(value: float | None, digits: int = 3) -> str:
    """A number in [0, 1] without its leading zero: `.752`, `1.000`; a dash if there is none."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def decimal(value: float | None, digits: int = 4) -> str:
    """Fixed decimals, scientific where they would show zero, `nan` and `inf` as they are, a dash if None."""
    if value is None:
        return MISSING
    if math.isfinite(value) and value != 0 and abs(value) < 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def megabytes(value: float | None) -> str:
    """Bytes in MB (1,000,000 bytes), three significant digits or more."""
    if value is None:
        return MISSING
    mb = value / 1e6
    return f"{mb:,.0f}" if mb >= 100 else f"{mb:.3g}"


def byte_unit(largest: float) -> tuple[float, str]:
    """Size and name of the decimal unit in which `largest` bytes read well."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((size, name) for size, name in units if largest >= size), (1.0, "bytes"))


def data_size(value: float) -> str:
    """Bytes in the unit that suits them: `60.4 MB`."""
    size, unit = byte_unit(value)
    return f"{value / size:.3g} {unit}"
