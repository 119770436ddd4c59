"""A node whose SuperNode dies once it has announced a reply, before it delivers it.

Run as `python -m tests.flower.cut_off FOLDER`. It happens to the first reply after the file `FOLDER/cut-off` was made,
which is removed then.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tests.flower.changed_supernode import run


def change(asked: Path) -> None:
    from flwr.supernode import start_client_internal

    module: Any = start_client_internal
    deliver = module.push_object_contents_from_iterable

    def cut_off(*given: Any, **options: Any) -> None:
        if asked.exists():
            asked.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        deliver(*given, **options)

    module.push_object_contents_from_iterable = cut_off


if __name__ == "__main__":
    run("tests.flower.cut_off", "cut-off", change)
