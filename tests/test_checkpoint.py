"""A checkpoint is whole or absent, damage is noticed, and nothing already won is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedrot.checkpoint import load_checkpoint, save_checkpoint
from fedrot.core import Adapter, Factors
from fedrot.errors import OutputError
from fedrot.methods import MethodState
from fedrot.server import ServerState


def state(round: int) -> ServerState:
    draw = torch.Generator().manual_seed(round)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def adapter() -> Adapter:
        sites = {f"layer.{i}.query": Factors(random(2, 5), random(4, 2)) for i in (0, 2, 10)}
        return Adapter(sites, {"head.weight": random(3, 4)}, scale=2.0)

    method = MethodState({"momentum": random(3).double()}, {"count": 0.1 * round})
    return ServerState(round, adapter(), (adapter(),), method)


def assert_same(one: ServerState, other: ServerState) -> None:
    assert one.round == other.round
    assert one.method.numbers == other.method.numbers
    for mine, theirs in zip((one.adapter, *one.history), (other.adapter, *other.history), strict=True):
        assert list(mine.sites) == list(theirs.sites)
        assert mine.scale == theirs.scale
        for key, tensor in mine.tensors().items():
            assert torch.equal(tensor, theirs.tensors()[key])
    for name, tensor in one.method.tensors.items():
        assert torch.equal(tensor, other.method.tensors[name])
        assert tensor.dtype == other.method.tensors[name].dtype


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(3), {"round": 3, "loss": 0.1})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert_same(found.state, state(3))
    assert found.record == {"round": 3, "loss": 0.1}
    assert found.notes == ()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "absent") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for round in range(1, 6):
        save_checkpoint(tmp_path, state(round), {"round": round}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000004", "round-000005"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(tmp_path: Path, file: str, damage: str) -> None:
    save_checkpoint(tmp_path, state(1), {"round": 1})
    newest = save_checkpoint(tmp_path, state(2), {"round": 2}) / file
    blob = bytearray(newest.read_bytes())
    if damage == "delete":
        newest.unlink()
    else:
        blob[-9] ^= 1
        newest.write_bytes(bytes(blob[:-20]) if damage == "truncate" else bytes(blob))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert_same(found.state, state(1))
    assert "round-000002" in found.notes[0]
    assert "damaged" in found.notes[0]


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    (save_checkpoint(tmp_path, state(1), {}) / "state.json").write_text("{")
    with pytest.raises(OutputError, match=r"every checkpoint is damaged.*round-000001"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    save_checkpoint(tmp_path, state(1), {"round": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if step == "fsync" else (Path, "rename", full)))
        with pytest.raises(
            OutputError, match=r"round 2 cannot be written.*No space left.*kept: round-000001.*--resume"
        ):
            save_checkpoint(tmp_path, state(2), {"round": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert_same(found.state, state(1))


def test_a_partial_directory_is_never_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), {"round": 1})
    (tmp_path / ".round-000002.part").mkdir()
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state.round == 1
    save_checkpoint(tmp_path, state(2), {"round": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000001", "round-000002"]
