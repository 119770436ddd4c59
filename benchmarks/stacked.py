"""How many client-steps a second stacked training does, by group size, against one client at a time.

    python benchmarks/stacked.py [--threads 2] [--repeats 3] [--device auto] [--shapes all-minilm-l6-v2,roberta-large]
                                 [--batches 1,4,16] [--blocks 2]

Rank 4, AdamW. On a CPU ten clients of MiniLM, float32, tweets in batches of like length, and also stacks beside each
other, a worker for each thread. On a GPU 32 clients in bfloat16, and also the shapes of RoBERTa-large and Llama-3.2-1B
with random weights, 128 tokens an example; on a CPU these are for asking, best with `--blocks`. Two baselines:
`group_size = 1`, which is the same code, and an ordinary PEFT loop (a PeftModel, torch's own AdamW and clipping, the
same batches). Repeats alternate between the rivals, so that a busy machine slows them alike; medians are reported, and
processor time beside wall time.

Among the rivals is one product of large square matrices: the dense rate. What counts against it are the products of the
base model with batches of one client at a time, forward and back, padding included; attention and the low-rank products
come on top and do not count. Stacks that do not fit in a GPU's memory are named and left out.
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
from environment import RESULTS, choose, clock, environment, write
from subjects import MINILM, SEED, TARGETS, Subject, make
from torch.utils.flop_counter import FlopCounterMode

from fedrot.client import Plan, plan_group, train_group
from fedrot.config import TrainConfig
from fedrot.methods import Trainable
from fedrot.stacked import StackedModel

CLIENTS, SIZES = {"cpu": 10, "cuda": 32}, {"cpu": [1, 2, 5, 10], "cuda": [1, 8, 32]}
BATCHES = {"cpu": [1, 4, 16], "cuda": [1, 4, 16, 64]}
BATCHES_OF_ALL_LINEAR = {"cpu": [4], "cuda": [1, 4, 16, 64]}
LOOP, DENSE = "plain PEFT loop", "dense"
Run = Callable[[], None]


def local_steps(batch: int) -> int:
    """Fewer of large batches, so that every case takes about as long."""
    return max(1, min(4, 8 // batch))


def plans(subject: Subject, train: TrainConfig, size: int) -> list[Plan]:
    rows, lengths = subject.rows, subject.data.lengths
    starts = range(0, len(rows), size)
    groups = [(range(start, min(start + size, len(rows))), rows[start : start + size]) for start in starts]
    return [plan_group(clients, own, train, seed=SEED, round=1, lengths=lengths) for clients, own in groups]


def train_stack(subject: Subject, train: TrainConfig, model: StackedModel, plan: Plan) -> None:
    train_group(model, subject.goal, subject.data, subject.initial, plan, train, Trainable())


def stacked_round(subject: Subject, train: TrainConfig, size: int) -> Run:
    groups = plans(subject, train, size)

    def run() -> None:
        for plan in groups:
            train_stack(subject, train, subject.crew.lead, plan)

    return run


def side_by_side(subject: Subject, train: TrainConfig, size: int) -> Run:
    groups = plans(subject, train, size)

    def run() -> None:
        for _ in subject.crew.map(lambda model, plan, _: train_stack(subject, train, model, plan), groups):
            pass

    return run


def peft_round(subject: Subject, train: TrainConfig) -> Run:
    """The loop most people write: one PeftModel; load the received factors, train, next client."""
    from peft import LoraConfig, get_peft_model

    targets = list(subject.initial.sites)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="SEQ_CLS")
    whole: Any = subject.again()
    model = get_peft_model(whole, lora).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    received = [p.detach().clone() for p in trained]
    groups = plans(subject, train, 1)

    def run() -> None:
        for plan in groups:
            with torch.no_grad():
                for parameter, start in zip(trained, received, strict=True):
                    parameter.copy_(start)
            optimizer = torch.optim.AdamW(trained, lr=train.lr, weight_decay=0.0)
            for rows in plan.rows:
                batch = subject.data.batch(rows.flatten())
                loss = torch.nn.functional.cross_entropy(model(**batch.inputs).logits.float(), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()

    return run


def product(subject: Subject) -> tuple[Run, float]:
    """A product of large square matrices in the model's precision, and its operations."""
    device = subject.base.device
    size, times = (8192, 10) if device.type == "cuda" else (2048, 1)
    one, out = (torch.ones(size, size, dtype=subject.base.dtype, device=device) for _ in range(2))

    def run() -> None:
        for _ in range(times):
            torch.mm(one, one, out=out)

    return run, 2.0 * size**3 * times


