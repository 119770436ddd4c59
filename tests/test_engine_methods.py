"""Every registered method in whole runs: what it leaves behind is what was evaluated, and a resume changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import fedrot
from fedrot.checkpoint import load_checkpoint
from fedrot.config import RunConfig
from fedrot.engines.export import export
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run
from fedrot.engines.setup import Federation, prepare
from fedrot.evaluate import predict
from fedrot.methods import MethodState
from fedrot.tasks import metrics

Make = Callable[..., RunConfig]
CLOCK = {"seconds", "training_seconds"}


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def ours(federation: Federation, adapter: fedrot.Adapter) -> torch.Tensor:
    return predict(federation.crew, federation.objective, adapter, federation.test.data, batch=16)


def in_peft(federation: Federation, adapter: Path) -> torch.Tensor:
    """Logits of the test split from PEFT's own implementation."""
    from peft import PeftModel

    data = federation.test.data
    model = PeftModel.from_pretrained(fedrot.load_base_for(adapter), str(adapter)).eval()
    with torch.no_grad():
        return model(**data.batch(torch.arange(len(data))).inputs).logits


@pytest.mark.parametrize("method", list(fedrot.methods()))
def test_every_method_runs_and_its_adapter_gives_our_logits_in_peft(
    recipe: Make, tmp_path: Path, method: str
) -> None:
    config = recipe(method={"name": method}, federation__rounds=3)
    result = run(config, out=tmp_path / "run")
    federation = prepare(config)
    law = fedrot.methods()[method].laws
    last = result.records[-1]
    assert all(math.isfinite(value) for value in last.values() if isinstance(value, float))
    assert (last["aggregation_error_relative"] < 1e-5) == law.exact, "exact means exact, residual included"
    assert ("residual_rank" in last) == law.residual
    expected = ours(federation, result.adapter)
    torch.testing.assert_close(in_peft(federation, tmp_path / "run" / "adapter"), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, ours(federation, federation.initial), atol=1e-3), (
        "something was learnt"
    )
    if not law.personal:
        scores = metrics(expected, federation.test.data.labels)
        assert scores["accuracy"] == last["accuracy"]
        assert scores["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert result.summary["final"]["local_accuracy"] == last["local_accuracy"]


def residual_run(recipe: Make, out: Path, **options: Any) -> RunResult:
    return run(recipe(method={"name": "fedex"}, federation__rounds=5, **options), out=out)


def test_a_residual_grows_to_the_layers_rank_and_no_further(recipe: Make, tmp_path: Path) -> None:
    result = residual_run(recipe, tmp_path / "run")
    ranks = [record["residual_rank"] for record in result.records]
    assert ranks == [8, 16, 24, 32, 32], "four clients of rank 2; layers 32 wide"
    assert all(record["residual_lost"] == 0 for record in result.records)
    assert all(record["aggregation_error_relative"] < 1e-5 for record in result.records)


def test_a_bounded_residual_says_what_it_lost(recipe: Make, tmp_path: Path) -> None:
    result = residual_run(recipe, tmp_path / "run", lora__residual_rank=4)
    assert [record["residual_rank"] for record in result.records] == [4] * 5
    for record in result.records:
        assert 1e-4 < record["residual_lost"] < 1
        assert record["aggregation_error_relative"] > 1e-5
    federation = prepare(result_config(tmp_path / "run"))
    torch.testing.assert_close(
        in_peft(federation, tmp_path / "run" / "adapter"), ours(federation, result.adapter), rtol=0, atol=1e-5
    )


def result_config(directory: Path) -> RunConfig:
    from fedrot.config import load_config

    return load_config(directory / "config.toml")


def test_residuals_travel_as_increments_only_to_those_who_hold_the_rest(recipe: Make, tmp_path: Path) -> None:
    every = residual_run(recipe, tmp_path / "every").records
    some = residual_run(
        recipe, tmp_path / "some", federation__fraction=0.99
    ).records  # all four, but not by rule
    down = [record["bytes_down"] for record in every]
    assert down[1] == pytest.approx(down[2], rel=0.01), "rank 8 each round"
    assert [record["bytes_up"] for record in every] == [record["bytes_up"] for record in some]
    assert some[1]["bytes_down"] == pytest.approx(down[1], rel=0.01), "one increment is all there is"
    assert some[2]["bytes_down"] > 1.3 * down[2]


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_holds_the_accumulated_residual(recipe: Make, tmp_path: Path, merge: bool) -> None:
    from fedrot.model import PooledClassifier

    result = residual_run(recipe, tmp_path / "run")
    federation = prepare(result_config(tmp_path / "run"))
    expected = ours(federation, result.adapter)
    out = export(tmp_path / "run", tmp_path / "out", merge=merge)
    if merge:
        data = federation.test.data
        with torch.no_grad():
            inputs = data.batch(torch.arange(len(data))).inputs
            found = PooledClassifier.from_pretrained(out).eval()(**inputs).logits
    else:
        found = in_peft(federation, out)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class StopAfter(Observer):
    """Interrupts a run once round `number` is saved."""

    def __init__(self, number: int) -> None:
        self.number = number

    def finished(self, record: Mapping[str, Any]) -> None:
        if record["round"] == self.number:
            raise KeyboardInterrupt


VARIETY: dict[str, dict[str, Any]] = {
    "residual": {"method": {"name": "fedex"}},
    "bounded residual": {"method": {"name": "fedex"}, "lora__residual_rank": 5},
    "fresh factors": {"method": {"name": "flora"}, "federation__fraction": 0.75},
    "personal parts": {"method": {"name": "fedsa"}, "federation__fraction": 0.5},
    "stale, dropped and mixed": {
        "federation__stale": 0.5,
        "federation__stale_rounds": 2,
        "federation__stale_weight": 0.5,
        "federation__dropout": 0.4,
        "lora__ranks": [1, 2, 1, 2],
        "method__reference": "two-back",
        "train__prox": 0.1,
    },
    "turned frames and moments": {
        "method": {"name": "flexlora"},
        "server": {"optimizer": "adam"},
        "lora__ranks": [1, 2, 2, 1],
        "federation__dropout": 0.2,
    },
    "unequal ranks of sites": {"method": {"name": "florist"}, "server": {"optimizer": "avgm", "lr": 0.5}},
    "residual and moments": {"method": {"name": "fedex"}, "server": {"optimizer": "yogi"}},
    "personal, stale and mixed": {
        "method": {"name": "fedsa"},
        "federation__stale": 0.5,
        "federation__dropout": 0.3,
        "lora__ranks": {"1": 0.5, "2": 0.5},
    },
}


@pytest.mark.parametrize("options", list(VARIETY.values()), ids=list(VARIETY))
def test_resume_is_to_the_bit_and_group_size_changes_nothing(
    recipe: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {**options, "federation__rounds": 3, "train__optimizer": "sgd", "train__lr": 0.1}
    config = recipe(**options)
    whole = run(config, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, out=tmp_path / "part", observer=StopAfter(2))
    run(config, out=tmp_path / "part", resume=True)
    stored = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert untimed(stored) == untimed(whole.records)
    ends = [load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "part")]
    states = [end.state for end in ends if end is not None]
    for name in ("adapter", "history", "personal", "change", "method", "optimizer"):
        assert same(getattr(states[0], name), getattr(states[1], name)), name
    apart = run(recipe(**options, federation__group_size=2), out=tmp_path / "apart")
    for key, tensor in whole.adapter.tensors().items():
        if not key.startswith("residual/"):
            torch.testing.assert_close(apart.adapter.tensors()[key], tensor, rtol=1e-4, atol=1e-5)
    for site, f in whole.adapter.residual.items():
        other = apart.adapter.residual[site]
        torch.testing.assert_close(other.b @ other.a, f.b @ f.a, rtol=1e-3, atol=1e-5)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, whatever holds the tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, fedrot.Adapter):
        return same(one.tensors(), other.tensors())
    if isinstance(one, fedrot.Factors):
        return torch.equal(one.a, other.a) and torch.equal(one.b, other.b)
    if isinstance(one, MethodState):
        return same(one.tensors, other.tensors) and one.numbers == other.numbers
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------------------------------------- personal parts


