"""A node that sends NaN or a wrong shape, raises, or claims the clients of another, over real processes."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.flower.deployed_runs import Runs

pytestmark = pytest.mark.processes


SECOND_NODE = "tests.flower.misbehaving"
"""See `runs`."""


def test_what_it_does_costs_its_clients_the_round_with_the_reason_and_the_others_go_on(runs: Runs) -> None:
    process = runs.run("federation.rounds=4", out="run")
    assert process.wait() == 0, process.said
    first, second, third, fourth = runs.records("run")
    for record, why in ((first, "non-finite loss or update"), (second, "expected float32")):
        assert record["client_ids"] == [0, 1, 2]
        assert record["rejected_clients"].keys() == {"3"}
        assert why in record["rejected_clients"]["3"]
        assert record["dropped_clients"] == []
    assert third["client_ids"] == [0, 1]
    told = "node 'node-1': KeyError in the client; the node's log has the details"
    assert third["lost_clients"] == {"2": told, "3": told}
    assert fourth["client_ids"] == [0, 1, 2, 3], "the process stayed, and takes part again"
    assert "patient" not in process.said
    adapter = load_file(runs.root / "run" / "adapter" / "adapter_model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in adapter.values())


def test_a_node_that_claims_another_ones_clients_is_refused_by_its_key(runs: Runs) -> None:
    runs.federation.server.clients.write_text("node-0 = [0, 1]\nnode-1 = [2]\n", "utf-8")
    process = runs.run("engine.wait=20", out="claims")
    assert process.wait() == 6, process.said
    assert "node 'node-1' says that it hosts client 3, but its key 'node-1' may host [2]" in process.said
    assert not runs.records("claims")