def operations(run: Run) -> float:
    """Of the base model's products in a run; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    counted = counter.get_flop_counts()["Global"]
    return float(sum(counted.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm)))


def fits(run: Run) -> bool:
    """Run it; False if a GPU's memory was too small."""
    try:
        run()
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def measure(subject: Subject, batch: int, sizes: list[int], repeats: int) -> dict[str, Any]:
    steps, clients, device = local_steps(batch), len(subject.rows), subject.base.device
    train = subject.config.train.model_copy(update={"local_steps": steps, "batch_size": batch})
    rivals = {f"group_size {size}": stacked_round(subject, train, size) for size in sizes}
    if (workers := len(subject.crew.models)) > 1:
        half = -(-clients // workers)
        rivals[f"{workers} workers, group_size {half}"] = side_by_side(subject, train, half)
    rivals[LOOP] = peft_round(subject, train)
    rivals[DENSE], dense = product(subject)
    work, left_out = operations(rivals["group_size 1"]), list[str]()
    wall: dict[str, list[float]] = {name: [] for name in rivals}
    cpu: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(repeats + 1):
        for name, run in list(rivals.items()):
            start, busy = clock(device), time.process_time()
            if not fits(run):
                left_out.append(name)
                del rivals[name], wall[name], cpu[name]
                subject.crew.unload()
                torch.cuda.empty_cache()
            elif repeat:  # the first is a warm-up
                wall[name].append(clock(device) - start)
                cpu[name].append(time.process_time() - busy)
    subject.crew.unload()
    dense /= statistics.median(wall.pop(DENSE))
    del cpu[DENSE]
    rate = {name: steps * clients / statistics.median(times) for name, times in wall.items()}
    achieved = {name: value * work / (steps * clients) for name, value in rate.items()}
    return {
        "targets": subject.config.lora.target_modules,
        "batch": batch,
        "clients": clients,
        "local_steps": steps,
        "client_steps_per_second": {name: round(value, 2) for name, value in rate.items()},
        "spread_of_wall_seconds": {n: [round(min(t), 3), round(max(t), 3)] for n, t in wall.items()},
        "cpu_seconds_per_client_step": {
            name: round(statistics.median(times) / (steps * clients), 4) for name, times in cpu.items()
        },
        "times_group_size_1": against(rate, "group_size 1"),
        "times_plain_peft_loop": against(rate, LOOP),
        "gflop_per_client_step": round(work / (steps * clients) / 1e9, 3),
        "dense_tflops": round(dense / 1e12, 4),
        "tflops": {name: round(value / 1e12, 4) for name, value in achieved.items()},
        "share_of_dense_rate": {name: round(value / dense, 3) for name, value in achieved.items()},
        "out_of_memory": left_out,
    }


def against(rate: dict[str, float], other: str) -> dict[str, float]:
    """How many times as fast each is; nothing where the other did not fit in memory."""
    return {name: round(value / rate[other], 2) for name, value in rate.items()} if other in rate else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto", help="auto is the first GPU if there is one")
    parser.add_argument("--shapes", type=lambda text: text.split(","), help="all of them on a GPU")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--blocks", type=int, help="of the large shapes; all unless given")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = choose(options.device)
    shapes = options.shapes or (list(TARGETS) if device.type == "cuda" else [MINILM])
    if unknown := [shape for shape in shapes if shape not in TARGETS]:
        parser.error(f"--shapes {unknown[0]}: expected some of {', '.join(TARGETS)}")
    clients = options.clients or CLIENTS[device.type]
    sizes = [size for size in SIZES[device.type] if size <= clients]
    report: dict[str, Any] = {
        "benchmark": "stacked",
        **environment(device, "transformers", "peft"),
        "seed": SEED,
        "precision": "bfloat16" if device.type == "cuda" else "float32",
        "repeats": options.repeats,
        "cases": [],
    }
    for shape in shapes:
        for targets in (TARGETS[shape], "all-linear"):
            blocks = None if shape == MINILM else options.blocks
            subject = make(shape, targets, clients, device.type, blocks)
            usual = (BATCHES_OF_ALL_LINEAR if targets == "all-linear" else BATCHES)[device.type]
            for batch in options.batches or usual:
                result = {
                    "shape": shape,
                    "blocks": blocks,
                    **measure(subject, batch, sizes, options.repeats),
                }
                report["cases"].append(result)
                print(json.dumps(result, indent=2), flush=True)
            del subject
    write(options.out or RESULTS / f"stacked-{device.type}.json", report)


if __name__ == "__main__":
    main()
