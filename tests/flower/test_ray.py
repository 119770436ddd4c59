"""Nodes in Ray's actors: processes of their own, the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from fedrot.config import RunConfig
from fedrot.engines.flower.ray import actors
from fedrot.engines.run import run

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("asked", "gpus", "processors", "expected"),
    [
        (None, 0, 8, (4, 2, 0.0)),
        (None, 2, 8, (2, 4, 1.0)),
        (3, 2, 8, (3, 2, 2 / 3)),
        (2, 0, 1, (2, 1, 0.0)),
    ],
    ids=["clients are fewer than processors", "one for each GPU", "GPUs are shared", "one processor"],
)
def test_there_is_an_actor_for_each_gpu_or_else_for_each_processor(
    recipe: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    gpus: int,
    processors: int,
    expected: tuple[int, int, float],
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    nodes, share = actors(recipe(engine__nodes=asked, train__device="auto"))
    assert (nodes, share["num_cpus"], share["num_gpus"]) == expected


def test_nodes_in_processes_of_their_own_give_the_adapter_of_the_local_engine(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = recipe(federation__group_size=1, federation__rounds=3, train__batch_size=2)
    local = run(config, out=tmp_path / "local")
    (tmp_path / "recipe.toml").write_text(config.to_toml(), "utf-8")
    command = [sys.executable, "-m", "fedrot", "run", str(tmp_path / "recipe.toml"), "--engine", "flower"]
    command += ["--set", "engine.backend=ray", "--set", "engine.nodes=2", "--out", str(tmp_path / "ray")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines()]
    assert [record["client_ids"] for record in records] == [[0, 1, 2, 3]] * 3
    mine = safetensors.torch.load_file(tmp_path / "local" / "adapter" / "adapter_model.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "ray" / "adapter" / "adapter_model.safetensors")
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert float((tensor - theirs[key]).abs().max()) <= 1e-6
    assert local.summary["final"]["accuracy"] == records[-1]["accuracy"]


def test_a_mistake_in_the_recipe_is_an_error_with_the_exit_code_of_its_kind(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = recipe(federation__clients=3, engine={"name": "flower", "backend": "ray", "nodes": 1})
    broken = config.model_copy(
        update={"task": config.task.model_copy(update={"data": str(tmp_path / "no.csv")})}
    )
    (tmp_path / "recipe.toml").write_text(broken.to_toml(), "utf-8")
    command = [
        sys.executable,
        "-m",
        "fedrot",
        "run",
        str(tmp_path / "recipe.toml"),
        "--out",
        str(tmp_path / "ray"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no such file" in done.stderr
    assert not (tmp_path / "ray").exists()
