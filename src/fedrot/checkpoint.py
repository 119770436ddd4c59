"""Atomic, checksummed checkpoints of the server state: safetensors and JSON, never pickle.

A checkpoint is a directory `round-000012/` of `state.safetensors` and `state.json`. It is written under another name,
flushed to disk and renamed, so that it is either whole or absent; `state.json` holds the digest of the tensors and of
itself, so that damage is noticed and the checkpoint before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.errors import AdapterError, OutputError
from fedrot.methods.base import MethodState
from fedrot.rundir import flush_directory
from fedrot.server import Apart, ServerState

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A state, the metrics record of its last round, and what had to be skipped to reach it."""

    state: ServerState
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


def save_checkpoint(directory: Path, state: ServerState, record: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write one checkpoint atomically and delete all but the newest `keep`.

    Raises:
        OutputError: it cannot be written (a full disk, say); earlier checkpoints are untouched.
    """
    final = directory / f"round-{state.round:06d}"
    partial = directory / f".{final.name}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        named = _named(state)
        tensors, same = _once(named)
        blob = safetensors.torch.save(tensors)
        facts = {
            "format": FORMAT,
            "round": state.round,
            "scale": state.adapter.scale,
            "history": len(state.history),
            "personal": sorted(client for client, kept in state.personal.items() if kept),
            "numbers": dict(state.method.numbers),
            "optimizer": dict(state.optimizer.numbers),
            "apart": _apart(state),
            "record": dict(record),
            "order": list(named),
            "same": same,
            "tensors": hashlib.sha256(blob).hexdigest(),
        }
        _write(partial / "state.safetensors", blob)
        _write(partial / "state.json", json.dumps({"digest": _digest(facts), "facts": facts}).encode())
        if final.exists():  # a damaged checkpoint of this round, now being replaced
            shutil.rmtree(final)
        partial.rename(final)
        flush_directory(directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = [path.name for path in _listed(directory)]
        raise OutputError(
            f"checkpoint of round {state.round} cannot be written to '{directory}' ({error.strerror or error}); "
            f"kept: {', '.join(kept) or 'none'}; free space and continue with --resume"
        ) from error
    for old in _listed(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None when there is none. Damaged newer ones are named in `notes`.

    Raises:
        OutputError: there are checkpoints, but every one is damaged.
    """
    notes: list[str] = []
    for path in reversed(_listed(directory)):
        try:
            state, record = _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, AdapterError) as error:
            notes.append(f"checkpoint '{path.name}' is damaged ({error}); falling back to the one before it")
            continue
        return Checkpoint(state, record, tuple(notes))
    if notes:
        raise OutputError(
            f"'{directory}': every checkpoint is damaged: {'; '.join(notes)}; start again in another --out directory"
        )
    return None


def _listed(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("round-*") if path.is_dir())


def _read(path: Path) -> tuple[ServerState, dict[str, Any]]:
    stored = json.loads((path / "state.json").read_text("utf-8"))
    facts = stored["facts"]
    if stored["digest"] != _digest(facts):
        raise ValueError("state.json does not match its digest")
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, expected {FORMAT}: written by another version of fedrot")
    blob = (path / "state.safetensors").read_bytes()
    if hashlib.sha256(blob).hexdigest() != facts["tensors"]:
        raise ValueError("state.safetensors does not match its digest")
    stored_tensors = safetensors.torch.load(blob)
    groups: dict[str, dict[str, Tensor]] = {}
    for key in facts["order"]:  # safetensors files keep no order of their own
        group, _, name = key.partition(":")
        groups.setdefault(group, {})[name] = stored_tensors[facts["same"].get(key, key)]
    names = ["adapter", *(f"history-{i}" for i in range(facts["history"]))]
    adapter, *history = (Adapter.from_tensors(groups[name], facts["scale"]) for name in names)
    method = MethodState(groups.get("method", {}), facts["numbers"])
    change = Adapter.from_tensors(groups.get("change", {})).residual
    personal = {client: groups[f"client-{client}"] for client in facts["personal"]}
    optimizer = MethodState(groups.get("optimizer", {}), facts["optimizer"])
    told = facts.get("apart")  # not in older checkpoints
    apart = Apart(told["run"], dict(told["rounds"])) if told else None
    state = ServerState(facts["round"], adapter, tuple(history), method, change, personal, optimizer, apart)
    return state, facts["record"]


def _apart(state: ServerState) -> dict[str, Any] | None:
    apart = state.apart
    return None if apart is None else {"run": apart.run, "rounds": sorted(apart.rounds.items())}


def _named(state: ServerState) -> dict[str, Tensor]:
    """Every tensor of a state, under `<group>:<name>`."""
    groups: dict[str, Mapping[str, Tensor]] = {
        "adapter": state.adapter.tensors(),
        "method": state.method.tensors,
        "optimizer": state.optimizer.tensors,
        "change": Adapter({}, residual=state.change).tensors(),
    }
    groups |= {f"history-{i}": adapter.tensors() for i, adapter in enumerate(state.history)}
    groups |= {f"client-{client}": kept for client, kept in state.personal.items()}
    return {f"{g}:{key}": tensor for g, group in groups.items() for key, tensor in group.items()}


def _once(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What to write, and `name -> name` of tensors that are there already: what a round did not change."""
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    same: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in named.items():
        if id(tensor) in names:
            same[name] = names[id(tensor)]
            continue
        names[id(tensor)] = name
        flat = tensor.detach().contiguous().cpu()
        pointer = flat.untyped_storage().data_ptr()
        tensors[name] = (
            flat.clone() if pointer in storages else flat
        )  # safetensors writes no views of one another
        storages.add(pointer)
    return tensors, same


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
