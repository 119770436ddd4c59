"""Nodes in processes of their own on this machine: Flower's simulation, which starts them with Ray."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import partial
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrot.config import RunConfig
from fedrot.engines.flower.app import client_app, worker_of_process
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.errors import ConfigError
from fedrot.rundir import RunDirectory


def run_ray(config: RunConfig, run: RunDirectory, observer: Observer, *, resume: bool = False) -> RunResult:
    """Run a recipe with `engine.nodes` nodes, each in an actor of Ray that keeps base model and data.

    A node trains its share of the clients in stacked groups. Unless the recipe says otherwise there is one node for
    each GPU, and one for each processor where there is none.

    Raises:
        ConfigError: Ray is not installed.
        FedrotError: as a run's parts do.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "engine.backend = 'ray': the package 'ray' is not installed; pip install 'fedrot[ray]', or leave the key "
            "out"
        )
    from flwr.simulation import run_simulation

    from fedrot.engines.flower.run import run_over

    outcome: list[RunResult | BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            outcome.append(run_over(grid, config, run, observer, resume=resume))
        except BaseException as error:  # Flower reports exceptions of the server only in its log
            outcome.append(error)

    nodes, resources = actors(config)
    for name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.WARNING)
    run_simulation(
        server_app=server,
        client_app=client_app(partial(worker_of_process, trusts_recipe=True, kept=str(run.kept.absolute()))),
        num_supernodes=nodes,
        backend_name="ray",
        backend_config={"client_resources": resources, "init_args": {"include_dashboard": False}},
    )
    if not outcome:
        raise ConfigError(
            "engine.backend = 'ray': Flower's simulation ended without running the server; see its log"
        )
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def actors(config: RunConfig) -> tuple[int, dict[str, Any]]:
    """How many nodes, and the share of this machine that each has; all run at once if there are processors for all."""
    processors, gpus = os.cpu_count() or 1, torch.cuda.device_count() if config.train.device != "cpu" else 0
    nodes = config.engine.nodes or gpus or processors
    if config.federation.clients is not None:
        nodes = min(nodes, config.federation.clients)
    return nodes, {"num_cpus": max(1, processors // nodes), "num_gpus": min(1.0, gpus / nodes)}
