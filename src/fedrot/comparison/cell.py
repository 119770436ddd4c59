"""One cell: one run of one recipe, reduced to a small file; run in a worker that keeps what the next can use."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedrot.comparison.pool import Task
from fedrot.comparison.sources import sources
from fedrot.comparison.store import Json, Store
from fedrot.config import RunConfig, parse_config
from fedrot.engines.compat import reported
from fedrot.engines.finish import PACKAGES, is_score
from fedrot.engines.local import run_local
from fedrot.engines.observer import Observer
from fedrot.engines.setup import Federation
from fedrot.engines.shared import Shared
from fedrot.errors import ConfigError, FedrotError, OutputError
from fedrot.report.scores import ACCURACY, Score
from fedrot.rundir import RunDirectory

Tell = Callable[[Mapping[str, Any]], None]


class CellWorker:
    """Runs cells of one comparison one after another, sharing between them what is the same."""

    def __init__(self, directory: str, keep_adapters: bool, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.store = Store(directory)
        self.keep_adapters = keep_adapters
        self.shared = Shared()

    def __call__(self, task: Task, tell: Tell) -> None:
        """Run a cell and write its file; an error of any kind is written down too."""
        config = parse_config(task.payload["config"])
        try:
            self.store.write_cell(task.key, self._run(task.key, config, tell))
        except Exception as error:
            self.shared.clear()
            self.store.write_cell(task.key, failure(task.key, config, error))

    def _run(self, key: str, config: RunConfig, tell: Tell) -> Json:
        if config.engine.name != "local":
            raise ConfigError(
                f"engine.name = {config.engine.name!r}: a comparison runs its cells in its own processes; leave it out"
            )
        directory = self.store.rundir(key)
        run, config, resume = _reopen(directory, config)
        watcher = _Watcher(tell, config.federation.rounds, self.shared)
        started = time.perf_counter()
        result = run_local(config, run, resume=resume, observer=watcher, shared=self.shared)
        cell = {
            "key": key,
            "config": config.model_dump(exclude={"output"}),
            "group_size": watcher.group_size,
            "digests": watcher.digests,
            "sources": watcher.sources,
            "metric": result.summary["metric"],
            **figures(result.records, config, Score.of(result.summary["metric"])),
            "examples": result.summary["examples"],
            "clients": result.summary["clients"],
            "labels": len(result.summary["labels"]),
            "notes": result.summary["notes"],
            "wall_seconds": round(time.perf_counter() - started, 3),
            "device": result.summary["device"],
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        self.store.keep(key, directory, adapter=self.keep_adapters)
        return cell


class _Watcher(Observer):
    def __init__(self, tell: Tell, rounds: int, shared: Shared) -> None:
        self.tell = tell
        self.rounds = rounds
        self.shared = shared
        self.digests: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.group_size = 0

    def started(self, federation: Federation, round: int, floor: Mapping[str, Any] | None) -> None:
        del round, floor
        self.digests = digests(federation)
        self.sources = sources(federation, self.shared)
        self.group_size = federation.group_size

    def finished(self, record: Mapping[str, Any]) -> None:
        self.tell({"round": record["round"], "rounds": self.rounds})


def _reopen(path: Path, config: RunConfig) -> tuple[RunDirectory, RunConfig, bool]:
    """The run directory of a cell that was interrupted, or a new one."""
    try:
        run, config = RunDirectory.reopen(path, config)
        return run, config, True
    except FedrotError:  # nothing there, or nothing that can be continued: the cell is small, so start again
        shutil.rmtree(path, ignore_errors=True)
        return RunDirectory(path), config, False


def figures(
    records: Sequence[Mapping[str, Any]], config: RunConfig | None = None, score: Score = ACCURACY
) -> Json:
    """The numbers a cell is reported by, from its rounds.

    `final` is the last round (with `compat.validation_maximum` in `config` the best one), `best` the round whose
    validation score was best (the first of equals; None where none is finite). The aggregation error is the mean
    over the rounds that recorded one; loss is the training loss of the last round. What no round recorded is None.
    """
    evaluated = [record for record in records if score.name in record]
    last = evaluated[-1] if config is None else reported(config, evaluated, score.name, score.better)
    validated = [r for r in evaluated if math.isfinite(r.get(score.validation, math.nan))]
    best = max(validated, key=lambda r: (score.gain(r[score.validation]), -r["round"]), default=None)
    errors: Json = {}
    for name, key in (
        ("error", "aggregation_error_relative"),
        ("error_absolute", "aggregation_error"),
        ("error_unaligned", "aggregation_error_relative_unaligned"),
    ):
        recorded = [record[key] for record in records if key in record]
        errors[name] = math.fsum(recorded) / len(recorded) if recorded else None
    return {
        "final": {name: value for name, value in last.items() if name == "round" or is_score(name)},
        "best": None if best is None else {"round": best["round"], score.name: best[score.name]},
        "loss": records[-1].get("loss"),
        **errors,
        "bytes": sum(record["bytes_up"] + record["bytes_down"] for record in records),
        "seconds": math.fsum(record["seconds"] for record in records),
        "rejected": sum(record["rejected"] for record in records),
    }


def digests(federation: Federation) -> dict[str, str]:
    """Of what must be the same for all variants: who holds which rows, the texts, and where training starts."""
    adapter = federation.initial
    start = [tensor for name, tensor in sorted(adapter.tensors().items())]
    names = [*sorted(adapter.tensors()), str(adapter.scale)]
    found = {
        "partition": _digest(federation.partition.rows),
        "initial adapter": _digest(start, names),
    }
    for name, split in federation.splits.items():
        found[f"{name} rows"] = _digest(split.data.tensors)
    return found


def _digest(tensors: Sequence[torch.Tensor], names: Sequence[str] = ()) -> str:
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=10)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def failure(key: str, config: RunConfig, error: BaseException) -> Json:
    """What is kept of a cell that ended in an error."""
    trace = "" if isinstance(error, FedrotError) else "".join(traceback.format_exception(error))
    return {
        "key": key,
        "config": config.model_dump(exclude={"output"}),
        "failure": {
            "kind": type(error).__name__,
            "message": str(error) or type(error).__name__,
            "trace": trace,
        },
    }


def versions() -> dict[str, str]:
    """Of fedrot and what it computes with."""
    return {name: importlib.metadata.version(name) for name in ("fedrot", *PACKAGES)}


def end_of_worker(key: str, config: RunConfig, reason: str) -> Json:
    """What is kept of a cell whose worker process ended under it twice."""
    return failure(key, config, OutputError(f"its worker process ended twice: {reason}"))
