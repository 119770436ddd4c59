"""What clients keep outlasts the processes of their nodes: real ones on the loopback, ended by their own numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fedrot.checkpoint import load_checkpoint
from fedrot.config import load_config
from fedrot.engines.local import run_local
from fedrot.rundir import RunDirectory
from fedrot.server import ServerState
from tests.flower.deployed import children
from tests.flower.deployed_runs import Runs

pytestmark = pytest.mark.processes

PERSONAL = ("method.name=fedsa", "train.optimizer=sgd", "train.lr=0.1", "federation.fraction=0.5")


def state_of(out: Path) -> ServerState:
    stored = load_checkpoint(out / "checkpoint")
    assert stored is not None
    return stored.state


def test_a_killed_server_app_and_restarted_nodes_change_no_number(runs: Runs, tmp_path: Path) -> None:
    with runs.long("personal", *PERSONAL) as process:
        runs.rounds("personal", 3)
        assert runs.federation.superlink is not None
        os.kill(children(runs.federation.superlink.process.pid)["serverapp_main"], signal.SIGKILL)
        assert process.wait() == 5
    for node in runs.nodes:
        node.stop()
    runs.nodes = [runs.federation.start_node(folder) for folder in runs.federation.folders]
    runs.goes_on("personal", *PERSONAL, "output.personal=true")
    record = runs.last("personal")
    assert not {"unevaluated_clients", "unwritten_clients"} & record.keys()
    kept = state_of(runs.root / "personal").apart
    assert kept is not None
    own = [
        path
        for folder in runs.federation.folders
        for path in folder.glob("state/kept/*/*/adapter/*.safetensors")
    ]
    assert [path.parts[-3] for path in sorted(own)] == [
        f"client-{client:06d}" for client in sorted(kept.rounds)
    ]
    config = load_config(RunDirectory(runs.root / "personal").config)
    local = run_local(config, RunDirectory(tmp_path / "local"))
    assert [one["client_ids"] for one in runs.records("personal")] == [
        one["client_ids"] for one in local.records
    ]
    for name in ("accuracy", "local_accuracy", "eval_loss"):
        assert record[name] == pytest.approx(local.records[-1][name], abs=1e-6)
    mine, theirs = (state_of(out).adapter.tensors() for out in (tmp_path / "local", runs.root / "personal"))
    assert max(float((mine[key] - theirs[key]).abs().max()) for key in mine) <= 1e-6
