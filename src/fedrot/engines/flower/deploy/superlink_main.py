"""Flower's own `flower-superlink` behind the gate, on two sockets.

Run as `python -m fedrot.engines.flower.deploy.superlink_main ARGUMENT...`; the arguments are Flower's, with `--host`
and `--port` of the loopback. One line of JSON on standard input says the rest, so that the token is no argument.
"""

from __future__ import annotations

import json
import socket
import sys
from types import SimpleNamespace
from typing import Any

from fedrot.engines.flower.deploy.gate import Gate
from fedrot.engines.flower.deploy.process import tether


def main(arguments: list[str]) -> None:
    """Start it in this process."""
    given = json.loads(sys.stdin.buffer.readline())
    tether()
    import uvicorn
    from flwr.superlink.cli import flower_superlink as cli

    # The package holds a function of the same name as the module that defines it.
    module: Any = sys.modules[cli.__module__]

    def serve(app: Any, **options: Any) -> None:
        options |= {"access_log": False, "server_header": False, "date_header": False}
        gate = Gate(app, options["port"], given["token"], given["limit"])
        inner = _listen(options["host"], options["port"])
        outer = _listen(given["host"], given["port"])
        server = uvicorn.Server(uvicorn.Config(app=gate, **options))
        server.run(sockets=[inner, outer])

    module.uvicorn = SimpleNamespace(run=serve)
    sys.argv = ["flower-superlink", *arguments]
    cli()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((host, port))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
