"""The evaluators there are, from the code."""

from __future__ import annotations

from fedrot.evaluation.catalogue import EVALUATORS


def evaluators() -> str:
    """One line for each."""
    lines = ["| task | measures | figures | needs |", "|---|---|---|---|"]
    for evaluator in EVALUATORS.values():
        figures = ", ".join(f"`{name}`" for name in evaluator.metrics)
        lines.append(f"| `{evaluator.name}` | {evaluator.summary} | {figures} | {evaluator.needs} |")
    return "\n".join(lines)
