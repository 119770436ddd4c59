"""How fast whole adapters align, against the published per-site loop and against looping over clients.

    python benchmarks/alignment.py [--threads 2] [--repeats 5] [--device cpu] [--out FILE]

One client's whole adapter for four models' shapes, ranks 4, 16 and 64, softened along the chord (strength 0.5) and
hard (strength 1); and fifty clients at once. Every case times, on the same float32 factors:

- `stacked`: `align_adapter` on all clients at once;
- `client_loop`, where there are several: `align_adapter` on one client after the other;
- `published_loop`: for each client and site the correlation, its SVD with the determinant fix, below strength 1 a
  second SVD to soften, and the products;
- `floor`: one copy of the factors, the least that any alignment must read and write. Where `stacked` is a
  small multiple of it, memory bandwidth and not arithmetic bounds what stacking can gain.

All keep every client's result until the end, as a round does. Repeats alternate between them, so that a
busy machine slows them alike; medians and minima are reported, and the processor time of all threads, which
other work disturbs less. Cases of more than 300 MB are repeated twice at most, and their `published_loop` is
run once, without a warm-up; `repeats` of a case says how often each was timed.

Both results are compared with the published computation in float64: the largest deviation at any site, relative
to the largest entry of the factor there; of the last client where there are several. On an accelerator sites of
one shape lie in one storage, as training leaves them; those of the reference do not.
On cores shared with other work set OMP_WAIT_POLICY=passive, or the threads spin on each other's barriers
and the figures mean little; the JSON records the policy and the load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from environment import RESULTS, environment, write
from torch import Tensor

from fedrot.core import Adapter, Factors, align_adapter, generator
from fedrot.core.alike import batched, copied

SEED = 11
LARGE = 300  # megabytes

LLAMA = {"q": (4096, 4096), "v": (4096, 1024)}
LLAMA_ALL = LLAMA | {
    "k": (4096, 1024),
    "o": (4096, 4096),
    "gate": (4096, 14336),
    "up": (4096, 14336),
    "down": (14336, 4096),
}
SHAPES: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {  # layers, (d_in, d_out)
    "MiniLM, q and v": (6, {"q": (384, 384), "v": (384, 384)}),
    "RoBERTa-large, q and v": (24, {"q": (1024, 1024), "v": (1024, 1024)}),
    "Llama-3-8B, q and v": (32, LLAMA),
    "Llama-3-8B, all linear layers": (32, LLAMA_ALL),
}


@dataclass(frozen=True)
class Case:
    """Adapters to draw, and the strengths to align them with."""

    shape: str
    rank: int
    clients: int = 1
    strengths: tuple[float, ...] = (0.5, 1.0)

    def title(self, strength: float) -> str:
        """As tables name it."""
        clients = f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{self.shape}, rank {self.rank}, {clients}, {'hard' if strength == 1 else f'chordal {strength:g}'}"


CASES = (
    *(Case(shape, rank) for shape in SHAPES for rank in (4, 16, 64)),
    Case("MiniLM, q and v", 4, 50, (0.5,)),
    Case("RoBERTa-large, q and v", 4, 50, (0.5,)),
    Case("Llama-3-8B, q and v", 16, 50, (0.5,)),
)


def draw(case: Case, device: torch.device) -> tuple[Adapter, Adapter]:
    """Stacked clients that drifted by 30% from a reference."""
    layers, widths = SHAPES[case.shape]
    noise = generator(SEED, f"{case.shape}, rank {case.rank}, {case.clients}", device=device)
    reference: dict[str, Factors] = {}
    trained: dict[str, Factors] = {}
    for layer in range(layers):
        for name, (d_in, d_out) in widths.items():
            a = torch.randn(case.rank, d_in, generator=noise, device=device)
            b = torch.randn(d_out, case.rank, generator=noise, device=device)
            drift = [torch.randn(case.clients, *t.shape, generator=noise, device=device) for t in (a, b)]
            reference[f"{layer}.{name}"] = Factors(a, b)
            trained[f"{layer}.{name}"] = Factors(drift[0].mul_(0.3).add_(a), drift[1].mul_(0.3).add_(b))
    return Adapter(copied(trained) if batched(device) else trained), Adapter(reference)


def nearest_rotation(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.ones(len(matrix), device=matrix.device, dtype=matrix.dtype)
    sign[-1] = torch.linalg.det(u @ vh)
    return (u * sign) @ vh


def published_site(f: Factors, ref: Factors, strength: float) -> Factors:
    """As the published code does, with the determinant fix that the paper asks for, in the factors' precision."""
    turn = nearest_rotation(f.a @ ref.a.T)
    if strength < 1:
        eye = torch.eye(f.rank, device=turn.device, dtype=turn.dtype)
        turn = nearest_rotation((1 - strength) * eye + strength * turn)
    return Factors(turn.T @ f.a, f.b @ turn)


