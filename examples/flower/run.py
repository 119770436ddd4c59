"""Runs the Flower apps in this folder in one process: no network, no Ray. `python run.py [classify] [llm]`.

On a federation, or in Flower's own simulation, the same apps run by `flwr run FOLDER`.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import tomllib
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.common.config import flatten_dict

from fedrot.engines.flower.grid import InProcessGrid

FOLDER = Path(__file__).parent
CLIENTS = 3


def run(name: str, output: Path) -> None:
    """What `flwr run` does: find both apps in the description, and let the server app drive the clients."""
    described = tomllib.loads((FOLDER / name / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    sys.path.insert(0, str(FOLDER / name))
    apps = {}
    for kind, place in described["components"].items():
        module, _, attribute = place.partition(":")
        apps[kind] = getattr(importlib.import_module(module), attribute)
    config = flatten_dict(described["config"])
    config |= {key: str(output / config[key]) for key in ("adapter-path", "save-path") if key in config}
    nodes = [{"partition-id": index, "num-partitions": CLIENTS} for index in range(CLIENTS)]
    grid = InProcessGrid(apps["clientapp"], nodes, config)
    apps["serverapp"](grid, Context(1, 0, {}, RecordDict(), config))
    if grid.raised:
        raise SystemExit(f"{name}: a client failed: {next(iter(grid.raised.values()))!r}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for chosen in sys.argv[1:] or ["classify", "llm"]:
            run(chosen, Path(folder) / chosen)
            print(
                f"{chosen}: wrote",
                *sorted(str(p.relative_to(folder)) for p in Path(folder, chosen).rglob("*.json")),
            )
