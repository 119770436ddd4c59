"""A node whose SuperNode is a module of the tests, which changes something in Flower before it starts.

The module calls `run` where it is the main one: as `python -m MODULE FOLDER` it is the node, and the node starts it
again as its SuperNode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrot.engines.flower.deploy import node_supervisor, supernode_main
from fedrot.engines.flower.node import load_node


def run(module: str, asked: str, change: Callable[[Path], None]) -> None:
    """Be the node or its SuperNode.

    Args:
        module: of the caller.
        asked: name of a file of the node's folder by which a test asks for something.
        change: given its path, changes Flower.
    """
    if len(sys.argv) > 2:
        change(Path(sys.argv[1]))
        supernode_main.main(sys.argv[2:])
        return
    own = [sys.executable, "-m", module, str(Path(sys.argv[1]) / asked)]
    supervisor: Any = node_supervisor
    supervisor.module = lambda _, *arguments: [*own, *arguments]
    supervisor.NodeSupervisor(load_node(sys.argv[1])).run()
