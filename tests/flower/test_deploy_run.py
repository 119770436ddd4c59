"""Runs over a deployed federation, and what it survives: real processes on the loopback, ended by their own numbers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedrot.cli import app
from fedrot.config import load_config
from fedrot.engines.local import run_local
from fedrot.rundir import RunDirectory
from tests.flower.deployed import Process, children, eventually, secrets_out_of_place
from tests.flower.deployed_runs import Runs

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def ongoing(runs: Runs) -> Iterator[Process]:
    """A run that goes on while tests disturb its nodes; its directory is `ongoing`."""
    with runs.long("ongoing", "engine.deadline=6") as process:
        yield process


def test_a_killed_worker_is_dropped_with_the_signals_name_and_takes_part_again(runs: Runs, ongoing: Process):
    worker = runs.frozen(0)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: "SIGKILL (by hand, or out of memory)" in ongoing.said)
    assert any(record["dropped"] >= 2 for record in runs.records("ongoing"))
    runs.whole_round("ongoing")
    assert runs.supervised(0)["worker_main"] != worker


def test_a_slow_client_is_dropped_at_the_deadline_and_takes_part_again(runs: Runs, ongoing: Process):
    worker = runs.frozen(1)
    try:
        eventually(lambda: runs.last("ongoing")["dropped"] >= 2)
    finally:
        os.kill(worker, signal.SIGCONT)
    runs.whole_round("ongoing")
    assert runs.supervised(1)["worker_main"] == worker


def test_a_killed_supernode_is_dropped_and_comes_back_while_its_worker_stays_warm(
    runs: Runs, ongoing: Process
):
    before = runs.supervised(0)
    worker = runs.frozen(0)
    seen = len(runs.records("ongoing"))
    os.kill(before["supernode_main"], signal.SIGKILL)
    os.kill(worker, signal.SIGCONT)
    eventually(lambda: any(record["dropped"] >= 2 for record in runs.records("ongoing")[seen:]))
    runs.whole_round("ongoing")
    after = runs.supervised(0)
    assert after["worker_main"] == worker
    assert after["supernode_main"] != before["supernode_main"]


def test_a_directory_that_a_run_is_writing_to_is_not_resumed(runs: Runs, ongoing: Process):
    again = runs.submit("--resume", out="ongoing")
    assert again.wait() == 5
    assert "is writing there (running)" in again.said
    assert ongoing.process.poll() is None


def test_a_deployed_run_gives_the_adapter_of_the_local_engine(runs: Runs, tmp_path: Path):
    process = runs.run(out="equal")
    assert process.wait() == 0, process.said
    config = load_config(
        runs.recipe, ["engine.name=local", "federation.group_size=2"]
    )  # as the nodes' clients train
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        local = run_local(config, RunDirectory(tmp_path / "local"))
    finally:
        torch.set_num_threads(threads)
    there = load_file(runs.root / "equal" / "adapter" / "adapter_model.safetensors")
    here = load_file(tmp_path / "local" / "adapter" / "adapter_model.safetensors")
    assert there.keys() == here.keys()
    assert max(float((there[key] - here[key]).abs().max()) for key in here) < 1e-6
    assert [record["accuracy"] for record in runs.records("equal")] == [r["accuracy"] for r in local.records]


def test_two_runs_at_once_do_not_disturb_each_other_and_workers_stay_warm(runs: Runs):
    before = [runs.supervised(node) for node in (0, 1)]
    both = [runs.run("federation.rounds=2", out=name) for name in ("first", "second")]
    assert [process.wait() for process in both] == [0, 0], both[0].said + both[1].said
    assert runs.last("first")["accuracy"] == runs.last("second")["accuracy"]
    assert [runs.supervised(node) for node in (0, 1)] == before


def test_secure_aggregation_over_processes_gives_the_mean_of_the_plain_run(runs: Runs):
    alike = ["federation.rounds=1", "train.optimizer=sgd"]
    both = [
        runs.run(*alike, out="in-the-clear"),
        runs.run(*alike, "privacy.secure_aggregation=true", out="masked"),
    ]
    assert [process.wait() for process in both] == [0, 0], both[0].said + both[1].said
    clear, masked = (
        load_file(runs.root / out / "adapter" / "adapter_model.safetensors")
        for out in ("in-the-clear", "masked")
    )
    bound = runs.last("masked")["secure_rounding"]
    assert 0 < bound < 1e-5
    assert runs.last("masked")["client_ids"] == [0, 1, 2, 3]
    for key, tensor in clear.items():
        assert float((masked[key] - tensor).abs().max()) <= bound + 2.0**-21 * float(tensor.abs().max())


def test_a_node_that_dies_under_masks_costs_a_round_and_no_more(runs: Runs):
    """Two of four clients are fewer than `privacy.secure_threshold` asks for: nothing of them may be unmasked."""
    with runs.long("masked-loss", "engine.deadline=6", "privacy.secure_aggregation=true"):
        seen = len(runs.records("masked-loss"))
        os.kill(runs.frozen(0), signal.SIGKILL)
        eventually(lambda: any(record["clients"] == 0 for record in runs.records("masked-loss")[seen:]))
        eventually(lambda: runs.last("masked-loss")["clients"] == 4)
    numbers = [record["round"] for record in runs.records("masked-loss")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_too_few_nodes_are_waited_for_with_a_message_and_then_named(runs: Runs):
    process = runs.run("federation.clients=6", "engine.wait=20", out="too-few")
    assert process.wait() == 6, process.said
    assert "waiting for nodes: clients " in process.said
    assert (
        "nodes of 6 clients are needed, but none within engine.wait = 20 s hosts clients 4, 5;"
        in process.said
    )


def test_numbers_that_are_none_are_rejected_and_the_state_before_is_kept(runs: Runs):
    process = runs.run("train.optimizer=sgd", "train.lr=1e38", "train.clip=off", out="not-finite")
    assert process.wait() == 6, process.said
    assert "round 1: every client was rejected" in process.said
    assert not runs.records("not-finite")


def test_an_error_of_the_recipe_on_the_server_has_its_own_exit_code_and_words(runs: Runs):
    process = runs.run("task.data=/nowhere/texts.csv", out="wrong-data")
    assert process.wait() == 3
    assert "error: task.data = '/nowhere/texts.csv': no such file" in process.said


def test_status_names_the_nodes_and_how_the_runs_stand(runs: Runs):
    words = ["deploy", "status", str(runs.federation.server_folder)]
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert {node["name"]: node["status"] for node in told["nodes"]} == {
        "node-0": "online",
        "node-1": "online",
    }
    outcomes = {Path(run["out"]).name: run["outcome"] or run["status"] for run in told["runs"]}
    assert (outcomes["equal"], outcomes["wrong-data"]) == ("completed", "failed")
    shown = CliRunner().invoke(app, words).stdout
    assert "node-0" in shown
    assert "completed" in shown


def test_no_secret_is_in_a_run_directory_or_a_log(runs: Runs):
    assert runs.records("equal"), "there are run directories to look at"
    assert not secrets_out_of_place(runs.federation)


def test_an_interrupted_run_is_stopped_and_resumes_after_its_last_round(runs: Runs):
    with runs.long("interrupted") as process:
        process.process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    with runs.federation.control() as interface:
        ended = next(run for run in interface.runs() if run.out.endswith("/interrupted"))
        eventually(lambda: interface.run(ended.id).status == "finished")
        assert interface.run(ended.id).outcome == "stopped"
    runs.goes_on("interrupted")


def test_a_killed_server_app_is_no_success_and_loses_no_round(runs: Runs):
    with runs.long("killed-app") as process:
        assert runs.federation.superlink is not None
        os.kill(children(runs.federation.superlink.process.pid)["serverapp_main"], signal.SIGKILL)
        assert process.wait() == 5
    assert "was ended by SIGKILL" in process.said
    assert "finished rounds are kept" in process.said
    numbers = [record["round"] for record in runs.records("killed-app")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_killed_superlink_loses_no_round_and_the_run_goes_on_once_it_is_back(runs: Runs):
    with runs.long("killed-superlink") as process:
        superlink = runs.federation.superlink
        assert superlink is not None
        os.kill(children(superlink.process.pid)["superlink_main"], signal.SIGKILL)
        assert superlink.wait() == 5
        assert process.wait() == 5
    assert "the server went away" in process.said
    runs.federation.start_server()
    runs.goes_on("killed-superlink")
