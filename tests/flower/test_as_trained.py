"""Diagnostics over Flower: what the local engine measures, from adapters that travel only if the recipe asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedrot.config import RunConfig
from fedrot.engines.flower.messages import FACTS, HELLO, TRAIN, Hello, written
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.node_data import Local
from fedrot.engines.flower.run import run_flower
from fedrot.engines.flower.versions import version
from fedrot.engines.flower.worker import Worker
from fedrot.engines.local import run_local
from fedrot.engines.setup import prepare
from fedrot.errors import ConfigError
from fedrot.rundir import RunDirectory
from tests.flower.federation import asked_to_train, disturbed_run, round_of

Make = Callable[..., RunConfig]
Change = Callable[[dict[str, Array]], dict[str, Array]]

OTHERWISE = {"bytes_up", "bytes_down", "bytes_diagnostics", "seconds", "training_seconds"}
"""Keys of a record in which the engines may differ."""
MIXED = {"lora__ranks": {"1": 0.5, "2": 0.5}}


def diagnosed(recipe: Make, **options: Any) -> RunConfig:
    given = {"engine__nodes": 4, "federation__group_size": 1, "output__diagnostics": True}
    return recipe(**{"engine__name": "flower", **given, **options})


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """What a record holds, by the path to it."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {} if name.removeprefix("/") in OTHERWISE else {name: value}
    return {k: v for key, one in value.items() for k, v in numbers(one, f"{name}/{key}").items()}


@pytest.mark.parametrize(
    "options",
    [
        {"method": {"name": "fedrot", "path": "geodesic"}, "federation__rounds": 3},
        {"method": {"name": "fedrot", "anchor": "joint"}, **MIXED},
        {"method": {"name": "rescale"}, **MIXED},
    ],
    ids=["geodesic", "joint, mixed ranks", "rescale, mixed ranks"],
)
def test_all_that_is_measured_is_what_the_local_engine_measures(
    recipe: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = diagnosed(recipe, federation__evaluate_every=3, train__local_steps=2, **options)
    local = run_local(config, RunDirectory(tmp_path / "local"))
    flower = run_flower(config, RunDirectory(tmp_path / "flower"))
    for mine, theirs in zip(local.records, flower.records, strict=True):
        expected, found = numbers(mine), numbers(theirs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            number = isinstance(value, float)
            assert found[name] == (pytest.approx(value, rel=1e-6, abs=1e-9) if number else value), name
    last = flower.records[-1]
    assert last["aggregation_error_unaligned"] != last["aggregation_error"]
    assert ("diagnostics" in last) == (config.method.name == "fedrot")


def test_a_node_shows_what_it_trained_only_to_a_recipe_that_says_so(recipe: Make) -> None:
    federation = prepare(diagnosed(recipe))
    worker = Worker(NodeSettings("one", (0,), trusts_recipe=True), Local.of(federation))
    config, sent = federation.config, list[set[str]]()
    for on in (True, False, True):
        asked = config.model_copy(update={"output": config.output.model_copy(update={"diagnostics": on})})
        sent.append(set(worker.handle(TRAIN, asked_to_train(federation, asked, 1))))
    usual = {"metrics-0", "upload-0"}
    assert sent == [usual | {"trained-0"}, usual, usual | {"trained-0"}]


def test_bytes_that_diagnostics_alone_need_are_counted_apart(recipe: Make, tmp_path: Path) -> None:
    sent = {"upload": 0, "trained": 0}

    def listen(reply: Message) -> Message:
        for name, record in reply.content.array_records.items():
            sent[name.partition("-")[0]] += sum(len(array.data) for array in record.values())
        return reply

    config = diagnosed(recipe, federation__rounds=1)
    (record,) = disturbed_run(config, tmp_path / "run", listen).records
    assert record["bytes_up"] == sent["upload"] > sent["trained"] == record["bytes_diagnostics"] > 0


def first(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda arrays: {
        key: Array(change(array.numpy())) if place == 0 else array
        for place, (key, array) in enumerate(arrays.items())
    }


def test_a_record_that_is_not_what_was_trained_rejects_its_client(recipe: Make, tmp_path: Path) -> None:
    spoiled: dict[int, Change | None] = {
        0: None,
        1: first(lambda x: x * math.nan),
        2: first(lambda x: x[:, :-1].copy()),
        3: lambda arrays: {key: array for key, array in arrays.items() if key != "rotation"},
        4: lambda arrays: {**arrays, "rotation": Array(np.full_like(arrays["rotation"].numpy(), math.inf))},
        5: lambda arrays: {**arrays, "head/other": Array(np.zeros(3, np.float32))},
    }

    def disturb(reply: Message) -> Message:
        for client, change in spoiled.items() if round_of(reply) == 2 else ():
            name = f"trained-{client}"
            if name in reply.content.array_records:
                record = reply.content.array_records.pop(name)
                if change is not None:
                    reply.content[name] = ArrayRecord(change(dict(record)))
        return reply

    config = diagnosed(recipe, federation__clients=7, federation__evaluate_every=2)
    result = disturbed_run(config, tmp_path / "run", disturb)
    record = result.records[-1]
    assert record["client_ids"] == [6]
    expected = ["no arrays 'trained-0'", "non-finite", "expected float32", "missing 'rotation'"]
    expected += ["non-finite", "unexpected 'head/other'"]
    for client, said in enumerate(expected):
        assert said in record["rejected_clients"][str(client)]


def test_a_node_refuses_to_show_what_privacy_hides(recipe: Make) -> None:
    worker = Worker(NodeSettings("one", (0,), trusts_recipe=True))
    for hidden, said in (
        ({"privacy__mechanism": "local", "privacy__noise_source": "system"}, "mechanism = 'local'"),
        ({"privacy__secure_aggregation": True}, "secure_aggregation = true"),
    ):
        hello = Hello(version(), diagnosed(recipe, **hidden).to_toml(), ["code", "money", "sport"])
        with pytest.raises(ConfigError, match=f"node 'one': output.diagnostics = true .* privacy.{said}"):
            worker.handle(HELLO, RecordDict({FACTS: written(hello)}))
