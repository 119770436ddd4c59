"""The experiments of the documentation: one comparison for each sweep file in `recipes/experiments`.

    python benchmarks/experiments.py few-rounds frames --jobs 2
    python benchmarks/experiments.py --list

A comparison lies in `runs/experiments/NAME` and goes on where it stopped. What the tables of the documentation need is
copied to `benchmarks/results/experiments/NAME.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fedrot
from fedrot.comparison.reading import split_recipe

ROOT = Path(__file__).parent.parent
SWEEPS = {
    path.stem: path
    for path in sorted((ROOT / "recipes" / "experiments").glob("*.toml"))
    if split_recipe(path)[1]
}
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
KEPT = (
    "accuracy",
    "best_accuracy",
    "local_accuracy",
    "macro_f1",
    "perplexity",
    "best_perplexity",
    "token_accuracy",
    "eval_loss",
    "error",
    "error_unaligned",
    "bytes",
    "seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*SWEEPS, []], metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    if asked.list or not asked.names:
        print("\n".join(SWEEPS))
    for name in asked.names:
        out = Path("runs") / "experiments" / name
        found = fedrot.compare(SWEEPS[name], out=out, resume=(out / "plan.json").exists(), jobs=asked.jobs)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(shortened(found.results), indent=1) + "\n", "utf-8")
        print((out / "table.md").read_text("utf-8"))


def shortened(results: dict[str, Any]) -> dict[str, Any]:
    """Without the curves by round and the intervals of metrics that no table shows."""
    arms = []
    for arm in results["arms"]:
        kept = {key: value for key, value in arm.items() if key not in ("by_round", "keys")}
        for part in ("values", "mean", "difference"):
            kept[part] = {metric: value for metric, value in arm[part].items() if metric in KEPT}
        arms.append(kept)
    return {**results, "arms": arms}


if __name__ == "__main__":
    main()
