"""What the server's step costs by the number of clients: seconds, memory and how both grow, for every method.

    python benchmarks/server.py [--sizes 10,100,1000,10000] [--only fedit] [--only fedrot] [--repeats 3] [--device auto]

Factors of MiniLM's last two layers, query and value, rank 4: four sites, 49 kB a client in float32, of clients that
drifted from a shared reference. Each method and number of clients has a process of its own. Uploads lie in memory, as
in a simulation, and are not counted: memory is what the peak of the process rose by during the step. On a GPU they
lie in its memory, and the peak is that of torch's allocator. `measure` is what the engine reports of a round beside:
the aggregation error of averaging, in float64 or held to its precision.

`averaging` streams uploads of real size, Llama-3-8B with query and value at rank 16, through `fedit`: eight different
ones in turn, loaded when they are asked for. Its gigabytes a second are what `docs/scale.md` reckons with.

Growth is the exponent of a power law, by least squares in logarithms over all sizes but the smallest, whose step is
mostly overhead; for memory only over sizes where it rose by more than a megabyte.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from environment import choose, clock, environment, results, write

from fedrot.core import Adapter, Factors, adapter_aggregation_error, generator
from fedrot.methods import MethodState, Update, build, methods
from fedrot.methods.base import Loading

SEED = 11
SIZES = (10, 100, 1_000, 10_000)
WIDTH, RANK, SITES, DRIFT = 384, 4, 4, 0.3
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in methods()},
    "fedit, refit": ("fedit", {"refit": 1}),
    "fedrot, consensus": ("fedrot", {"reference": "consensus"}),
    "fedrot, guard": ("fedrot", {"guard": "server"}),
}
MEASURE = "measure"


def federation(count: int, device: torch.device) -> tuple[Adapter, list[Adapter]]:
    """A reference, and clients that drifted from it; they are views of one tensor a factor.

    The numbers are the same on every device: a CPU draws them.
    """
    noise = generator(SEED, "server", count)
    shapes = {f"site.{i}": ((RANK, WIDTH), (WIDTH, RANK)) for i in range(SITES)}
    sites = {
        name: Factors(*(torch.randn(shape, generator=noise).to(device) for shape in pair))
        for name, pair in shapes.items()
    }
    reference = Adapter(sites)
    stacks = {
        name: Factors(
            *(
                torch.randn(count, *t.shape, generator=noise).to(device).mul_(DRIFT).add_(t)
                for t in (f.a, f.b)
            )
        )
        for name, f in sites.items()
    }
    clients = [
        Adapter({name: Factors(stack.a[i], stack.b[i]) for name, stack in stacks.items()})
        for i in range(count)
    ]
    return reference, clients


def step(variant: str, reference: Adapter, clients: Sequence[Adapter]) -> Callable[[], object]:
    """What is timed."""
    if variant == MEASURE:
        weights = [1.0] * len(clients)
        return lambda: adapter_aggregation_error(clients, weights)
    name, options = VARIANTS[variant]
    method = build(name, options, SEED)
    updates = [Update(number, adapter, 1.0) for number, adapter in enumerate(clients)]
    return lambda: method.aggregate(updates, reference, MethodState(), 2)


def turns(adapters: Sequence[Adapter], count: int) -> Sequence[Update]:
    """So many updates, of which only a few are different."""
    return Loading(lambda index: Update(index, adapters[index % len(adapters)], 1.0), count)


def averaging(device: torch.device, count: int = 64) -> dict[str, Any]:
    """Gigabytes of uploads averaged a second, in this process, and the memory it takes in uploads."""
    noise = generator(SEED, "averaging")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise).to(device)

    def adapter() -> Adapter:
        def site(d_out: int) -> Factors:
            return Factors(normal(16, 4096), normal(d_out, 16))

        return Adapter({f"{i}.{name}": site(d) for i in range(32) for name, d in (("q", 4096), ("v", 1024))})

    adapters = [adapter() for _ in range(8)]
    method, bytes_each = build("fedit", {}, SEED), sum(t.nbytes for t in adapters[0].tensors().values())
    step("fedit", *federation(3, device))()
    before, start = forget_peak(device), clock(device)
    method.aggregate(turns(adapters, count), adapters[0], MethodState(), 2)
    seconds = clock(device) - start
    return {
        "uploads": count,
        "upload_mb": round(bytes_each / 1e6, 1),
        "seconds": round(seconds, 3),
        "gigabytes_a_second": round(count * bytes_each / 1e9 / seconds, 2),
        "memory_in_uploads": round((peak(device) - before) * 1e6 / bytes_each, 2),
    }


def held(kind: str) -> float:
    """Megabytes of this process: `VmRSS` now, `VmHWM` the most since `forget_peak`."""
    status = Path("/proc/self/status").read_text("utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(kind)) * 1024 / 1e6


def forget_peak(device: torch.device) -> float:
    """Start measuring the peak anew (of a process on Linux, or of a GPU's allocator); the megabytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    return held("VmRSS")


def peak(device: torch.device) -> float:
    """The most megabytes held since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else held("VmHWM")


def one(variant: str, count: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """One method with so many clients, in this process."""
    warm = step(variant, *federation(3, device))
    warm()
    reference, clients = federation(count, device)
    run = step(variant, reference, clients)
    before, times = forget_peak(device), list[float]()
    while len(times) < repeats and sum(times) < 20:
        start = clock(device)
        run()
        times.append(clock(device) - start)
    return {
        "clients": count,
        "seconds": statistics.median(times),
        "repeats": len(times),
        "memory_mb": round(peak(device) - before, 1),
    }


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of the least-squares line through the logarithms; None for fewer than two points."""
    if len(points) < 2:
        return None
    xs, ys = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    return round(slope, 2)


def growth(cases: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Exponents of seconds and of memory."""
    later = cases[1:] if len(cases) > 2 else cases
    return {
        "seconds": exponent([(case["clients"], case["seconds"]) for case in later]),
        "memory": exponent([(c["clients"], c["memory_mb"]) for c in later if c["memory_mb"] > 1]),
    }


def in_process(*arguments: str) -> dict[str, Any]:
    """What this script prints with those arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [MEASURE, *VARIANTS]
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=list(SIZES))
    parser.add_argument("--only", action="append", choices=every, help="a method; may be repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto is the first GPU if there is one")
    parser.add_argument("--averaging", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "CLIENTS"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = choose(options.device)
    if options.averaging:
        print(json.dumps(averaging(device)))
        return
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]), options.repeats, device)))
        return
    common = ("--threads", str(options.threads), "--device", str(device))
    report: dict[str, Any] = {
        "benchmark": "server",
        **environment(device),
        "seed": SEED,
        "shape": {
            "sites": SITES,
            "width": WIDTH,
            "rank": RANK,
            "bytes_a_client": SITES * 2 * WIDTH * RANK * 4,
        },
        "averaging": in_process("--averaging", *common),
        "methods": {},
    }
    for variant in options.only or every:
        cases: list[dict[str, Any]] = []
        for count in options.sizes:
            cases.append(in_process("--one", variant, str(count), "--repeats", str(options.repeats), *common))
        report["methods"][variant] = {"cases": cases, "growth": growth(cases)}
        print(variant, json.dumps(report["methods"][variant]), flush=True)
    write(options.out or results("server", device), report)


if __name__ == "__main__":
    main()
