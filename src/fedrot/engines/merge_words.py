"""What the command line says to `merge`, and what it says of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedrot.config import apply_override
from fedrot.engines.merge import MergeResult
from fedrot.errors import ConfigError


def method_options(overrides: Sequence[str]) -> dict[str, object]:
    """The options that `--set method.key=value` strings give.

    Raises:
        ConfigError: another section, or `method.name`, which has a flag of its own.
    """
    data: dict[str, Any] = {}
    for override in overrides:
        apply_override(data, override)
    if unlike := [key for key in data if key != "method" or not isinstance(data[key], dict)]:
        raise ConfigError(f"--set {unlike[0]}...: merging takes options of the method only, method.KEY=VALUE")
    options = data.get("method", {})
    if "name" in options:
        raise ConfigError(f"--set method.name={options['name']}: choose the method with --method")
    return options


def numbers(text: str) -> list[float]:
    """The numbers of `"1,2,..."`.

    Raises:
        ConfigError: one is not a number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text!r}: expected numbers with commas, such as 1,2,1") from None


def report_lines(result: MergeResult) -> list[str]:
    """What was measured, in words."""
    low, high = result.ranks
    ranks = f"rank {high}" if low == high else f"ranks {low} to {high}"
    best = "best of that rank" if low == high else "best of those ranks"
    errors = {"this result": result.error, "plain averaging": result.error_plain, best: result.error_best}
    balanced = ", each balanced first" if result.balanced else ""
    lines = [
        f"merged {len(result.weights)} adapters with {result.method}{balanced}: {ranks}, {result.bytes / 1e6:.3f} MB",
        "relative error against the mean of their products:",
        *(f"  {name:20}{error:.4f}" for name, error in errors.items()),
    ]
    if "rotation" in result.rotation:
        counted = {name: int(result.rotation.get(name, 0)) for name in ("degenerate", "flips")}
        lines.append(
            f"alignment: mean size {result.rotation['rotation']:.3f}, largest angle "
            f"{result.rotation['rotation_angle']:.3f} rad; {counted['degenerate']} degenerate, {counted['flips']} flips"
        )
    if result.directory is not None:
        lines.append(f"adapter: {result.directory}")
    return lines
