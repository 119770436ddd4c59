"""A node that dies between announcing its reply and delivering it, over real processes."""

from __future__ import annotations

import pytest

from tests.flower.deployed import eventually
from tests.flower.deployed_runs import Runs

pytestmark = pytest.mark.processes


SECOND_NODE = "tests.flower.cut_off"
"""See `runs`."""


def test_it_costs_its_clients_the_round_which_ends_at_the_deadline(runs: Runs) -> None:
    told = "node 'node-1': its answer was announced, but not all of it arrived in time"
    with runs.long("cut-off", "engine.deadline=6"):
        (runs.federation.folders[1] / "cut-off").touch()
        seen = len(runs.records("cut-off"))
        # Flower alone would hold the round for 180 seconds.
        eventually(lambda: any(record["dropped"] for record in runs.records("cut-off")[seen:]), seconds=120)
        record = next(record for record in runs.records("cut-off")[seen:] if record["dropped"])
        assert record["client_ids"] == [0, 1]
        assert record["lost_clients"] == {"2": told, "3": told}
        assert record["seconds"] < 60
        runs.whole_round("cut-off")
