"""Flower's simulation on Ray: FedAvg of a PEFT adapter, an actor for each processor.

    python benchmarks/peers/flower_sim.py JOB OUT [--reload]

Where only some clients take part, Flower draws them itself.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from common import Clock, Job, load_model
from flower_client import app
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import get_peft_model_state_dict


def main(job: Job, out: Path, reload: bool) -> None:
    clock, server = Clock(), ServerApp()
    os.environ["PEERS_JOB"] = str(job.folder)  # actors inherit the environment
    if reload:
        os.environ["PEERS_RELOAD"] = "1"

    def after_round(round: int, arrays: ArrayRecord) -> MetricRecord:
        clock.mark()
        if round == job.rounds:
            sent = sum(len(array.data) for array in arrays.values()) * job.cohort
            clock.write(out, dict(arrays.to_torch_state_dict()), bytes_up=sent)
        return MetricRecord()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        del context
        random.seed(job.seed)
        FedAvg(fraction_train=job.cohort / job.clients, fraction_evaluate=0.0).start(
            grid=grid,
            initial_arrays=ArrayRecord(get_peft_model_state_dict(load_model(job))),
            num_rounds=job.rounds,
            evaluate_fn=after_round,
        )

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=job.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main(Job(Path(sys.argv[1])), Path(sys.argv[2]), "--reload" in sys.argv)
