"""The end of a run, whole or interrupted: PEFT adapter, summary and report; and the linear probe at its start."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError

from fedrot.engines import compat
from fedrot.engines.floor import floors
from fedrot.engines.private import privacy_facts
from fedrot.engines.samples import SAMPLES, samples
from fedrot.engines.setup import Federation
from fedrot.engines.shares import partition_facts
from fedrot.engines.write import save_adapter, save_personal
from fedrot.errors import OutputError
from fedrot.privacy import Releases
from fedrot.report import write_report
from fedrot.rundir import RunDirectory
from fedrot.server import ServerState

PACKAGES = ("torch", "transformers", "peft", "datasets", "flwr-datasets", "safetensors", "numpy")
PROBE = "probe.json"


def probe(federation: Federation, run: RunDirectory) -> dict[str, Any]:
    """The linear-probe floor of this run (see `floors`); read back when an earlier start of the run fitted it."""
    stored = run.path / PROBE
    if stored.exists():
        return json.loads(stored.read_text("utf-8"))
    facts = floors(federation)
    run.write_json(PROBE, facts)
    return facts


def finish(
    federation: Federation,
    run: RunDirectory,
    state: ServerState,
    records: list[dict[str, Any]],
    floor: dict[str, Any] | None,
    releases: Releases,
    *,
    interrupted: bool = False,
) -> dict[str, Any]:
    """Write `adapter/`, `summary.json` and, unless the recipe says no, `report.html`; returns the summary.

    Raises:
        OutputError: something cannot be written; finished rounds are safe in their checkpoint.
    """
    config = federation.config
    said = samples(federation, state) if config.output.samples else None
    federation.model.close()
    try:
        if said is not None:
            run.write_json(SAMPLES, said)
        return _write_results(federation, run, state, records, floor, releases, interrupted)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"'{run.path}': adapter, summary or report cannot be written ({error}); round {state.round} is kept in its "
            "checkpoint: free space and continue with --resume"
        ) from error


def _write_results(
    federation: Federation,
    run: RunDirectory,
    state: ServerState,
    records: list[dict[str, Any]],
    floor: dict[str, Any] | None,
    releases: Releases,
    interrupted: bool,
) -> dict[str, Any]:
    config = federation.config
    save_adapter(run.adapter, state, federation.base, config, federation.weights, federation.ranks)
    if config.output.personal:
        save_personal(run.personal, state, federation.base, config, federation.ranks)
    metric = federation.objective.metric
    evaluated = [record for record in records if metric.name in record]
    chosen = f"validation_{metric.name}"
    best = max(
        (record for record in evaluated if math.isfinite(record.get(chosen, math.nan))),
        key=lambda record: (metric.gain(record[chosen]), -record["round"]),
        default=None,
    )
    summary: dict[str, Any] = {
        "fedrot": importlib.metadata.version("fedrot"),
        "versions": {"python": platform.python_version()}
        | {n: importlib.metadata.version(n) for n in PACKAGES},
        "device": _device_name(federation.base.device),
        "seed": config.seed,
        "method": config.method.name,
        "task": federation.task.name,
        "model": config.model.path,
        "kind": config.task.name,
        "metric": {"name": metric.name, "better": metric.better},
        "labels": list(federation.base.labels),
        "rounds": state.round,
        "interrupted": interrupted,
        "clients": federation.clients,
        "final": _final(compat.reported(config, evaluated, metric.name, metric.better)) if evaluated else {},
        "best_validation_round": best["round"] if best else None,
        "best_validation": _final(best) if best else None,
        "probe": floor,
        "privacy": privacy_facts(federation, state.round, releases),
        "partition": {"counts": []}
        if federation.data_with_nodes
        else partition_facts(federation.label_counts()),
        "examples": {
            **({"train": count} if (count := federation.training_examples) is not None else {}),
            "validation": len(federation.validation.data) if federation.validation else 0,
            "test": len(federation.test.data),
        },
        "notes": list(federation.notes),
        "bytes": {"up": sum(r["bytes_up"] for r in records), "down": sum(r["bytes_down"] for r in records)},
        "seconds": round(sum(r["seconds"] for r in records), 3),
        "adapter_parameters": sum(f.a.numel() + f.b.numel() for f in state.adapter.sites.values()),
        "head_parameters": sum(tensor.numel() for tensor in state.adapter.head.values()),
        "parameters": sum(parameter.numel() for parameter in federation.base.module.parameters()),
    }
    run.write_json("summary.json", summary)
    if config.output.report:
        write_report(run.path)
    return summary


SCORES = {
    *("accuracy", "local_accuracy", "macro_f1", "f1", "matthews", "pearson", "spearman"),
    *("perplexity", "token_accuracy", "loss"),
}
"""What tasks measure on a split; of other splits than test the split's name stands before it."""
SPLITS = ("validation", "mismatched")


def is_score(name: str) -> bool:
    """Whether a key of a record is a score of a split, and not of the round's training or traffic."""
    split, _, rest = name.partition("_")
    return name == "eval_loss" or (name in SCORES and name != "loss") or (split in SPLITS and rest in SCORES)


def _final(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name in ("round", "loss") or is_score(name)}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads ({platform.machine()})"
