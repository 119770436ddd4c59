"""What a node keeps for its clients: by round, through restarts, and never outside its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedrot.engines.flower.kept import Kept
from fedrot.errors import AdapterError

STAYS = {"sites/q/b": torch.zeros(4, 2), "head/score": torch.zeros(3)}


def parts(value: float) -> dict[str, torch.Tensor]:
    return {"sites/q/b": torch.full((4, 2), value), "head/score": torch.full((3,), value)}


@pytest.fixture(params=["folder", "memory"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    return Kept(str(tmp_path / "kept") if request.param == "folder" else None, "node 'north'")


def test_a_client_goes_on_from_the_round_that_is_asked_for(kept: Kept) -> None:
    assert kept.load("run", 1, 0, STAYS) == {}
    kept.save("run", 1, 0, 1, parts(1.0))
    kept.save("run", 1, 1, 2, parts(2.0))
    for round in (1, 2):
        found = kept.load("run", 1, round, STAYS)
        assert list(found) == ["sites/q/b", "head/score"]
        assert all(bool((tensor == round).all()) for tensor in found.values())
    for run, client in (("run", 2), ("another", 1)):
        with pytest.raises(
            AdapterError, match=rf"what client {client} kept of round 2 of this run is not here"
        ):
            kept.load(run, client, 2, STAYS)


def test_rounds_that_were_not_accepted_and_those_no_checkpoint_needs_are_dropped(kept: Kept) -> None:
    for start, round in ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5)):
        kept.save("run", 0, start, round, parts(round))
    there = []
    for round in range(1, 6):
        try:
            kept.load("run", 0, round, STAYS)
        except AdapterError:
            continue
        there.append(round)
    assert there == [2, 4, 5]


def test_parts_outlast_the_process_in_files_of_the_folder_whatever_the_run_is_called(tmp_path: Path) -> None:
    folder, run = tmp_path / "state" / "kept", "../../../elsewhere/\x00run"
    Kept(str(folder), "node 'north'").save(run, 3, 0, 7, parts(7.0))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.relative_to(folder).parts[1:] for path in files] == [
        ("client-000003", "round-000007.safetensors")
    ]
    again = Kept(str(folder), "node 'north'").load(run, 3, 7, STAYS)
    assert bool((again["sites/q/b"] == 7).all())


def test_parts_of_another_rank_or_torn_ones_are_refused(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path), "node 'north'")
    kept.save("run", 0, 0, 1, {"sites/q/b": torch.zeros(4, 1)})
    with pytest.raises(
        AdapterError, match=r"does not fit what the recipe leaves with it, the first at 'head/score'"
    ):
        kept.load("run", 0, 1, STAYS)
    with pytest.raises(AdapterError, match="has the recipe's method or the node's rank changed"):
        kept.load("run", 0, 1, {})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AdapterError, match="cannot be read"):
        kept.load("run", 0, 1, STAYS)
