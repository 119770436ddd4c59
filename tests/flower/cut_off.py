"""A node whose SuperNode dies once it has announced a reply, before it delivers it.

Run as `python -m tests.flower.cut_off FOLDER`. It happens to the first reply after the file `FOLDER/cut-off` was made,
which is removed then. The SuperNode is this module, too.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from fedrot.engines.flower.deploy import node_supervisor, supernode_main
from fedrot.engines.flower.node import load_node


def supernode(asked: Path, arguments: list[str]) -> None:
    from flwr.supernode import start_client_internal

    module: Any = start_client_internal
    deliver = module.push_object_contents_from_iterable

    def cut_off(*given: Any, **options: Any) -> None:
        if asked.exists():
            asked.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        deliver(*given, **options)

    module.push_object_contents_from_iterable = cut_off
    supernode_main.main(arguments)


def node(folder: str) -> None:
    asked = str(Path(folder) / "cut-off")
    supervisor: Any = node_supervisor
    supervisor.module = lambda _, *arguments: [
        sys.executable,
        "-m",
        "tests.flower.cut_off",
        asked,
        *arguments,
    ]
    supervisor.NodeSupervisor(load_node(folder)).run()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        node(sys.argv[1])
    else:
        supernode(Path(sys.argv[1]), sys.argv[2:])
