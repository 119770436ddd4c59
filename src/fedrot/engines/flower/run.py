"""A recipe over Flower: on a grid of nodes in this process, or on any other grid."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid

from fedrot.config import RunConfig
from fedrot.engines.compat import check_compat
from fedrot.engines.flower.app import client_app
from fedrot.engines.flower.blocks import blocks
from fedrot.engines.flower.grid import InProcessGrid
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.node_data import Local
from fedrot.engines.flower.roster import Roster, Vouch
from fedrot.engines.flower.session import Session
from fedrot.engines.flower.worker import Worker
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult, run_rounds
from fedrot.engines.secure import check_secure
from fedrot.engines.setup import Federation, check_data_is_here, prepare
from fedrot.engines.trackers import check_trackers
from fedrot.errors import ConfigError
from fedrot.methods import build
from fedrot.privacy import check_secret
from fedrot.rundir import RunDirectory


def run_flower(
    config: RunConfig, run: RunDirectory, *, resume: bool = False, observer: Observer | None = None
) -> RunResult:
    """Run a recipe on this machine, every message of it through Flower's records.

    Args:
        config: the recipe; in a resumed run the stored one.
        run: the directory, created or reopened by the caller.
        resume: continue from the newest whole checkpoint, if there is one.
        observer: told of progress.

    Raises:
        FedrotError: as its parts do.
    """
    observer = observer or Observer()
    check_data_is_here(config)
    check_flower(config)
    if config.engine.backend == "ray":
        from fedrot.engines.flower.ray import run_ray

        return run_ray(config, run, observer, resume=resume)
    observer.preparing("reading data and base model")
    federation = prepare(config)
    grid = in_process_grid(federation, run.kept)
    return serve(grid, federation, run, observer, resume=resume, patient=False)


def run_over(
    grid: Grid,
    config: RunConfig,
    run: RunDirectory,
    observer: Observer,
    *,
    resume: bool = False,
    vouch: Vouch | None = None,
) -> RunResult:
    """Run a recipe over the nodes of a grid, which come and go.

    Args:
        grid: Flower's.
        config: the recipe; in a resumed run the stored one.
        run: the directory, created or reopened by the caller.
        observer: told of progress.
        resume: continue from the newest whole checkpoint, if there is one.
        vouch: refuses a node that may not host the clients it names.

    Raises:
        FedrotError: as its parts do; too few nodes within `engine.wait` seconds.
    """
    check_flower(config)
    check_secret(config.privacy)
    check_trackers(config)
    observer.preparing("reading data and base model")
    return serve(grid, prepare(config), run, observer, resume=resume, patient=True, vouch=vouch)


def check_flower(config: RunConfig) -> None:
    """Refuse what the Flower engine cannot do.

    Raises:
        ConfigError: names the key, the value and what can.
    """
    method = build(config.method.name, config.method.options, config.seed)
    if method.laws.personal and config.output.samples:
        raise ConfigError(
            f"output.samples = {config.output.samples}: what clients of method.name = {method.name!r} keep to "
            "themselves stays on their nodes over Flower, and the server has no whole model to let speak; leave it out"
        )
    check_compat(config)
    check_secure(config, method)


def in_process_grid(federation: Federation, kept: Path | None = None) -> InProcessGrid:
    """Nodes in this process that share the server's base model and data.

    There are `engine.nodes` of them, or one for each group of clients that train stacked.

    Args:
        federation: the server's.
        kept: the folder of what clients keep to themselves; None has it end with the grid.
    """
    local = Local.of(federation)
    count = federation.config.engine.nodes or math.ceil(federation.clients / federation.group_size)
    shares, folder = blocks(federation.clients, count), None if kept is None else str(kept)
    workers = [
        Worker(NodeSettings(f"node-{index}", share, trusts_recipe=True, kept=folder), local)
        for index, share in enumerate(shares)
    ]

    def worker_of(message: Message, context: Context) -> Worker:
        del message
        return workers[int(context.node_config["partition-id"])]

    nodes = [{"partition-id": index, "num-partitions": len(shares)} for index in range(len(shares))]
    return InProcessGrid(client_app(worker_of), nodes)


def serve(
    grid: Grid,
    federation: Federation,
    run: RunDirectory,
    observer: Observer,
    *,
    resume: bool = False,
    patient: bool = False,
    vouch: Vouch | None = None,
) -> RunResult:
    """Run the rounds of a federation over the nodes of a grid.

    Args:
        grid: where the nodes are.
        federation: the server's.
        run: the directory, created or reopened by the caller.
        observer: told of progress, and of nodes that join, leave and are refused.
        resume: continue from the newest whole checkpoint, if there is one.
        patient: whether nodes may still come; if not, a missing one is an error at once.
        vouch: refuses a node that may not host the clients it names.

    Raises:
        TrainingError: too few nodes, or all clients of a round rejected.
    """
    roster = Roster(grid, federation, observer, patient=patient, vouch=vouch)
    for note in _of_personal(federation):
        observer.note(note)
    roster.gather()
    federation = replace(
        federation, ranks=roster.ranks(federation.ranks), examples=roster.examples() or federation.examples
    )
    session = Session(grid, federation, roster, observer)
    return run_rounds(federation, run, session.train, observer, resume=resume, evaluate=session.evaluate)


def _of_personal(federation: Federation) -> list[str]:
    """What whoever runs a method that leaves parts of the model with clients should know."""
    if not federation.method.laws.personal:
        return []
    what = f"method {federation.method.name!r} leaves a part of the model with each client, on its node"
    told = [f"{what}: adapter/ will hold what they share, and the start of the rest"]
    if federation.data_with_nodes:
        told.append(
            "with task.data = 'nodes' no node has a test split: clients' own models are not evaluated, and the record "
            "holds no scores"
        )
    return told
