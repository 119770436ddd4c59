"""`fedrot deploy supernode`. Mistakes in the folder are told before Flower is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from fedrot.engines.flower.deploy.connect import check_server
from fedrot.engines.flower.deploy.pki import check_certificate, check_private_key
from fedrot.engines.flower.node import load_node


def run_supernode(directory: Path) -> None:
    """Run the node of a folder until it is told to stop.

    Raises:
        ConfigError: a setting, certificate or key that cannot be used, or a server that refuses the node.
    """
    node = load_node(directory)
    check_certificate(node.ca)
    check_private_key(node.key)
    check_server(node.superlink, node.ca)

    from fedrot.engines.flower.deploy.node_supervisor import NodeSupervisor

    NodeSupervisor(node).run()
