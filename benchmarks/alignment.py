"""How fast whole adapters align, against the published per-site loop and against looping over clients.

    python benchmarks/alignment.py [--threads 2] [--repeats 5] [--device cpu] [--out FILE]

Every case times, on the same float32 factors:

- `stacked`: `align_adapter` on all clients at once;
- `client_loop`: `align_adapter` on one client after the other;
- `published_loop`: for each client and site the correlation, its SVD with the determinant fix, a second SVD
  to soften, and the products;
- `floor`: one copy of the factors, the least that any alignment must read and write. Where `stacked` is a
  small multiple of it, memory bandwidth and not arithmetic bounds what stacking can gain.

All keep every client's result until the end, as a round does. Repeats alternate between the four, so that a
busy machine slows them alike; medians and minima are reported, and the processor time of all threads, which
other work disturbs less. With one client `client_loop` is the same computation as `stacked`: how far that
ratio is from one is the noise of the run. Takes under two minutes on two idle cores.
On cores shared with other work set OMP_WAIT_POLICY=passive, or the threads spin on each other's barriers
and the figures mean little; the JSON records the policy and the load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import RESULTS, environment, write
from torch import Tensor

from fedrot.core import Adapter, Factors, align_adapter, generator

STRENGTH = 0.5
SEED = 11

LLAMA = {"q": (4096, 4096), "v": (4096, 1024)}
LLAMA_ALL = LLAMA | {
    "k": (4096, 1024),
    "o": (4096, 4096),
    "gate": (4096, 14336),
    "up": (4096, 14336),
    "down": (14336, 4096),
}
CASES: dict[str, tuple[int, dict[str, tuple[int, int]], int, int]] = {  # layers, (d_in, d_out), rank, clients
    "Llama-3-8B, all linear layers, rank 16, 1 client": (32, LLAMA_ALL, 16, 1),
    "MiniLM, q and v, rank 4, 50 clients": (6, {"q": (384, 384), "v": (384, 384)}, 4, 50),
    "RoBERTa-large, q and v, rank 4, 50 clients": (24, {"q": (1024, 1024), "v": (1024, 1024)}, 4, 50),
    "Llama-3-8B, q and v, rank 16, 50 clients": (32, LLAMA, 16, 50),
}


def draw(case: str, device: torch.device) -> tuple[Adapter, Adapter]:
    """Stacked clients that drifted by 30% from a reference."""
    layers, widths, rank, clients = CASES[case]
    noise = generator(SEED, case, device=device)
    reference: dict[str, Factors] = {}
    trained: dict[str, Factors] = {}
    for layer in range(layers):
        for name, (d_in, d_out) in widths.items():
            a = torch.randn(rank, d_in, generator=noise, device=device)
            b = torch.randn(d_out, rank, generator=noise, device=device)
            drift = [torch.randn(clients, *t.shape, generator=noise, device=device) for t in (a, b)]
            reference[f"{layer}.{name}"] = Factors(a, b)
            trained[f"{layer}.{name}"] = Factors(drift[0].mul_(0.3).add_(a), drift[1].mul_(0.3).add_(b))
    return Adapter(trained), Adapter(reference)


def nearest_rotation(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.ones(len(matrix), device=matrix.device)
    sign[-1] = torch.linalg.det(u @ vh)
    return (u * sign) @ vh


def published(client: Adapter, reference: Adapter) -> list[tuple[Tensor, Tensor]]:
    """Site by site, as the published code does, with the determinant fix that the paper asks for."""
    found: list[tuple[Tensor, Tensor]] = []
    for site, f in client.sites.items():
        hard = nearest_rotation(f.a @ reference.sites[site].a.T)
        soft = nearest_rotation((1 - STRENGTH) * torch.eye(f.rank, device=hard.device) + STRENGTH * hard)
        found.append((soft.T @ f.a, f.b @ soft))
    return found


def measure(case: str, device: torch.device, repeats: int) -> dict[str, object]:
    clients, reference = draw(case, device)
    each = [clients.select(i) for i in range(*clients.batch)]
    rivals: dict[str, Callable[[], object]] = {
        "stacked": lambda: align_adapter(clients, reference, "a", STRENGTH),
        "client_loop": lambda: [align_adapter(client, reference, "a", STRENGTH) for client in each],
        "published_loop": lambda: [published(client, reference) for client in each],
        "floor": lambda: clients.map(torch.clone),
    }
    whole, rotation = align_adapter(clients, reference, "a", STRENGTH)
    expected = published(each[-1], reference)
    worst = max(
        float((f.a[-1] - a).abs().max() / a.abs().max())
        for f, (a, _) in zip(whole.sites.values(), expected, strict=True)
    )
    assert worst < 1e-4, f"{case}: differs from the published computation by {worst}"
    assert not rotation.degenerate.any()
    del whole, expected
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    cpu: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(repeats + 1):
        for name, run in rivals.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            result = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
            del result
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    layers, widths, rank, count = CASES[case]
    return {
        "case": case,
        "sites": layers * len(widths),
        "rank": rank,
        "clients": count,
        "megabytes": round(sum(t.nbytes for t in clients.tensors().values()) / 1e6, 1),
        "median_seconds": middle,
        "minimum_seconds": {name: min(times) for name, times in seconds.items()},
        "median_cpu_seconds": (busy := {name: statistics.median(times) for name, times in cpu.items()}),
        "cpu_times_less_than_client_loop": round(busy["client_loop"] / busy["stacked"], 2),
        "cpu_times_less_than_published_loop": round(busy["published_loop"] / busy["stacked"], 2),
        "times_faster_than_client_loop": round(middle["client_loop"] / middle["stacked"], 2),
        "times_faster_than_published_loop": round(middle["published_loop"] / middle["stacked"], 2),
        "client_loop_times_faster_than_published_loop": round(
            middle["published_loop"] / middle["client_loop"], 2
        ),
        "stacked_over_floor": round(middle["stacked"] / middle["floor"], 2),
        "largest_relative_difference_from_published": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "alignment.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    report = {
        "benchmark": "alignment",
        **environment(device),
        "seed": SEED,
        "strength": STRENGTH,
        "anchor": "a",
        "repeats": arguments.repeats,
        "cases": [],
    }
    for case in CASES:
        result = measure(case, device, arguments.repeats)
        report["cases"].append(result)
        print(json.dumps(result, indent=2), flush=True)
    write(arguments.out, report)


if __name__ == "__main__":
    main()
