"""Workers for the tests of the pool; spawned processes import them by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedrot.comparison.pool import Task


class Scribe:
    """Writes what it did into a folder; the payload says how often to die first, or to sleep."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen = 0

    def __call__(self, task: Task, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self.seen += 1
        lives = self.folder / f"{task.key}.lives"
        begun = len(lives.read_text()) if lives.exists() else 0
        lives.write_text("x" * (begun + 1))
        if begun < task.payload.get("deaths", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        tell({"round": 1, "rounds": 1})
        time.sleep(task.payload.get("sleep", 0))
        (self.folder / f"{task.key}.done").write_text(f"{os.getpid()} {self.seen}")


class Broken:
    """Cannot be made."""

    def __init__(self, _: str) -> None:
        raise SystemExit(3)
