"""Flower's own `flower-supernode`, asking for messages more often than every 3 seconds while there are some.

It goes on where a run ends in the middle of a message.

Run as `python -m fedrot.engines.flower.deploy.supernode_main POLL ARGUMENT...`; the arguments are Flower's.
"""

from __future__ import annotations

import sys

from fedrot.engines.flower.deploy.ended import last_beyond_runs
from fedrot.engines.flower.deploy.patience import hurry_messages, hurry_objects
from fedrot.engines.flower.deploy.process import tether


def main(arguments: list[str]) -> None:
    """Start it in this process."""
    tether()
    from flwr.supernode.cli import flower_supernode

    hurry_messages(float(arguments[0]))
    hurry_objects()
    last_beyond_runs()
    sys.argv = ["flower-supernode", *arguments[1:]]
    flower_supernode()


if __name__ == "__main__":
    main(sys.argv[1:])
