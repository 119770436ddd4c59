"""The demo as a user starts it: wall time, peak memory, final accuracy and what it has to beat, for several seeds.

python benchmarks/demo.py [--seeds 0,1,2]
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

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.toml"


def one(seed: int, folder: Path) -> dict[str, Any]:
    """Run the demo in a process of its own, whose peak memory the system reports when it ends."""
    out = folder / f"seed-{seed}"
    command = [sys.executable, "-m", "fedrot", "run", str(RECIPE), "--out", str(out), "--set", f"seed={seed}"]
    start = time.perf_counter()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, command)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"the demo ended with status {status}")
    summary = json.loads((out / "summary.json").read_text())
    probe, final = summary["probe"], summary["final"]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
        "final_test_accuracy": final["accuracy"],
        "floor_accuracy": probe["accuracy"],
        "central_probe_accuracy": probe["central"]["accuracy"],
        "points_above_floor": round(100 * (final["accuracy"] - probe["accuracy"]), 1),
        "points_above_central_probe": round(100 * (final["accuracy"] - probe["central"]["accuracy"]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=RESULTS / "demo.json")
    arguments = parser.parse_args()
    start = environment(torch.device("cpu"), "transformers", "peft", "datasets")
    with tempfile.TemporaryDirectory() as name:
        cases = [one(int(seed), Path(name)) for seed in arguments.seeds.split(",")]
    report = {"benchmark": "demo", **start, "recipe": "recipes/demo.toml", "cases": cases}
    write(arguments.out, report)


if __name__ == "__main__":
    main()
