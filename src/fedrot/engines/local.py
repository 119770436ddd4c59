"""The in-process engine: clients train in stacked groups on one machine, the server's step runs beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedrot.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedrot.client import plan_group, train_group
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.core.frames import reframe
from fedrot.engines.diagnose import diagnose_round
from fedrot.engines.evaluation import evaluate_state
from fedrot.engines.finish import finish, probe
from fedrot.engines.measure import measure, nobody
from fedrot.engines.observer import Observer
from fedrot.engines.round import Round
from fedrot.engines.setup import Federation, prepare
from fedrot.engines.shared import Shared
from fedrot.errors import TrainingError
from fedrot.participation import Cohort, Participation, cohorts, participate
from fedrot.rundir import RunDirectory
from fedrot.server import ServerState, aggregate, bare, represented, skip_round, starts


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    adapter: Adapter
    """What `adapter/` holds: the last broadcast, around which clients' own parts, if they have any, are averaged."""
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    directory: Path


def run_local(
    config: RunConfig,
    run: RunDirectory,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    shared: Shared | None = None,
) -> RunResult:
    """Run a recipe in this process and write its run directory.

    Args:
        config: the recipe; in a resumed run the stored one.
        run: the directory, created or reopened by the caller.
        resume: continue from the newest whole checkpoint, if there is one.
        observer: told of progress.
        shared: what earlier runs in this process left to use again; the numbers are the same without.

    Raises:
        FedrotError: as its parts do. `KeyboardInterrupt` is passed on once the adapter and the report of the last
            finished round are written.
    """
    observer = observer or Observer()
    observer.preparing("reading data and base model")
    federation = prepare(config, shared)
    for note in federation.notes:
        observer.note(note)
    checkpoint = load_checkpoint(run.checkpoint) if resume else None
    run.resolve(config, federation.group_size)
    observer.opened(run.path)
    state, records = _start(federation, run, checkpoint, observer)
    if config.output.probe:
        observer.preparing("fitting linear probes on the frozen encoder")
    floor = probe(federation, run) if config.output.probe else None
    observer.started(federation, state.round, floor)
    try:
        while state.round < config.federation.rounds:
            state, record = run_round(federation, state, observer)
            save_checkpoint(run.checkpoint, state, record, keep=config.output.keep_checkpoints)
            run.append(record)
            records.append(record)
            observer.finished(record)
    except KeyboardInterrupt:
        if records:
            finish(federation, run, state, records, floor, interrupted=True)
        raise
    summary = finish(federation, run, state, records, floor)
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
    federation: Federation, state: ServerState, observer: Observer
) -> tuple[ServerState, dict[str, Any]]:
    """One round: choose clients, train them in groups, let the method prepare their uploads, aggregate, evaluate."""
    started, config, number = time.perf_counter(), federation.config, state.round + 1
    part = participate(config.federation, config.seed, number, federation.clients, len(state.history))
    round = Round(federation.method, number, part, federation.ranks)
    for cohort in _groups(federation, part):
        _train(federation, state, round, cohort)
        observer.trained(number, round.count, len(part.reporting))
    if not part.reporting:
        after, record = skip_round(state), nobody(round, state, full=federation.full)
    elif not round.updates:
        reasons = ", ".join(f"client {client}: {why}" for client, why in round.rejected.items())
        raise TrainingError(
            f"round {number}: every client was rejected ({reasons}); the state after round {state.round} is kept; "
            "lower train.lr, or set train.clip"
        )
    else:
        step = aggregate(
            federation.method,
            state,
            round.updates,
            history=config.federation.stale_rounds if config.federation.stale else 0,
            residual_rank=config.lora.residual_rank,
            optimizer=federation.optimizer,
        )
        after, record = step.state, measure(round, state, step, full=federation.full)
        if config.output.diagnostics:
            record |= diagnose_round(round, state.broadcast(federation.method.reference_lag), config.train.lr)
    training = time.perf_counter() - started
    record = {"round": number, **record}
    if number % config.federation.evaluate_every == 0 or number == config.federation.rounds:
        record |= evaluate_state(federation, after)
    federation.model.unload()
    record |= {"training_seconds": training, "seconds": time.perf_counter() - started}
    return after, record


def _groups(federation: Federation, part: Participation) -> Iterator[Cohort]:
    """Clients to train together: of one rank and lag, with like numbers of steps, so that few wait for the slowest."""
    for cohort in cohorts(part, federation.ranks):
        ordered = list(cohort.clients)
        if federation.config.train.local_epochs is not None:
            ordered.sort(key=lambda client: (len(federation.partition.rows[client]), client))
        for start in range(0, len(ordered), federation.group_size):
            yield replace(cohort, clients=tuple(ordered[start : start + federation.group_size]))


def _train(federation: Federation, state: ServerState, round: Round, cohort: Cohort) -> None:
    """Train one group from the broadcast its lag names, and hand its uploads to `round`."""
    config, method, train = federation.config, federation.method, federation.train
    rows: list[Tensor] = [federation.partition.rows[client] for client in cohort.clients]
    lengths = train.data.lengths if config.train.bucket else None
    plan = plan_group(
        cohort.clients, rows, config.train, seed=config.seed, round=round.number, lengths=lengths
    )
    received = state.broadcast(cohort.lag)
    start = starts(received, state.personal, cohort.clients, cohort.rank)
    trained = train_group(
        federation.model,
        train.data,
        start,
        plan,
        config.train,
        method.trainable(round.number),
        train.cache,
        residual=received.residual,
    )
    frame = config.federation.upload_frame
    turned = reframe(trained.adapter, frame, config.seed, round.number, trained.clients)
    trained = replace(trained, adapter=turned)
    # A stale update is aligned to what its fellows hold now, not to what it was computed from.
    reference = state.broadcast(0 if cohort.lag else method.reference_lag)
    upload = method.before_upload(
        trained.adapter, bare(received), round.number, reference=bare(reference), clients=trained.clients
    )
    discount = config.federation.stale_weight**cohort.lag
    weights = [federation.weight(client) * discount for client in trained.clients]
    round.add(trained, start, upload, weights, int(plan.steps.sum()))
