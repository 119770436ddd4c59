"""A node whose SuperNode stops while it fetches a message. Run as `python -m tests.flower.half_fetched FOLDER`.

It stops there as long as the file `FOLDER/hold` exists, and writes `FOLDER/held`. The SuperNode is this module, too.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fedrot.engines.flower.deploy import node_supervisor, supernode_main
from fedrot.engines.flower.node import load_node


def supernode(hold: Path, arguments: list[str]) -> None:
    from flwr.supernode import start_client_internal

    module: Any = start_client_internal
    pull = module.pull_objects

    def held(*given: Any, **options: Any) -> dict[str, bytes]:
        while hold.exists():
            hold.with_name("held").touch()
            time.sleep(0.05)
        return pull(*given, **options)

    module.pull_objects = held
    supernode_main.main(arguments)


def node(folder: str) -> None:
    hold = str(Path(folder) / "hold")
    supervisor: Any = node_supervisor
    own = [sys.executable, "-m", "tests.flower.half_fetched", hold]
    supervisor.module = lambda _, *arguments: [*own, *arguments]
    supervisor.NodeSupervisor(load_node(folder)).run()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        node(sys.argv[1])
    else:
        supernode(Path(sys.argv[1]), sys.argv[2:])