def test_personal_parts_come_back_to_their_client_and_no_other(recipe: Make, tmp_path: Path) -> None:
    config = recipe(method={"name": "fedsa"}, federation__rounds=3, output__personal=True)
    result = run(config, out=tmp_path / "run")
    kept = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert kept is not None
    state = kept.state
    assert sorted(state.personal) == [0, 1, 2, 3]
    site = next(iter(state.adapter.sites))
    own = [state.personal[client][f"sites/{site}/b"] for client in range(4)]
    assert not torch.equal(own[0], own[1])
    assert not state.adapter.sites[site].b.any(), "the server never sees b"
    federation = prepare(config)
    each = []
    for client in range(4):
        directory = tmp_path / "run" / "personal" / f"client-{client:03d}"
        logits = in_peft(federation, directory)
        each.append(metrics(logits, federation.test.data.labels)["accuracy"])
    weights = torch.tensor(federation.weights)
    mean = float((weights * torch.tensor(each)).sum() / weights.sum())
    assert result.records[-1]["accuracy"] == pytest.approx(mean, abs=1e-6)
    card = json.loads((tmp_path / "run" / "adapter" / "fedrot.json").read_text())
    assert "no client's own" in card["note"]
    mixed = sum(weights[c] * own[c] for c in range(4)) / weights.sum()
    torch.testing.assert_close(result.adapter.sites[site].b, mixed)


