"""A node whose client sends NaN or a wrong shape, or which claims the clients of another, over real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.flower.deployed_runs import Runs

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpus: Path) -> Iterator[Runs]:
    """The second of the two nodes misbehaves."""
    made = Runs(tmp_path_factory.mktemp("deployed"), tiny_model, corpus)
    try:
        made.federation.start_server()
        sound, spoiling = made.federation.folders
        made.federation.start_node(sound)
        made.federation.start_module("tests.flower.misbehaving", spoiling, name="misbehaving")
        yield made
    finally:
        made.federation.stop()


def test_its_updates_are_rejected_with_the_reason_and_the_others_go_on(runs: Runs) -> None:
    process = runs.run("federation.rounds=2", out="run")
    assert process.wait() == 0, process.said
    first, second = runs.records("run")
    for record, why in ((first, "non-finite loss or update"), (second, "expected float32")):
        assert record["client_ids"] == [0, 1, 2]
        assert record["rejected_clients"].keys() == {"3"}
        assert why in record["rejected_clients"]["3"]
        assert record["dropped_clients"] == []
    adapter = load_file(runs.root / "run" / "adapter" / "adapter_model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in adapter.values())


def test_a_node_that_claims_another_ones_clients_is_refused_by_its_key(runs: Runs) -> None:
    runs.federation.server.clients.write_text("node-0 = [0, 1]\nnode-1 = [2]\n", "utf-8")
    process = runs.run("engine.wait=20", out="claims")
    assert process.wait() == 6, process.said
    assert "node 'node-1' says that it hosts client 3, but its key 'node-1' may host [2]" in process.said
    assert not runs.records("claims")
