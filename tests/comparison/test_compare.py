"""Whole comparisons on a tiny model: what they compute, keep, refuse and survive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrot.comparison import Comparison, compare
from fedrot.comparison.store import Store, cell_key
from fedrot.config import RunConfig, parse_config
from fedrot.engines.run import run
from fedrot.errors import ConfigError, OutputError

Small = Callable[..., dict[str, Any]]
CLOCK = {"seconds", "training_seconds"}


def arm(found: Comparison, variant: str, **point: Any) -> dict[str, Any]:
    wanted = {key.replace("__", "."): value for key, value in point.items()}
    return next(a for a in found.results["arms"] if a["variant"] == variant and a["point"] == wanted)


def test_cells_are_the_runs_of_fedrot_run(small: Small, tmp_path: Path) -> None:
    recipe = small(lora__layers="last:1", train__cache_frozen=True)
    found = compare(recipe, methods=["fedit", "fedrot"], seeds=[3, 4], out=tmp_path / "c")
    assert found.failed == []
    store = Store(found.directory)
    for variant in ("fedit", "fedrot"):
        for seed in (3, 4):
            alone = parse_config(recipe | {"seed": seed, "method": {"name": variant}})
            result = run(alone, out=tmp_path / f"{variant}-{seed}")
            records = store.metrics(arm(found, variant)["keys"][str(seed)])
            assert [{k: v for k, v in r.items() if k not in CLOCK} for r in records] == [
                {k: v for k, v in r.items() if k not in CLOCK} for r in result.records
            ]
            assert arm(found, variant)["values"]["accuracy"][str(seed)] == result.records[-1]["accuracy"]
    left = {path.name for path in found.directory.iterdir()}
    assert left == {"plan.json", "cells", "results.json", "table.md", "compare.html"}
    assert not list(store.cells.glob("*.run")), "run directories are gone, adapters with them"
    difference = arm(found, "fedrot")["difference"]["accuracy"]
    ours, base = (arm(found, name)["values"]["accuracy"] for name in ("fedrot", "fedit"))
    assert difference["mean"] == pytest.approx(sum(ours[s] - base[s] for s in ours) / 2)
