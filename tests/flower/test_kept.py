"""What a node keeps for its clients: by round, through restarts, and never outside its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedrot.cli import app
from fedrot.engines.flower.deploy.init import init
from fedrot.engines.flower.deploy.kept_runs import delete_runs, kept_runs
from fedrot.engines.flower.kept import Kept
from fedrot.errors import AdapterError, ConfigError

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


def test_an_owner_sees_what_is_kept_of_which_run_and_deletes_one_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    assert kept_runs(folder) == []
    here = Kept(str(folder), "node 'north'")
    for run, client, rounds in (("early", 1, 1), ("late", 0, 2), ("late", 3, 3)):
        for round in range(rounds):
            here.save(run, client, round, round + 1, parts(float(round)))
    for age, name in enumerate(("late", "early")):
        for part in here.folder(name, 1).parent.rglob("*.safetensors"):  # pyright: ignore[reportOptionalMemberAccess]
            os.utime(part, (1e9 - age, 1e9 - age))
    own = here.folder("late", 3)
    assert own is not None
    (own / "adapter").mkdir()
    early, late = kept_runs(folder)
    assert (early.clients, early.round, early.adapters) == ((1,), 1, False)
    assert (late.clients, late.round, late.adapters) == ((0, 3), 3, True)
    assert late.size > early.size > 0
    for wrong in ("../kept", "late", ""):
        with pytest.raises(ConfigError, match="nothing is kept of such a run"):
            delete_runs(folder, [early.name, wrong])
    delete_runs(folder, [late.name])
    assert kept_runs(folder) == [early]
    assert set(here.load("early", 1, 1, STAYS)) == set(STAYS)
    with pytest.raises(AdapterError, match="is not here"):
        here.load("late", 3, 3, STAYS)


def test_the_command_lists_what_is_kept_and_deletes_it_by_its_whole_name(tmp_path: Path) -> None:
    (node,) = init(tmp_path / "fed", 1)
    folder = node / "state" / "kept"
    Kept(str(folder), "node 'north'").save("run", 0, 0, 1, parts(1.0))
    (name,) = (path.name for path in folder.iterdir())
    command = ["deploy", "kept", str(node)]
    assert name in CliRunner().invoke(app, command).stdout
    assert CliRunner().invoke(app, [*command, "--delete", name]).stdout == "nothing is kept\n"
    assert not list(folder.iterdir())
