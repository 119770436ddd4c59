"""The table of what secure aggregation costs, from the JSON file that its benchmark wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "secure_aggregation.json"


def secure_aggregation() -> str:
    """One row for each case, and what it was measured on."""
    if not RESULTS.exists():
        return "*Not measured yet.*\n"
    found = json.loads(RESULTS.read_text("utf-8"))
    header = [
        *("", "one client", "server", "server, a tenth dropped out", "bytes up, one client", "in the clear"),
        *("bytes down", "largest error", "its bound"),
    ]
    lines = [header, ["---"] * len(header), *(row(case, figures) for case, figures in found["cases"].items())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if name != "torch")
    return (
        f"{table}\n\nSeconds of one round, all steps together, on one thread; medians of {found['repeats']}. "
        f"{found['device']}, {found['cpus']} processors, load {found['load_average']} from other work; {versions}. "
        "32 bits, `secure_range = 8`, weights from 1 to 1,000; bytes down without the adapter.\n"
    )


def row(case: str, figures: dict[str, Any]) -> list[str]:
    """Its cells."""
    return [
        case,
        f"{figures['client_seconds']:.3f} s",
        f"{figures['server_seconds']:.3f} s",
        f"{figures['server_seconds_dropped']:.3f} s",
        f"{figures['bytes_up']:,.0f}",
        f"{figures['plain_bytes_up']:,.0f}",
        f"{figures['bytes_down']:,.0f}",
        f"{figures['error']:.1e}",
        f"{figures['error_bound']:.1e}",
    ]
