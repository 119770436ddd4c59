"""A node's owner has the last word on what its clients spend of their privacy."""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fedrot.config import PrivacyConfig
from fedrot.engines.flower import budget as module
from fedrot.engines.flower.budget import Budget
from fedrot.engines.flower.node import NodeSettings, load_node
from fedrot.errors import ConfigError, OutputError
from fedrot.privacy import epsilon_of, noise_for

NODE = 'name = "node-0"\nclients = [0, 2]\nsuperlink = "fed.example.org:8000"\n'


def local(**keys: object) -> PrivacyConfig:
    return PrivacyConfig.model_validate({"mechanism": "local", **keys})


def budget(folder: Path, epsilon: float | None = 8.0) -> Budget:
    line = "" if epsilon is None else f"epsilon = {epsilon}\n"
    (folder / "node.toml").write_text(NODE + line, "utf-8")
    return Budget(load_node(folder).settings)


def test_a_client_sends_as_many_messages_as_its_owner_allows_and_no_more(tmp_path: Path) -> None:
    noise = noise_for(8.0, 1e-5, rounds=5) * (1 + 1e-9)
    for _ in range(5):
        budget(tmp_path).spend([0, 2], local(noise=noise))  # a node that is started anew each time
    before = (tmp_path / "state" / "privacy.json").read_text()
    with pytest.raises(
        ConfigError, match=r"one more message of client 0 .* its owner allows 8 \(node.toml\)"
    ):
        budget(tmp_path).spend([0], local(noise=noise))
    assert (tmp_path / "state" / "privacy.json").read_text() == before, "what is not sent is not spent"
    with pytest.raises(ConfigError, match="client 2"):
        budget(tmp_path).spend([2], local(noise=noise))


def test_messages_of_unequal_noise_add_up(tmp_path: Path) -> None:
    for noise in (3.0, 7.0, 4.0):
        budget(tmp_path, 100.0).spend([0], local(noise=noise))
    total = json.loads((tmp_path / "state" / "privacy.json").read_text())["0"]
    assert total == pytest.approx(sum((2 / noise) ** 2 for noise in (3.0, 7.0, 4.0)))
    exact = epsilon_of(math.sqrt(total), 1e-5)
    with pytest.raises(ConfigError, match="one more message"):
        budget(tmp_path, exact).spend([0], local(noise=1e6))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"mechanism": "central"}, "privacy.mechanism = 'central'"),
        ({"mechanism": "none"}, "privacy.mechanism = 'none'"),
        ({"noise": 0.0}, "privacy.noise = 0.0"),
        ({"noise_source": "seed"}, "privacy.noise_source = 'seed'"),
    ],
)
def test_a_recipe_that_protects_too_late_is_refused_before_anything_is_loaded(
    tmp_path: Path, keys: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        budget(tmp_path).check(local(**keys))
    assert named in str(caught.value)
    budget(tmp_path, None).check(local(**keys))


@pytest.mark.parametrize("damage", ["{", '{"0": NaN}', '{"0": -5.0}', '{"0": Infinity}'])
def test_a_damaged_count_stops_the_node_rather_than_starting_from_zero(tmp_path: Path, damage: str) -> None:
    budget(tmp_path).spend([0], local(noise=100.0))
    (tmp_path / "state" / "privacy.json").write_text(damage, "utf-8")
    with pytest.raises(OutputError, match="restore the file"):
        budget(tmp_path).spend([0], local(noise=100.0))


def test_file_and_folder_are_on_disk_before_a_client_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, bool, int]] = []

    def fsync(handle: int) -> None:
        found = os.fstat(handle)
        flushed.append((found.st_ino, stat.S_ISDIR(found.st_mode), found.st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    budget(tmp_path).spend([0], local(noise=100.0))
    ledger = tmp_path / "state" / "privacy.json"
    file, folder = flushed
    assert file == (ledger.stat().st_ino, False, ledger.stat().st_size), "all of it, before it has its name"
    assert folder[:2] == (ledger.parent.stat().st_ino, True), "and then its name"


def test_processes_of_one_node_count_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower by itself starts a process for every message."""
    write = module.write_whole

    def slowly(*given: Any) -> None:
        time.sleep(0.05)
        write(*given)

    monkeypatch.setattr(module, "write_whole", slowly)
    budgets = [budget(tmp_path) for _ in range(6)]
    threads = [threading.Thread(target=one.spend, args=([0], local(noise=100.0))) for one in budgets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = json.loads((tmp_path / "state" / "privacy.json").read_text())["0"]
    assert total == pytest.approx(6 * (2 / 100.0) ** 2)


def test_without_a_budget_nothing_is_counted(tmp_path: Path) -> None:
    budget(tmp_path, None).spend([0], local(noise=0.1))
    assert not (tmp_path / "state").exists()
    Budget(NodeSettings("one", (0,))).spend([0], PrivacyConfig())


def test_an_owner_with_a_budget_hosts_one_client_on_a_file_of_its_own(tmp_path: Path) -> None:
    """Among several the recipe's seed deals the rows, and each client has its own budget."""
    (tmp_path / "mine.csv").write_text("text,label\na,b\n", "utf-8")
    for clients, fits in (("[0]", True), ("[0, 2]", False)):
        text = NODE.replace("[0, 2]", clients) + 'epsilon = 8.0\ndata = "mine.csv"\n'
        (tmp_path / "node.toml").write_text(text, "utf-8")
        if fits:
            assert load_node(tmp_path).settings.epsilon == 8.0
        else:
            with pytest.raises(ConfigError, match="epsilon = 8 and data for 2 clients"):
                load_node(tmp_path)
