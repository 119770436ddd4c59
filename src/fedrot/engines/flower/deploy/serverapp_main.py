"""Flower's own `flwr-serverapp`, with its token from standard input instead of the arguments, which all users can read.

It also notes how the app ended: Flower keeps one exit code for all exceptions, fedrot has one for each kind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from queue import Queue
from typing import Any

from fedrot.engines.flower.deploy.patience import end_in_time, hurry_objects
from fedrot.engines.flower.deploy.process import tether
from fedrot.errors import FedrotError
from fedrot.rundir import write_whole


def main() -> None:
    """Run one server app. JSON on standard input has address, certificate, token and where to note the end."""
    given = json.loads(sys.stdin.buffer.readline())
    tether()
    from flwr.supercore.logger import mirror_output_to_queue, restore_output
    from flwr.superlink.runtime import run_serverapp

    module: Any = sys.modules[run_serverapp.__module__]
    module.run_ = _noting(module.run_, Path(given["outcome"]))
    hurry_objects()
    end_in_time()
    queue: Queue[str | None] = Queue()
    mirror_output_to_queue(queue)
    run_serverapp(
        runtime_api_address=given["address"],
        log_queue=queue,
        token=given["token"],
        insecure=False,
        certificates=Path(given["ca"]).read_bytes(),
    )
    restore_output()


def _noting(run: Any, outcome: Path) -> Any:
    def noted(*arguments: Any, **options: Any) -> Any:
        try:
            result = run(*arguments, **options)
        except Exception as error:  # being stopped is no error, and Flower knows of it
            own = isinstance(error, FedrotError)
            code = error.exit_code if own else 1
            told = str(error) if own else f"{type(error).__name__}: {error}"
            write_whole(outcome, json.dumps({"exit_code": code, "message": told}))
            raise
        write_whole(outcome, json.dumps({"exit_code": 0, "message": ""}))
        return result

    return noted


if __name__ == "__main__":
    main()
