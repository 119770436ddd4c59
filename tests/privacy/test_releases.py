"""The list of releases: what is on disk, and when."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedrot.errors import OutputError
from fedrot.privacy import Releases


def test_every_release_has_a_line_that_is_on_disk_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, original = tmp_path / "releases.jsonl", list[str](), os.fsync

    def fsync(handle: int) -> None:
        original(handle)
        synced.append(path.read_text())

    monkeypatch.setattr(os, "fsync", fsync)
    releases = Releases(path)
    assert not path.exists(), "nothing was released"
    releases.begin(1)
    releases.begin(2)
    assert synced[0] == '{"round": 1}\n'
    assert synced[-1] == path.read_text() == '{"round": 1}\n{"round": 2}\n'
    again = Releases(path)
    again.begin(2)
    assert (again.rounds, again.repeated) == ([1, 2, 2], [2])
    assert Releases(path).rounds == [1, 2, 2]


def test_a_torn_last_line_is_of_a_release_that_had_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "releases.jsonl"
    path.write_text('{"round": 1}\n{"round": 1')
    releases = Releases(path)
    assert releases.rounds == [1]
    releases.begin(2)
    releases.begin(3)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("line", ["{}", "round 2", "[2]", '{"round": "2"}', '{"round": 0}', ""])
def test_a_list_with_anything_else_in_it_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "releases.jsonl"
    path.write_text(f'{{"round": 1}}\n{line}\n{{"round": 3}}\n')
    with pytest.raises(OutputError, match=r"releases.jsonl', line 2: .* restore the file from a copy"):
        Releases(path)


def test_what_cannot_be_counted_is_not_released(tmp_path: Path) -> None:
    releases = Releases(tmp_path / "missing" / "releases.jsonl")
    with pytest.raises(OutputError, match=r"cannot be written .*free space, then --resume"):
        releases.begin(1)
    assert releases.rounds == []
