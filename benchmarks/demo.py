"""The demos as a user starts them: wall time, peak memory, what they reach, for several seeds.

    python benchmarks/demo.py [--seeds 0,1,2] [--recipe demo|headlines]

`demo` writes `results/demo.json`, with the accuracies it has to beat; `headlines`, the generative demo,
`results/headlines.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write

RECIPES = Path(__file__).parent.parent / "recipes"


def one(recipe: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Run the demo in a process of its own, whose peak memory the system reports when it ends."""
    out = folder / f"seed-{seed}"
    command = [sys.executable, "-m", "fedrot", "run", str(recipe), "--out", str(out), "--set", f"seed={seed}"]
    start = time.perf_counter()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, command)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"the demo ended with status {status}")
    summary = json.loads((out / "summary.json").read_text())
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
        **(scores(summary) if summary["probe"] else first_and_last(out)),
    }


def scores(summary: dict[str, Any]) -> dict[str, Any]:
    """Final accuracy beside the floor and the central probe."""
    probe, final = summary["probe"], summary["final"]
    return {
        "final_test_accuracy": final["accuracy"],
        "floor_accuracy": probe["accuracy"],
        "central_probe_accuracy": probe["central"]["accuracy"],
        "points_above_floor": round(100 * (final["accuracy"] - probe["accuracy"]), 1),
        "points_above_central_probe": round(100 * (final["accuracy"] - probe["central"]["accuracy"]), 1),
    }


def first_and_last(out: Path) -> dict[str, Any]:
    """Test perplexity after every round, and what was said before and after."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    said = json.loads((out / "samples.json").read_text())["texts"]
    return {
        "test_perplexity": [round(record["perplexity"], 2) for record in records],
        "samples": [{key: text[key] for key in ("expected", "before", "after")} for text in said],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipe", choices=("demo", "headlines"), default="demo")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = RECIPES / f"{arguments.recipe}.toml"
    start = environment(torch.device("cpu"), "transformers", "peft", "datasets")
    with tempfile.TemporaryDirectory() as name:
        cases = [one(recipe, int(seed), Path(name)) for seed in arguments.seeds.split(",")]
    report = {"benchmark": "demo", **start, "recipe": f"recipes/{recipe.name}", "cases": cases}
    write(arguments.out or RESULTS / f"{arguments.recipe}.json", report)


if __name__ == "__main__":
    main()
