"""Flower's own `flower-supernode`, asking for messages more often than every 3 seconds while there are some.

It goes on where a run ends in the middle of a message.

Run as `python -m fedrot.engines.flower.deploy.supernode_main POLL ARGUMENT...`; the arguments are Flower's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

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
    threading.excepthook = _end
    flower_supernode()
    _end()


def _end(failed: threading.ExceptHookArgs | None = None) -> None:
    """End without good-bye, for whoever started this process to start it anew.

    Flower returns after an answer of the server that it did not expect, such as a status 500, while a thread of its own
    goes on and keeps the process alive; a heartbeat that fails like this ends the thread that sends them, after which
    the server takes the node for gone. The node would ask nothing, or in vain, from then on.
    """
    if failed is not None:
        if failed.exc_type is SystemExit:
            return  # a thread that ends as it should
        threading.__excepthook__(failed)
    sys.stdout.flush()
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