def published(client: Adapter, reference: Adapter, strength: float) -> dict[str, Factors]:
    return {site: published_site(f, reference.sites[site], strength) for site, f in client.sites.items()}


def deviations(client: Adapter, reference: Adapter, strength: float, whole: Adapter) -> dict[str, float]:
    """From the published computation in float64: of `whole`, and of the published computation as it is."""
    worst = {"stacked": 0.0, "published_loop": 0.0}
    for site, f in client.sites.items():
        ref = reference.sites[site]
        exact = published_site(
            Factors(f.a.double(), f.b.double()), Factors(ref.a.double(), ref.b.double()), strength
        )
        found = {"stacked": whole.sites[site], "published_loop": published_site(f, ref, strength)}
        for name, made in found.items():
            for mine, right in ((made.a, exact.a), (made.b, exact.b)):
                gap = float((mine.double() - right).abs().max() / right.abs().max())
                worst[name] = max(worst[name], gap)
    return worst


def measure(case: Case, device: torch.device, repeats: int) -> Iterator[dict[str, object]]:
    """One result for each strength."""
    clients, reference = draw(case, device)
    each = [clients.select(i) for i in range(case.clients)]
    for strength in case.strengths:
        whole, rotation = align_adapter(clients, reference, "a", strength)
        assert not rotation.degenerate.any()
        worst = deviations(each[-1], reference, strength, whole.select(-1))
        assert worst["stacked"] < 1e-4, f"{case}: differs from the published computation by {worst}"
        del whole
        yield result(case, clients, strength, worst, contest(clients, each, reference, strength, repeats))


Times = dict[str, list[tuple[float, float]]]


def contest(
    clients: Adapter, each: list[Adapter], reference: Adapter, strength: float, repeats: int
) -> Times:
    """Seconds by the clock and of processors, repeat by repeat."""
    rivals: dict[str, Callable[[], object]] = {
        "stacked": lambda: align_adapter(clients, reference, "a", strength),
        "client_loop": lambda: [align_adapter(client, reference, "a", strength) for client in each],
        "published_loop": lambda: [published(client, reference, strength) for client in each],
        "floor": lambda: clients.map(torch.clone),
    }
    if len(each) == 1:  # the same as stacked
        del rivals["client_loop"]
    large = megabytes(clients) > LARGE
    times: Times = {name: [] for name in rivals}
    for repeat in range((min(repeats, 2) if large else repeats) + 1):
        for name, run in rivals.items():
            once = large and name == "published_loop"
            if once and repeat != 1:
                continue
            start, cpu_start = time.perf_counter(), time.process_time()
            made = run()
            if clients.sites[next(iter(clients.sites))].a.is_cuda:
                torch.cuda.synchronize()
            if repeat:  # the first is a warm-up
                times[name].append((time.perf_counter() - start, time.process_time() - cpu_start))
            del made
    return times


def megabytes(clients: Adapter) -> float:
    return sum(t.nbytes for t in clients.tensors().values()) / 1e6


def result(
    case: Case, clients: Adapter, strength: float, worst: dict[str, float], times: Times
) -> dict[str, object]:
    middle = {name: statistics.median(seconds for seconds, _ in found) for name, found in times.items()}
    busy = {name: statistics.median(cpu for _, cpu in found) for name, found in times.items()}
    loops = [name for name in ("client_loop", "published_loop") if name in times]
    return {
        "case": case.title(strength),
        "sites": len(clients.sites),
        "rank": case.rank,
        "clients": case.clients,
        "strength": strength,
        "megabytes": round(megabytes(clients), 1),
        "repeats": {name: len(found) for name, found in times.items()},
        "median_seconds": middle,
        "minimum_seconds": {name: min(seconds for seconds, _ in found) for name, found in times.items()},
        "median_cpu_seconds": busy,
        **{f"times_faster_than_{name}": round(middle[name] / middle["stacked"], 2) for name in loops},
        **{f"cpu_times_less_than_{name}": round(busy[name] / busy["stacked"], 2) for name in loops},
        "stacked_over_floor": round(middle["stacked"] / middle["floor"], 2),
        "largest_deviation_from_float64": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    report = {
        "benchmark": "alignment",
        **environment(device),
        "seed": SEED,
        "anchor": "a",
        "cases": [],
    }
    for case in CASES:
        for found in measure(case, device, arguments.repeats):
            report["cases"].append(found)
            print(json.dumps(found, indent=2), flush=True)
    write(arguments.out or RESULTS / f"alignment-{device.type}.json", report)


if __name__ == "__main__":
    main()
