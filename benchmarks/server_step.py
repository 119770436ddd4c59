"""What a server step costs: every method, the SVD, the refit, the aggregation error, and memory while streaming.

    python benchmarks/server_step.py [--threads 2] [--repeats 5] [--only svd,refit,error,streaming,methods]
                                     [--device auto] [--tiny] [--out FILE]

Parts, each on synthetic float32 factors of clients that drifted from a shared reference:

- `svd`: FlexLoRA's step at one site of 4096 x 4096, 50 clients, rank 16, against forming the mean product and
  `torch.linalg.svd` of it in float32, and its distance from the truncated SVD in float64. With a drift of 0.3 the
  spectrum falls; clients without anything in common have a flat one, the worst case.
- `refit`: one step from either start against plain averaging of the same clients, sites of 4096 x 4096.
- `error`: the aggregation error of 50 clients at such a site.
- `streaming`: averaging 100, 1,000 and 10,000 uploads that are made when asked for, each in a process of its own:
  seconds, and by how much the peak resident memory grew (on a GPU: that of torch's allocator).
- `methods`: `aggregate` of every method with 10, 100 and 1,000 clients.

Repeats alternate between rivals, so that a busy machine slows them alike; minima and medians are reported. The
dense decompositions run once; they take minutes. On cores shared with other work set OMP_WAIT_POLICY=passive.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import choose, clock, environment, results, write
from torch import Tensor

from fedrot.core import Adapter, Factors, adapter_aggregation_error, generator
from fedrot.methods import MethodState, Update, build, methods
from fedrot.methods.base import Loading

SEED = 11
PARTS = ("svd", "refit", "error", "streaming", "methods")


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    width: int = 4096
    rank: int = 16
    clients: int = 50
    sites: int = 4
    streamed: tuple[int, ...] = (100, 1_000, 10_000)
    streamed_sites: int = 24
    federation: tuple[int, ...] = (10, 100, 1_000)
    federation_width: int = 768


TINY = Size(128, 4, 12, 2, (10, 40), 2, (3, 12), 48)


def draw(
    width: int, rank: int, sites: int, count: int, drift: float | None, device: torch.device
) -> tuple[Adapter, list[Adapter]]:
    """A reference and clients that drifted from it; without a drift, clients that share nothing.

    The numbers are the same on every device: a CPU draws them.
    """
    noise = generator(SEED, f"{width}/{rank}/{sites}/{count}/{drift}")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise).to(device)

    reference = Adapter(
        {f"{site}": Factors(normal(rank, width), normal(width, rank)) for site in range(sites)}
    )
    if drift is None:
        return reference, [reference.map(lambda t: normal(*t.shape)) for _ in range(count)]
    apart = drift
    return reference, [reference.map(lambda t: t + apart * normal(*t.shape)) for _ in range(count)]


def step(
    name: str, clients: Sequence[Adapter], received: Adapter, **options: object
) -> Callable[[], Adapter]:
    """One call of a method's `aggregate`."""
    method = build(name, options, SEED)
    updates = [Update(number, adapter, 1.0) for number, adapter in enumerate(clients)]
    return lambda: method.aggregate(updates, received, MethodState(), 2)[0]


