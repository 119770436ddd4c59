"""The in-process engine: clients train in stacked groups on one machine, the server's step runs beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedrot.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedrot.client import Plan, Trained, plan_group, train_group
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.engines.finish import finish, probe
from fedrot.engines.measure import Round, measure
from fedrot.engines.observer import Observer
from fedrot.engines.setup import Federation, Split, prepare
from fedrot.engines.shared import Shared
from fedrot.errors import TrainingError
from fedrot.evaluate import evaluate
from fedrot.rundir import RunDirectory
from fedrot.server import ServerState, aggregate, choose_clients


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    adapter: Adapter
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
    return RunResult(state.adapter, records, summary, run.path)


def _start(
    federation: Federation, run: RunDirectory, checkpoint: Checkpoint | None, observer: Observer
) -> tuple[ServerState, list[dict[str, Any]]]:
    if checkpoint is None:
        run.metrics.unlink(missing_ok=True)
        return ServerState(0, federation.initial), []
    for note in checkpoint.notes:
        observer.note(note)
    checkpoint.state.adapter.check_like(federation.initial, "the checkpoint")
    observer.note(f"resuming after round {checkpoint.state.round}")
    device = federation.base.device
    return checkpoint.state.to(device), run.rewind(checkpoint.state.round, checkpoint.record)


def run_round(
    federation: Federation, state: ServerState, observer: Observer
) -> tuple[ServerState, dict[str, Any]]:
    """One round: choose clients, train them in groups, let the method prepare their uploads, aggregate, evaluate."""
    started, config, number = time.perf_counter(), federation.config, state.round + 1
    chosen = choose_clients(config.seed, number, federation.clients, config.federation.fraction)
    round = Round(federation.method, number)
    for group in _groups(federation, chosen):
        plan, trained = _train(federation, state, number, group)
        upload = federation.method.before_upload(
            trained.adapter, state.adapter, number, reference=state.reference, clients=trained.clients
        )
        weights = [federation.weight(client) for client in trained.clients]
        round.add(trained, upload, weights, int(plan.steps.sum()))
        observer.trained(number, round.count, len(chosen))
    if not round.updates:
        reasons = ", ".join(f"client {client}: {why}" for client, why in round.rejected.items())
        raise TrainingError(
            f"round {number}: every client was rejected ({reasons}); the state after round {state.round} is kept; "
            "lower train.lr, or set train.clip"
        )
    after = aggregate(federation.method, state, round.updates)
    training = time.perf_counter() - started
    record = {"round": number, **measure(round, state, after, full=config.federation.fraction == 1)}
    if number % config.federation.evaluate_every == 0 or number == config.federation.rounds:
        record |= _evaluate(federation, after.adapter)
    federation.model.unload()
    record |= {"training_seconds": training, "seconds": time.perf_counter() - started}
    return after, record


def _groups(federation: Federation, chosen: Sequence[int]) -> Iterator[list[int]]:
    """Clients to train together: those with like numbers of steps, so that few wait for the slowest."""
    ordered = list(chosen)
    if federation.config.train.local_epochs is not None:
        ordered.sort(key=lambda client: (len(federation.partition.rows[client]), client))
    for start in range(0, len(ordered), federation.group_size):
        yield ordered[start : start + federation.group_size]


def _train(
    federation: Federation, state: ServerState, number: int, group: Sequence[int]
) -> tuple[Plan, Trained]:
    config = federation.config
    rows: list[Tensor] = [federation.partition.rows[client] for client in group]
    lengths = federation.train.data.lengths if config.train.bucket else None
    plan = plan_group(group, rows, config.train, seed=config.seed, round=number, lengths=lengths)
    trainable = federation.method.trainable(number)
    train = federation.train
    return plan, train_group(
        federation.model, train.data, state.adapter, plan, config.train, trainable, train.cache
    )


def _evaluate(federation: Federation, adapter: Adapter) -> dict[str, float]:
    def on(split: Split) -> Mapping[str, float]:
        batch = federation.config.federation.evaluate_batch
        return evaluate(federation.model, adapter, split.data, batch=batch, cache=split.cache)

    test = on(federation.test)
    record = {name: value for name, value in test.items() if name != "loss"} | {"eval_loss": test["loss"]}
    if federation.validation is not None:
        record |= {f"validation_{name}": value for name, value in on(federation.validation).items()}
    return record
