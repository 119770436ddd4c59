"""The evaluators there are, from the code, and what generation costs, from the JSON that its benchmark wrote."""

from __future__ import annotations

import json
from pathlib import Path

from fedrot.evaluation.catalogue import EVALUATORS

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
PAIRS = {"no stop strings": ("plain", "fedrot"), "a stop string": ("plain, stop string", "fedrot, stop string")}


def evaluators() -> str:
    """One line for each."""
    lines = ["| task | measures | figures | needs |", "|---|---|---|---|"]
    for evaluator in EVALUATORS.values():
        figures = ", ".join(f"`{name}`" for name in evaluator.metrics)
        lines.append(f"| `{evaluator.name}` | {evaluator.summary} | {figures} | {evaluator.needs} |")
    return "\n".join(lines)


def generation() -> str:
    """Tokens a second beside plain transformers, for every device that was measured."""
    lines = ["| device | | transformers | fedrot | ratio |", "|---|---|---|---|---|"]
    notes: list[str] = []
    for file in sorted(RESULTS.glob("generation-*.json")):
        found = json.loads(file.read_text("utf-8"))
        speed = found["tokens_per_second"]
        for name, (plain, ours) in PAIRS.items():
            ratio = found["of_plain"][ours]
            lines.append(f"| {found['device']} | {name} | {speed[plain]:.1f} | {speed[ours]:.1f} | {ratio:.2f} |")
        clock = "processor" if found["clock"] == "process_time" else "wall"
        notes.append(
            f"{found['device']}: {found['model']}, {found['precision']}, {found['prompts']} prompts in batches of "
            f"{found['batch']}, up to {found['max_new_tokens']} new tokens, {found['threads']} threads, medians of "
            f"{found['repeats']} of {clock} time, load {found['load_average']} from other work; transformers "
            f"{found['versions']['transformers']}, torch {found['versions']['torch']}."
        )
    return "\n".join(lines) + "\n\n" + "\n".join(notes)
