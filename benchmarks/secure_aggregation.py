"""What secure aggregation costs: seconds of each client and of the server, bytes, and the error against the mean.

    python benchmarks/secure_aggregation.py [--repeats 3] [--out FILE]

Every case plays whole rounds in one process, with every message encoded and decoded. Seconds are of the step alone:
of a client the sum over its steps (the median over clients, and over repeats), of the server the sum over all it
does, and of the server where a tenth of the clients dropped out after sharing, the case in which it must make the
masks that they left. One thread. The mean is compared with the weighted mean in float64.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from environment import RESULTS, environment, write

from fedrot.secagg import (
    Advert,
    Aggregate,
    FixedPoint,
    Inbox,
    Masked,
    Reveal,
    Roster,
    Sealed,
    SecAggClient,
    SecAggServer,
    Session,
    Survivors,
    decode,
    encode,
    threshold_of,
)

T = TypeVar("T")
SEED = 11
MAX_WEIGHT = 1000
CASES: dict[str, tuple[int, int]] = {  # clients, values
    "demo adapter (MiniLM, last two blocks, rank 4), 10 clients": (10, 56_451),
    "demo adapter (MiniLM, last two blocks, rank 4), 50 clients": (50, 56_451),
    "1,000,000 values, 10 clients": (10, 1_000_000),
    "1,000,000 values, 50 clients": (50, 1_000_000),
    "1,000,000 values, 100 clients": (100, 1_000_000),
}


class Clock:
    """Seconds by party, and bytes by direction."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bytes: defaultdict[str, int] = defaultdict(int)

    def time(self, who: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[who] += time.perf_counter() - start
        return result


def play(session: Session, vectors: np.ndarray, weights: list[int], dropped: int, clock: Clock) -> Aggregate:
    """One round in which the last `dropped` clients leave after they have shared."""
    clients = [clock.time(f"client {c}", lambda c=c: SecAggClient(session, c)) for c in session.clients]
    server = SecAggServer(session)
    stays = len(clients) - dropped

    def up(client: int, kind: type, step: Callable[[], Any]) -> None:
        data = clock.time(f"client {client}", lambda: encode(step()))
        if client == 0:
            clock.bytes["up"] += len(data)
        clock.time("server", lambda: server.receive(decode(data, kind, session)))

    def down(data: bytes, client: int) -> bytes:
        if client == 0:
            clock.bytes["down"] += len(data)
        return data

    for c, client in enumerate(clients):
        up(c, Advert, client.advertise)
    roster = clock.time("server", lambda: encode(server.close_keys()))
    for c, client in enumerate(clients):
        up(c, Sealed, lambda client=client, c=c: client.share(decode(down(roster, c), Roster, session)))
    inboxes = clock.time("server", lambda: {c: encode(box) for c, box in server.close_shares().items()})
    for c, client in enumerate(clients[:stays]):
        data = down(inboxes[c], c)
        up(
            *(c, Masked),
            lambda client=client, c=c, data=data: client.mask(
                decode(data, Inbox, session), vectors[c], weights[c]
            ),
        )
    told = clock.time("server", lambda: encode(server.close_vectors()))
    for c, client in enumerate(clients[:stays]):
        up(c, Reveal, lambda client=client, c=c: client.reveal(decode(down(told, c), Survivors, session)))
    return clock.time("server", server.close_reveals)


def measure(clients: int, length: int, repeats: int) -> dict[str, Any]:
    """The figures of one case."""
    draw = np.random.default_rng(SEED)
    vectors = draw.standard_normal((clients, length), np.float32) * np.float32(0.1)
    weights = [int(w) for w in draw.integers(1, MAX_WEIGHT + 1, clients)]
    numbers = FixedPoint(clients, 8.0, MAX_WEIGHT, 32)
    threshold, dropped = threshold_of(0.67, clients, False), clients // 10
    found: defaultdict[str, list[float]] = defaultdict(list)
    for repeat in range(repeats):
        for gone in (0, dropped):
            session = Session(
                "benchmark", repeat + 1, tuple(range(clients)), threshold, length, numbers, os.urandom(16)
            )
            clock = Clock()
            got = play(session, vectors, weights, gone, clock)
            kept = clients - gone
            shares = np.array(weights[:kept], np.float64) / sum(weights[:kept])
            off = float(np.abs(got.mean - shares @ vectors[:kept].astype(np.float64)).max())
            if off > got.error * (1 + 1e-6):
                raise AssertionError(f"the mean is off by {off}, the bound is {got.error}")
            suffix = "_dropped" if gone else ""
            found["server_seconds" + suffix].append(clock.seconds["server"])
            if not gone:
                each = [clock.seconds[f"client {c}"] for c in range(clients)]
                found["client_seconds"].append(statistics.median(each))
                found["error"].append(off)
                found["error_bound"].append(got.error)
                found["bytes_up"].append(clock.bytes["up"])
                found["bytes_down"].append(clock.bytes["down"])
    return {
        "clients": clients,
        "values": length,
        "threshold": threshold,
        "dropped": dropped,
        "plain_bytes_up": 4 * length,
        **{key: statistics.median(values) for key, values in found.items()},
    }


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "secure_aggregation.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases: dict[str, Any] = {}
    for case, (clients, length) in CASES.items():
        cases[case] = measure(clients, length, asked.repeats)
        print(case, {key: round(value, 10) for key, value in cases[case].items()}, flush=True)
    report = environment(torch.device("cpu"), "numpy", "cryptography")
    write(asked.out, {**report, "seed": SEED, "repeats": asked.repeats, "cases": cases})


if __name__ == "__main__":
    main()
