"""The in-process engine: clients train in stacked groups on one machine, the server's step runs beside them."""

from __future__ import annotations

from contextlib import closing

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.engines.observer import Observer
from fedrot.engines.round import Round
from fedrot.engines.rounds import RunResult, Train, run_rounds
from fedrot.engines.setup import Federation, check_data_is_here, prepare
from fedrot.engines.shared import Shared
from fedrot.engines.training import Clients, Task, train_all
from fedrot.errors import OutputError
from fedrot.participation import cohorts
from fedrot.rundir import RunDirectory
from fedrot.server import ServerState, starts


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
    check_data_is_here(config)
    observer.preparing("reading data and base model")
    federation = prepare(config, shared)
    return run_rounds(federation, run, in_process(federation, observer), observer, resume=resume)


def in_process(federation: Federation, observer: Observer) -> Train:
    """Clients train here, a group at a time."""

    members = Clients.of(federation)

    def train(state: ServerState, round: Round) -> None:
        if state.apart is not None:
            raise OutputError(
                "this run was begun over Flower, and what its clients keep to themselves lies with the nodes; go on "
                "with engine.name = 'flower' or `fedrot deploy run --resume`, or start a new run"
            )
        for cohort in cohorts(round.participation, federation.ranks):
            received = state.broadcast(cohort.lag)
            # A stale update is aligned to what its fellows hold now, not to what it was computed from.
            reference = state.broadcast(0 if cohort.lag else federation.method.reference_lag)
            discount = federation.config.federation.stale_weight**cohort.lag

            def task_of(
                clients: tuple[int, ...],
                received: Adapter = received,
                reference: Adapter = reference,
                rank: int | None = cohort.rank,
            ) -> Task:
                start = starts(received, state.personal, clients, rank)
                return Task(round.number, clients, received, start, reference)

            with closing(train_all(members, round.number, cohort.clients, task_of)) as results:
                for task, group in results:
                    weights = [federation.weight(client) * discount for client in task.clients]
                    round.add(group.trained, task.start, group.upload, weights, sum(group.steps))
                    observer.trained(round.number, round.count, len(round.participation.reporting))

    return train