def clocked(
    rivals: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Minimum and median seconds of each; the first, uncounted round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(repeats + 1):
        for name, run in rivals.items():
            start = clock(device)
            result = run()
            if repeat:
                seconds[name].append(clock(device) - start)
            del result
    return {
        name: {"minimum_seconds": min(times), "median_seconds": statistics.median(times)}
        for name, times in seconds.items()
    }


def truncated_svd(product: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(product, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def svd(size: Size, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for spectrum, drift in (("falling", 0.3), ("flat", None)):
        received, clients = draw(size.width, size.rank, 1, size.clients, drift, device)
        run = step("flexlora", clients, received)
        times = clocked({"flexlora": run}, repeats, device)["flexlora"]
        f = run().sites["0"]
        stacked = (
            torch.cat([c.sites["0"].b for c in clients], 1),
            torch.cat([c.sites["0"].a for c in clients]),
        )
        start = clock(device)
        single = truncated_svd(stacked[0] @ stacked[1] / size.clients, size.rank)
        dense = clock(device) - start
        exact = truncated_svd(stacked[0].double() @ stacked[1].double() / size.clients, size.rank)
        results.append(
            {
                "spectrum": spectrum,
                **times,
                "dense_seconds": dense,
                "times_faster": round(dense / times["median_seconds"], 1),
                "distance_from_float64": float((f.b.double() @ f.a.double() - exact).norm() / exact.norm()),
                "distance_of_dense_float32": float((single.double() - exact).norm() / exact.norm()),
            }
        )
        print(json.dumps(results[-1]), flush=True)
    return results


def refit(size: Size, repeats: int, device: torch.device) -> dict[str, Any]:
    received, clients = draw(size.width, size.rank, size.sites, size.clients, 0.3, device)
    rivals = {
        "average": step("fedit", clients, received),
        "reference": step("fedit", clients, received, refit=1),
        "mean": step("fedit", clients, received, refit=1, start="mean"),
    }
    times: dict[str, Any] = dict(clocked(rivals, repeats, device))
    for start in ("reference", "mean"):
        ratio = times[start]["median_seconds"] / times["average"]["median_seconds"]
        times[f"{start}_over_average"] = round(ratio, 2)
    return times


def error(size: Size, repeats: int, device: torch.device) -> dict[str, Any]:
    _, clients = draw(size.width, size.rank, 1, size.clients, 0.3, device)
    weights = [1.0] * size.clients
    found = adapter_aggregation_error(clients, weights)
    exact = adapter_aggregation_error([c.map(Tensor.double) for c in clients], weights)
    rivals = {"error": lambda: adapter_aggregation_error(clients, weights)}
    times = clocked(rivals, repeats, device)["error"]
    off = abs(float(found.absolute / exact.absolute) - 1)
    return {**times, "relative_difference_from_float64": off}


def made(reference: Adapter, count: int) -> Sequence[Update]:
    """Uploads that are made when they are asked for, as if loaded from a disk."""
    return Loading(lambda index: Update(index, reference.map(lambda t: t * (1 + index / count)), 1.0), count)


def peak(device: torch.device) -> float:
    """The most megabytes that this process has held, or torch's allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def stream(size: Size, count: int, device: torch.device) -> dict[str, Any]:
    """In a process of its own: average `count` uploads."""
    received, _ = draw(size.federation_width, size.rank, size.streamed_sites, 0, None, device)
    method = build("fedit", {}, SEED)
    method.aggregate(made(received, 3), received, MethodState(), 2)
    before, start = peak(device), clock(device)
    mean, _ = method.aggregate(made(received, count), received, MethodState(), 2)
    seconds, growth = clock(device) - start, peak(device) - before
    expected = 1 + (count - 1) / (2 * count)
    assert torch.allclose(mean.sites["0"].a, received.sites["0"].a * expected, rtol=1e-4)
    return {
        "clients": count,
        "seconds": seconds,
        "upload_megabytes": round(sum(t.nbytes for t in received.tensors().values()) / 1e6, 2),
        "peak_growth_megabytes": round(growth, 2),
    }


def streaming(size: Size, threads: int, device: torch.device) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for count in size.streamed:
        command = [sys.executable, __file__, "--threads", str(threads), "--device", str(device)]
        command += ["--stream", str(count)]
        command += ["--tiny"] if size is TINY else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout))
        print(json.dumps(results[-1]), flush=True)
    return results


def every_method(size: Size, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for count in size.federation:
        received, clients = draw(size.federation_width, size.rank, size.sites, count, 0.3, device)
        rivals: dict[str, Callable[[], object]] = {n: step(n, clients, received) for n in methods()}
        rivals["fedit, refit"] = step("fedit", clients, received, refit=1)
        rivals["fedrot, consensus"] = step("fedrot", clients, received, reference="consensus")
        rivals["fedrot, guard"] = step("fedrot", clients, received, guard=True)
        for name, times in clocked(rivals, min(repeats, 3), device).items():
            results.append({"method": name, "clients": count, **times})
            print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--device", default="auto", help="auto is the first GPU if there is one")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that the script works")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose(arguments.device)
    size = TINY if arguments.tiny else Size()
    if arguments.stream:
        print(json.dumps(stream(size, arguments.stream, device)))
        return
    runs: dict[str, Callable[[], Any]] = {
        "svd": lambda: svd(size, arguments.repeats, device),
        "refit": lambda: refit(size, arguments.repeats, device),
        "error": lambda: error(size, arguments.repeats, device),
        "streaming": lambda: streaming(size, arguments.threads, device),
        "methods": lambda: every_method(size, arguments.repeats, device),
    }
    chosen = arguments.only.split(",")
    if unknown := [part for part in chosen if part not in runs]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(PARTS)}")
    report: dict[str, Any] = {
        "benchmark": "server_step",
        **environment(device),
        "seed": SEED,
        "repeats": arguments.repeats,
        "size": {name: getattr(size, name) for name in Size.__dataclass_fields__},
    }
    for part in chosen:
        report[part] = runs[part]()
        print(json.dumps({part: report[part]}, indent=2), flush=True)
    write(arguments.out or results("server_step", device), report)


if __name__ == "__main__":
    main()
