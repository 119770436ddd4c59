"""What many clients cost the server for an 8B model: arithmetic on the rate that `benchmarks/server.py` measured."""

from __future__ import annotations

import json

from speed_tables import RESULTS, Rows, conditions, markdown  # beside this file; MkDocs puts its folder on the path

BLOCKS = 32
SIDES = {
    "q and v": ((4096, 4096), (4096, 1024)),
    "all linear": (
        *((4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096)),
        *((4096, 14336), (4096, 14336), (14336, 4096)),
    ),
}
"""`(d_in, d_out)` of the adapted layers of one block of Llama-3-8B."""
CLIENTS = (1_000, 100_000, 1_000_000)
WIRE = 10e9 / 8  # bytes a second of a link of 10 Gbit/s


def upload_bytes(layers: str, rank: int) -> int:
    """Of one client's float32 factors."""
    return 4 * BLOCKS * rank * sum(d_in + d_out for d_in, d_out in SIDES[layers])


def many_clients() -> str:
    """One row for each adapter and number of clients that report in a round."""
    path = RESULTS / "server.json"
    if not path.exists():
        return "*Not measured yet.*\n"
    found = json.loads(path.read_text("utf-8"))
    rate = found["averaging"]["gigabytes_a_second"] * 1e9
    rows: Rows = [
        [
            *("adapter", "one upload", "clients a round", "bytes up", "over 10 Gbit/s", "averaging, one core"),
            *("memory, streamed", "memory, all uploads kept"),
        ]
    ]
    for layers in SIDES:
        for rank in (4, 16, 64):
            each = upload_bytes(layers, rank)
            for clients in CLIENTS:
                total = each * clients
                title = [f"{layers}, rank {rank}", size(each)] if clients == CLIENTS[0] else ["", ""]
                rows.append(
                    [
                        *title,
                        f"{clients:,}",
                        size(total),
                        duration(total / WIRE),
                        duration(total / rate),
                        size(3 * each),
                        size(total),
                    ]
                )
    sample = found["averaging"]
    return (
        f"{markdown(rows)}\nAveraging at {sample['gigabytes_a_second']:g} GB/s, measured with {sample['uploads']} uploads "
        f"of {sample['upload_mb']:g} MB; memory then grew by {sample['memory_in_uploads']:g} uploads. {conditions(found)}"
    )


def size(number: float) -> str:
    """Bytes in decimal units."""
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.2g} s"
