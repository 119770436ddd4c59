"""What a figure was measured on, and where it is written; shared by all benchmarks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def environment(device: torch.device, *packages: str) -> dict[str, Any]:
    """Versions, device, threads and load at this moment."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {package: importlib.metadata.version(package) for package in packages},
        "device": f"{device.type}: {name}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }


def choose(name: str) -> torch.device:
    """`auto` is the first GPU if there is one; a GPU that is asked for and not there ends the script."""
    there = torch.cuda.is_available()
    device = torch.device(("cuda" if there else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not there:
        raise SystemExit(f"--device {name}: no GPU can be used here; expected auto or cpu")
    return device


def results(stem: str, device: torch.device) -> Path:
    """Where a benchmark's figures lie: `STEM.json` of a CPU, `STEM-cuda.json` of a GPU."""
    return RESULTS / f"{stem}{'' if device.type == 'cpu' else f'-{device.type}'}.json"


def clock(device: torch.device) -> float:
    """Seconds, once a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(f"wrote {path}")
