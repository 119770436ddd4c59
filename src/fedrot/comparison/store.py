"""The directory of a comparison: its plan, and one small file per finished cell, each whole or absent."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrot.comparison.design import Design
from fedrot.comparison.options import shown
from fedrot.comparison.reading import as_table
from fedrot.config import RunConfig, differences, parse_config
from fedrot.errors import OutputError
from fedrot.rundir import is_free, write_whole

Json = dict[str, Any]


def cell_key(config: RunConfig) -> str:
    """Digest of a cell's recipe; where its output goes and how it is shown do not count.

    Nor does `[compat]` while it is as by default: cells from before there was one stay good.
    """
    left_out = {"output"} if any(config.compat.model_dump().values()) else {"output", "compat"}
    text = json.dumps(config.model_dump(exclude=left_out), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


class Store:
    """`plan.json`, `cells/<key>.json` with `cells/<key>.metrics.jsonl`, and the result files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.plan = self.path / "plan.json"
        self.cells = self.path / "cells"

    def cell(self, key: str) -> Json | None:
        """A finished or failed cell; None if it was not run. One that cannot be read counts as not run."""
        try:
            found = json.loads((self.cells / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("key") == key else None

    def done(self, key: str) -> bool:
        """Whether the cell finished without an error."""
        cell = self.cell(key)
        return cell is not None and "failure" not in cell

    def metrics(self, key: str) -> list[Json]:
        """The rounds of a finished cell."""
        path = self.cells / f"{key}.metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise OutputError(
                f"'{path}': cannot be read ({error}); delete '{key}.json' beside it and run again with --resume"
            ) from error

    def write_cell(self, key: str, cell: Mapping[str, Any]) -> None:
        """Atomically."""
        self.write(self.cells / f"{key}.json", json.dumps(cell, indent=1) + "\n")

    def write(self, path: Path, text: str) -> None:
        """Atomically; parents are made.

        Raises:
            OutputError: the disk refuses.
        """
        write_whole(path, text, "free space, then --resume")

    def rundir(self, key: str) -> Path:
        """Where a cell runs; removed when it has finished."""
        return self.cells / f"{key}.run"

    def keep(self, key: str, run: Path, *, adapter: bool) -> None:
        """Move what is kept of a run out of its directory, and remove that."""
        (run / "metrics.jsonl").replace(self.cells / f"{key}.metrics.jsonl")
        if adapter:
            target = self.path / "adapters" / key
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (run / "adapter").replace(target)
        shutil.rmtree(run, ignore_errors=True)

    def stored_plan(self) -> Json:
        """The plan that the directory was started with.

        Raises:
            OutputError: no comparison there.
        """
        if not self.plan.exists():
            raise OutputError(
                f"--resume: '{self.path}' holds no comparison (no plan.json); leave --resume out to start one"
            )
        try:
            return json.loads(self.plan.read_text("utf-8"))
        except ValueError as error:
            raise OutputError(
                f"'{self.plan}': not JSON ({error}); restore it, or choose another --out"
            ) from error

    def check(self, design: Design, *, resume: bool) -> None:
        """Whether a comparison may start here, or go on because `design` agrees with it or adds to it.

        Raises:
            OutputError: the directory is taken, holds nothing to resume, or holds another comparison; each
                difference is shown.
        """
        if resume:
            if changed := plan_differences(self.stored_plan(), design):
                listing = "\n  ".join(changed)
                raise OutputError(
                    f"--resume: '{self.path}' holds another comparison:\n  {listing}\nundo the changes, or start a new "
                    "comparison with another --out; seeds, variants and grid values may be added"
                )
        elif not is_free(self.path):
            what = (
                "already holds a comparison; go on with --resume or"
                if self.plan.exists()
                else "exists and is not an empty folder;"
            )
            raise OutputError(f"output directory '{self.path}' {what} choose another --out")

    def open(self, design: Design) -> None:
        """Write down what is compared, once `check` allows it."""
        plan = {"recipe": design.recipe, "compare": as_table(design)}
        self.write(self.plan, json.dumps(plan, indent=1) + "\n")


def plan_differences(stored: Json, design: Design) -> list[str]:
    """What keeps `design` from being the stored plan or more of it, a line each."""
    old, new = stored["compare"], json.loads(json.dumps(as_table(design)))
    lines = [
        line
        for line in differences(parse_config(stored["recipe"]), parse_config(design.recipe))
        if not line.startswith(("output.", "seed:"))
    ]
    for label, setting in old["variants"].items():
        if label not in new["variants"]:
            lines.append(f"variant {label!r}: left out")
        elif new["variants"][label] != setting:
            lines.append(f"variant {label!r}: {shown(setting)} -> {shown(new['variants'][label])}")
    lines += [f"seed {seed}: left out" for seed in old["seeds"] if seed not in new["seeds"]]
    was = Design(**_points_of(old))
    now = json.loads(json.dumps(design.points))
    lines += [
        f"grid point {was.shown(point) or '(the recipe)'}: left out"
        for point in was.points
        if point not in now
    ]
    tuned = bool(old["tune"] or new["tune"])
    for key in ("trials", "tune_seeds") if tuned else ():
        if old[key] != new[key]:
            lines.append(f"{key}: {old[key]} -> {new[key]}")
    if tuned and old["seeds"][: old["tune_seeds"]] != new["seeds"][: new["tune_seeds"]]:
        lines.append("the first seeds, which choose settings: add seeds at the end")
    for key in sorted(old["tune"].keys() | new["tune"].keys()):
        label = key.rpartition(":")[0]
        added = bool(label) and label not in old["variants"]
        if not added and old["tune"].get(key) != new["tune"].get(key):
            lines.append(
                f"tune {key}: {old['tune'].get(key, '(unset)')} -> {new['tune'].get(key, '(unset)')}"
            )
    return lines


def _points_of(table: Json) -> Json:
    empty: Json = {"recipe": {}, "variants": {}, "seeds": (), "baseline": ""}
    return empty | {key: table[key] for key in ("grid", "one_factor", "listed")}
