"""Runs recipes on the pretended accelerator: `python -m tests.on_accelerator CASES.json FOUND.json`.

`CASES.json` maps names to recipes; `FOUND.json` gets for each name the records of its rounds and what was waited for in
training, or the error. Models are read before the device exists, since transformers leaves buffers unset beside it.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import transformers

from fedrot.config import parse_config
from fedrot.engines import parts, setup
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from tests.accelerator import register, watched

KEPT: dict[tuple[str, str], Any] = {}
READ = transformers.PreTrainedModel.from_pretrained.__func__


def read_once(cls: type, path: Any, *args: Any, **options: Any) -> Any:
    """`from_pretrained`, from memory the second time."""
    key = cls.__name__, str(path)
    if key not in KEPT:
        KEPT[key] = READ(cls, path, *args, **options)
    return copy.deepcopy(KEPT[key])


def main(cases: Path, found: Path) -> None:
    """See the module."""
    recipes = {name: parse_config(data) for name, data in json.loads(cases.read_text()).items()}
    transformers.PreTrainedModel.from_pretrained = classmethod(read_once)
    for recipe in recipes.values():
        prepare(recipe)
    device = register()
    parts.choose_device = setup.choose_device = lambda name: device
    results: dict[str, Any] = {}
    for name, recipe in recipes.items():
        with tempfile.TemporaryDirectory() as place, watched() as waits:
            try:
                records = run(recipe, out=Path(place) / "run").records
                results[name] = {"records": records, "waits": waits.within("train_group")}
            except Exception:
                results[name] = {"error": traceback.format_exc()}
    found.write_text(json.dumps(results), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
