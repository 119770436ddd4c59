"""A synthetic run directory that follows the schema, realistic enough to look at; all from fixed seeds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

SITES = [
    f"bert.encoder.layer.{layer}.{part}"
    for layer in (3, 4, 5)
    for part in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    )
]
CONFIG = """seed = 11

[model]
path = "google/bert-mini"

[lora]
rank = 4
alpha = 8.0

[task]
name = "classify"
data = "tweets"

[partition]
kind = "dirichlet"
alpha = 0.5

[method]
name = "{method}"
{options}
[federation]
clients = {clients}
rounds = {rounds}
"""


def make_records(
    rounds: int = 15, clients: int = 10, gain: float = -0.06, rotate: bool = True
) -> list[dict[str, Any]]:
    """Rounds whose aggregation error differs from plain averaging's by about `gain` from round 2 on."""
    draw = random.Random(7)
    records: list[dict[str, Any]] = []
    for round_ in range(1, rounds + 1):
        turning = rotate and round_ > 1
        plain = 0.62 * math.exp(-round_ / 9) + 0.09 + draw.uniform(-0.02, 0.02)
        ours = plain * (1 + gain + draw.uniform(-0.02, 0.02)) if turning else plain
        size = {
            site: (0.9 * math.exp(-round_ / 6) + 0.08) * (0.6 + 0.09 * i + draw.uniform(0, 0.25))
            if turning
            else 0.0
            for i, site in enumerate(SITES)
        }
        records.append(
            {
                "round": round_,
                "loss": 0.42 + 0.66 * math.exp(-round_ / 4) + draw.uniform(-0.012, 0.012),
                "accuracy": 0.752 - 0.31 * math.exp(-round_ / 3) + draw.uniform(-0.008, 0.008),
                "eval_loss": 0.58 + 0.5 * math.exp(-round_ / 4) + draw.uniform(-0.01, 0.01),
                "macro_f1": 0.70 - 0.38 * math.exp(-round_ / 3.4) + draw.uniform(-0.01, 0.01),
                "validation_accuracy": 0.744 - 0.30 * math.exp(-round_ / 3) + draw.uniform(-0.014, 0.014),
                "validation_loss": 0.60 + 0.5 * math.exp(-round_ / 4) + draw.uniform(-0.01, 0.01),
                "aggregation_error": ours * 1.7,
                "aggregation_error_relative": ours,
                "aggregation_error_unaligned": plain * 1.7,
                "aggregation_error_relative_unaligned": plain,
                "rotation": sum(size.values()) / len(size),
                "rotation_by_site": size,
                "rotation_angle": max(size.values()),
                "degenerate": len(SITES) * clients if rotate and round_ == 1 else 0,
                "flips": 3 if turning and round_ == 4 else 0,
                "drift": 0.4,
                "bytes_up": 402_432 * clients,
                "bytes_down": 402_432 * clients,
                "seconds": 3.1 + draw.uniform(0, 0.4),
                "clients": clients,
                "rejected": 0,
                "client_ids": list(range(clients)),
                "rejected_clients": {},
            }
        )
    return records


def make_summary(records: list[dict[str, Any]], clients: int = 10, method: str = "fedrot") -> dict[str, Any]:
    draw = random.Random(3)
    counts = [[int(draw.gammavariate(0.5, 220)) + 1 for _ in range(3)] for _ in range(clients)]
    scored = [r for r in records if r.get("validation_accuracy") is not None]
    return {
        "fedrot": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "device": "cpu",
        "seed": 11,
        "method": method,
        "task": "tweets",
        "model": "google/bert-mini",
        "labels": ["negative", "neutral", "positive"],
        "rounds": len(records),
        "clients": clients,
        "final": {"accuracy": records[-1].get("accuracy")},
        "best_validation_round": max(scored, key=lambda r: r["validation_accuracy"])["round"]
        if scored
        else None,
        "probe": {"accuracy": 0.691, "macro_f1": 0.64, "examples": 6000},
        "partition": {"counts": counts},
        "bytes": {"up": sum(r["bytes_up"] for r in records), "down": sum(r["bytes_down"] for r in records)},
        "seconds": 49.0,
        "examples": {"train": sum(map(sum, counts)), "validation": 400, "test": 1500},
        "notes": ["12 texts without a label were left out."],
        "adapter_parameters": 100_608,
        "head_parameters": 771,
        "parameters": 11_271_171,
    }


def make_run(
    directory: Path,
    *,
    rounds: int = 15,
    clients: int = 10,
    gain: float = -0.06,
    method: str = "fedrot",
    finished: bool = True,
    edit: Callable[[list[dict[str, Any]], dict[str, Any]], None] | None = None,
) -> Path:
    """Write a run directory; `edit` may change the records and the summary before they are written."""
    directory.mkdir(parents=True, exist_ok=True)
    rotate = method == "fedrot"
    records = make_records(rounds, clients, gain, rotate)
    summary = make_summary(records, clients, method)
    if edit is not None:
        edit(records, summary)
    options = 'strength = 0.5\nanchor = "alternate"\npath = "chordal"\n' if rotate else ""
    config = CONFIG.format(method=method, options=options, clients=clients, rounds=rounds)
    (directory / "config.toml").write_text(config, "utf-8")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(lines, "utf-8")
    if finished:
        (directory / "summary.json").write_text(json.dumps(summary), "utf-8")
    return directory
