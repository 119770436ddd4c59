"""A node whose SuperNode stops while it fetches a message. Run as `python -m tests.flower.half_fetched FOLDER`.

It stops there as long as the file `FOLDER/hold` exists, and writes `FOLDER/held`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.flower.changed_supernode import run


def change(hold: Path) -> None:
    from flwr.supernode import start_client_internal

    module: Any = start_client_internal
    pull = module.pull_objects

    def held(*given: Any, **options: Any) -> dict[str, bytes]:
        while hold.exists():
            hold.with_name("held").touch()
            time.sleep(0.05)
        return pull(*given, **options)

    module.pull_objects = held


if __name__ == "__main__":
    run("tests.flower.half_fetched", "hold", change)