def test_what_stays_with_the_clients_is_not_sent(recipe: Make, tmp_path: Path) -> None:
    from fedrot.wire import encode

    result = run(recipe(method={"name": "fedsa"}), out=tmp_path / "run")
    half = len(encode(result.adapter, b=False, head=False))
    whole = len(encode(result.adapter))
    assert half < whole / 2
    assert [record["bytes_up"] for record in result.records] == [4 * half] * 2
    assert [record["bytes_down"] for record in result.records] == [4 * whole, 4 * half]


def test_local_accuracy_is_what_each_client_sees_on_its_own_mix(recipe: Make, tmp_path: Path) -> None:
    config = recipe(partition={"kind": "dirichlet", "alpha": 0.3, "min_size": 4})
    result = run(config, out=tmp_path / "run")
    federation = prepare(config)
    labels = federation.test.data.labels
    right = (ours(federation, result.adapter).argmax(-1) == labels).double()
    counts = federation.label_counts().double()
    expected = 0.0
    for client, weight in enumerate(federation.weights):
        share = counts[client] / counts[client].sum()
        of_example = share[labels] / torch.bincount(labels)[labels]
        expected += weight * float((of_example * right).sum())
    found = result.records[-1]["local_accuracy"]
    assert found == pytest.approx(expected / sum(federation.weights), abs=1e-9)
    assert found != result.records[-1]["accuracy"]


# ------------------------------------------------------------------------------------------- optimisers of the server


def test_momentum_free_averaging_at_rate_one_is_the_method_itself(recipe: Make, tmp_path: Path) -> None:
    plain = run(recipe(), out=tmp_path / "plain")
    server = {"optimizer": "avgm", "momentum": 0.0, "lr": 1.0}
    same_run = run(recipe(server=server), out=tmp_path / "same")
    for key, tensor in plain.adapter.tensors().items():
        torch.testing.assert_close(same_run.adapter.tensors()[key], tensor, rtol=1e-5, atol=1e-7)
    assert same_run.records[-1]["accuracy"] == plain.records[-1]["accuracy"]


@pytest.mark.parametrize("optimizer", ["avgm", "adam", "yogi", "adagrad"])
def test_optimisers_of_the_server_change_what_is_broadcast_and_not_what_is_measured(
    recipe: Make, tmp_path: Path, optimizer: str
) -> None:
    plain = run(recipe(), out=tmp_path / "plain").records
    records = run(recipe(server={"optimizer": optimizer, "lr": 0.3}), out=tmp_path / "run").records
    keys = ("loss", "aggregation_error", "drift", "bytes_up", "bytes_down")
    assert [records[0][key] for key in keys] == [plain[0][key] for key in keys]
    assert records[0]["eval_loss"] != plain[0]["eval_loss"]
    assert records[1]["loss"] != plain[1]["loss"]
