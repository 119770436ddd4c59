"""A run that ends, and a node that is to end, while the node is fetching a message; over real processes."""

from __future__ import annotations

import signal

import pytest

from tests.flower.deployed import eventually
from tests.flower.deployed_runs import Runs

pytestmark = pytest.mark.processes


SECOND_NODE = "tests.flower.half_fetched"
"""See `runs`."""


def hold(runs: Runs) -> None:
    """Have the second node stop at its next message, and wait until it has."""
    folder = runs.federation.folders[1]
    (folder / "hold").touch()
    eventually((folder / "held").exists)


def release(runs: Runs) -> None:
    folder = runs.federation.folders[1]
    (folder / "hold").unlink()
    (folder / "held").unlink()


def test_a_run_that_ended_meanwhile_is_dropped_and_the_node_takes_part_in_the_next(runs: Runs) -> None:
    with runs.long("ended"):
        hold(runs)
    release(runs)
    eventually(lambda: "the run has ended" in runs.nodes[1].said)
    process = runs.run("federation.rounds=2", out="next")
    assert process.wait() == 0, process.said
    assert [record["dropped"] for record in runs.records("next")] == [0, 0]


def test_a_node_that_is_told_to_end_meanwhile_ends(runs: Runs) -> None:
    with runs.long("told"):
        hold(runs)
        node = runs.nodes[1].process
        node.send_signal(signal.SIGTERM)
        assert node.wait(60) == 0
