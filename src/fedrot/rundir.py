"""A run directory: created once, never overwritten, appended to round by round, readable while it grows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrot.config import RunConfig, differences, load_config
from fedrot.errors import OutputError

RESUMABLE = ("federation.rounds", "output.dir", "output.report", "output.keep_checkpoints", "output.personal")
RESUMABLE += ("output.samples", "output.sample_tokens", "output.trackers")


class RunDirectory:
    """The files of one run. Names are fixed: scripts and the report rely on them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.releases = self.path / "releases.jsonl"
        self.summary = self.path / "summary.json"
        self.adapter = self.path / "adapter"
        self.personal = self.path / "personal"
        self.kept = self.path / "kept"
        self.checkpoint = self.path / "checkpoint"
        self.report = self.path / "report.html"

    def check_free(self) -> None:
        """Refuse to write over anything. The directory itself is made by `resolve`, once everything is built.

        Raises:
            OutputError: the directory holds something already.
        """
        if self.config.exists():
            raise OutputError(
                f"output directory '{self.path}' already holds a run; continue it with --resume or choose another --out"
            )
        if not is_free(self.path):
            raise OutputError(
                f"output directory '{self.path}' exists and is not an empty folder; choose another --out"
            )

    @classmethod
    def reopen(
        cls, path: str | Path, config: RunConfig | None, overrides: Sequence[str] = ()
    ) -> tuple[RunDirectory, RunConfig]:
        """Continue a run with its own recipe; `config` must agree with it.

        Where `config` is None it is the stored recipe with `overrides`, strings `section.key=value`.

        The number of rounds may grow. `auto` group size and workers stand for what the run resolved them to.

        Raises:
            OutputError: no run there, or a recipe that differs (each difference is shown).
            ConfigError: an override that makes no recipe.
        """
        run = cls(path)
        if not run.config.exists():
            raise OutputError(
                f"--resume: '{run.path}' holds no run (no config.toml); leave --resume out to start one"
            )
        stored = load_config(run.config)
        if config is None:
            config = load_config(run.config, overrides)
        chosen = [key for key in ("group_size", "workers") if getattr(config.federation, key) == "auto"]
        ignored = [*RESUMABLE, *(f"federation.{key}" for key in chosen)]
        if changed := differences(stored, config, ignored):
            listing = "\n  ".join(changed)
            raise OutputError(
                f"--resume: the recipe differs from the one '{run.path}' was started with:\n  {listing}\n"
                "undo the changes, or start a new run with another --out"
            )
        federation = stored.federation.model_copy(update={"rounds": config.federation.rounds})
        return run, stored.model_copy(update={"federation": federation, "output": config.output})

    def resolve(self, config: RunConfig, group_size: int, workers: int) -> RunConfig:
        """Write down what `auto` came to, so that a resumed run trains in the same groups, and the rounds asked for."""
        federation = config.federation.model_copy(update={"group_size": group_size, "workers": workers})
        resolved = config.model_copy(update={"federation": federation})
        write_whole(self.config, resolved.to_toml())
        return resolved

    def records(self) -> list[dict[str, Any]]:
        """The metrics written so far; a torn last line is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text("utf-8").splitlines()
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise OutputError(
                        f"'{self.metrics}', line {number}: not JSON ({error}); restore the file"
                    ) from error
        return records

    def rewind(self, round: int, last: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Make the metrics end at `round`, whose record is `last`: what a resume starts from.

        Raises:
            OutputError: a record of an earlier round is missing.
        """
        earlier = [record for record in self.records() if record["round"] < round]
        if [record["round"] for record in earlier] != list(range(1, round)):
            raise OutputError(
                f"'{self.metrics}': expected a record of each of the rounds 1 to {round - 1}, found "
                f"{[record['round'] for record in earlier]}; restore the file from a copy"
            )
        records = [*earlier, dict(last)]
        write_whole(self.metrics, "".join(_line(record) for record in records))
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one round's record, flushed to disk."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"'{self.metrics}': cannot be written ({error.strerror}); free space, then --resume"
            ) from error

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write `name` in the run directory atomically."""
        write_whole(self.path / name, json.dumps(value, indent=2) + "\n")


def is_free(path: Path) -> bool:
    """Whether there is nothing there, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def write_whole(path: Path, text: str, remedy: str = "check the path and free space") -> None:
    """Write a file so that it is whole or as it was before, and on disk on return; its folder is made.

    Raises:
        OutputError: it cannot be written; the message ends with `remedy`.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush_directory(path.parent)
    except OSError as error:
        raise OutputError(f"'{path}': cannot be written ({error.strerror}); {remedy}") from error


def flush_directory(directory: Path) -> None:
    """Have the names of a folder's files on disk: a file that was just put there outlasts a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_directory(stem: str, parent: str | Path = "runs") -> Path:
    """A directory no run has used: `runs/<stem>`, or with the first free number behind it."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    parent = Path(parent)
    names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
    return next(parent / name for name in names if not (parent / name).exists())


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
