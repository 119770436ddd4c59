"""A run from its first round to its last, the same for every engine, which only says how clients train."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrot.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedrot.core.adapter import Adapter
from fedrot.engines.diagnose import diagnose_round
from fedrot.engines.evaluation import evaluate_state
from fedrot.engines.finish import finish, probe
from fedrot.engines.measure import measure, nobody
from fedrot.engines.observer import Observer
from fedrot.engines.private import begun, of_repetition, spent, to_aggregate
from fedrot.engines.round import Round
from fedrot.engines.setup import Federation
from fedrot.engines.trackers import tracking
from fedrot.errors import OutputError, TrainingError
from fedrot.participation import participate
from fedrot.privacy import Releases
from fedrot.rundir import RunDirectory
from fedrot.server import ServerState, aggregate, represented, skip_round

Train = Callable[[ServerState, Round], None]
"""Lets the reporting clients of a round train from a state, and adds what they send to the round. A client that does
not report after all is dropped from it."""

Evaluate = Callable[[ServerState], dict[str, Any]]
"""Scores of a state, as they are recorded."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    adapter: Adapter
    """What `adapter/` holds: the last broadcast, around which clients' own parts, if they have any, are averaged."""
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    directory: Path


def run_rounds(
    federation: Federation,
    run: RunDirectory,
    train: Train,
    observer: Observer,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
) -> RunResult:
    """Run all rounds that are left, and write the run directory.

    Args:
        federation: data, clients, model and method.
        run: the directory, created or reopened by the caller.
        train: the engine.
        observer: told of progress.
        resume: continue from the newest whole checkpoint, if there is one.
        evaluate: the engine's own way; None for `evaluate_state`.

    Raises:
        FedrotError: as its parts do. `KeyboardInterrupt` is passed on once the adapter and the report of the last
            finished round are written.
    """
    config = federation.config
    for note in federation.notes:
        observer.note(note)
    checkpoint = load_checkpoint(run.checkpoint) if resume else None
    if resume and checkpoint is None and (finished := len(run.records())):
        raise OutputError(
            f"'{run.checkpoint}': no checkpoint, but {run.metrics.name} has {finished} finished rounds, which starting "
            "over would overwrite; put the folder back, or start a new run with another --out"
        )
    done, asked = checkpoint.state.round if checkpoint else 0, config.federation.rounds
    if done > asked:
        raise OutputError(
            f"federation.rounds = {asked}: '{run.path}' has finished {done} rounds already; ask for {done} or more, or "
            "start a new run with another --out"
        )
    run.resolve(config, federation.group_size, len(federation.crew.models))
    observer.opened(run.path)
    releases = begun(federation, run)
    state, records = _start(federation, run, checkpoint, observer)
    for note in of_repetition(releases, state.round):
        observer.note(note)
    if config.output.probe:
        observer.preparing("fitting linear probes on the frozen encoder")
    floor = probe(federation, run) if config.output.probe else None
    observer.started(federation, state.round, floor)
    try:
        with tracking(config, run.path, state.round, observer.note) as track:
            while state.round < config.federation.rounds:
                after, record = run_round(federation, state, train, evaluate, releases)
                # A state that is in no checkpoint is never published: a resumed run would make another of it.
                save_checkpoint(run.checkpoint, after, record, keep=config.output.keep_checkpoints)
                run.append(record)
                state, records = after, [*records, record]
                observer.finished(record)
                track(record)
    except KeyboardInterrupt:
        if records:
            finish(federation, run, state, records, floor, releases, interrupted=True)
        raise
    summary = finish(federation, run, state, records, floor, releases)
    adapter = represented(state, federation.weights, federation.ranks)
    return RunResult(adapter, records, summary, run.path)


def _start(
    federation: Federation, run: RunDirectory, checkpoint: Checkpoint | None, observer: Observer
) -> tuple[ServerState, list[dict[str, Any]]]:
    if checkpoint is None:
        run.metrics.unlink(missing_ok=True)
        return ServerState(0, federation.initial), []
    for note in checkpoint.notes:
        observer.note(note)
    checkpoint.state.adapter.check_like(federation.initial, "the checkpoint", ranks=False)
    observer.note(f"resuming after round {checkpoint.state.round}")
    device = federation.base.device
    return checkpoint.state.to(device), run.rewind(checkpoint.state.round, checkpoint.record)


def run_round(
    federation: Federation,
    state: ServerState,
    train: Train,
    evaluate: Evaluate | None = None,
    releases: Releases | None = None,
) -> tuple[ServerState, dict[str, Any]]:
    """One round: choose clients, let them train, aggregate what they sent, evaluate.

    Args:
        federation: data, clients, model and method.
        state: before the round.
        train: the engine.
        evaluate: the engine's own way; None for `evaluate_state`.
        releases: of the run so far, with privacy; None where nothing is published.
    """
    releases = releases or Releases()
    started, config, number = time.perf_counter(), federation.config, state.round + 1
    part = participate(config.federation, config.seed, number, federation.clients, len(state.history))
    round = Round(federation.method, number, part, federation.ranks, config.privacy.mechanism)
    if config.privacy.mechanism == "local":
        releases.begin(number)
    train(state, round)
    if not round.count:
        after, record = skip_round(state), nobody(round, state, full=federation.full)
    elif not round.updates and config.privacy.mechanism != "central":
        reasons = ", ".join(f"client {client}: {why}" for client, why in round.rejected.items())
        raise TrainingError(
            f"round {number}: every client was rejected ({reasons}); the state after round {state.round} is kept; "
            "lower train.lr, or set train.clip"
        )
    else:
        updates, told = to_aggregate(federation, state, round, releases)
        step = aggregate(
            federation.method,
            state,
            updates,
            history=config.federation.stale_rounds if config.federation.stale else 0,
            residual_rank=config.lora.residual_rank,
            optimizer=federation.optimizer,
            apart=round.apart,
        )
        after, record = step.state, measure(round, state, step, full=federation.full) | told
        if config.output.diagnostics:
            record |= diagnose_round(round, state.broadcast(federation.method.reference_lag), config.train.lr)
    training = time.perf_counter() - started
    record = {"round": number, **record, **spent(federation, number, releases)}
    if number % config.federation.evaluate_every == 0 or number == config.federation.rounds:
        record |= evaluate_state(federation, after) if evaluate is None else evaluate(after)
    federation.crew.unload()
    record |= {"training_seconds": training, "seconds": time.perf_counter() - started}
    return after, record
