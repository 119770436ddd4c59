"""fedrot's local engine on the job's own recipe.

python benchmarks/peers/ours.py JOB OUT [section.key=value ...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Clock, Job
from safetensors.torch import load_file

from fedrot import run
from fedrot.engines.observer import Observer


class Rounds(Observer):
    """Marks the start of the first round and the end of each, evaluation left out and the checkpoint left in."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def started(self, *_: Any) -> None:
        self.clock.mark()

    def finished(self, record: Mapping[str, Any]) -> None:
        self.clock.mark()
        if "accuracy" in record:  # in the last round
            self.clock.marks[-1] -= record["seconds"] - record["training_seconds"]


def main(job: Job, out: Path, overrides: list[str]) -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            job.folder / "recipe.toml", out=Path(folder) / "run", overrides=overrides, observer=Rounds(clock)
        )
        trained = load_file(result.directory / "adapter" / "adapter_model.safetensors")
    clock.write(out, trained, bytes_up=result.records[-1]["bytes_up"])


if __name__ == "__main__":
    main(Job(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:])
