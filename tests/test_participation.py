"""Clients that drop out, that are late, and that are smaller than the server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedrot
from fedrot.client import plan_group, train_group
from fedrot.config import FederationConfig, LoraSettings, RunConfig
from fedrot.core.adapter import weighted_mean
from fedrot.engines.local import in_process
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import run_round
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from fedrot.errors import ConfigError
from fedrot.methods import Trainable
from fedrot.methods.fedrot import FedRot
from fedrot.participation import Participation, cohorts, deal_ranks, participate
from fedrot.server import ServerState

Make = Callable[..., RunConfig]


def test_draws_depend_on_seed_round_and_client_alone() -> None:
    settings = FederationConfig(dropout=0.3, stale=0.5, stale_rounds=3)
    part = participate(settings, 5, 7, 40, earlier=3)
    assert part == participate(settings, 5, 7, 40, earlier=3)
    assert part != participate(settings, 5, 8, 40, earlier=3)
    assert part != participate(settings, 6, 7, 40, earlier=3)
    fewer = participate(settings, 5, 7, 30, earlier=3)
    assert fewer.dropped == tuple(client for client in part.dropped if client < 30)
    assert fewer.lags == {client: lag for client, lag in part.lags.items() if client < 30}
    assert not set(part.dropped) & part.lags.keys()
    assert set(part.reporting) | set(part.dropped) == set(part.chosen)


def test_draws_have_the_frequencies_asked_for() -> None:
    settings = FederationConfig(dropout=0.25, stale=0.4, stale_rounds=4)
    rounds = [participate(settings, 1, round, 50, earlier=4) for round in range(1, 41)]
    dropped = sum(len(part.dropped) for part in rounds) / 2000
    lags = Counter(lag for part in rounds for lag in part.lags.values())
    assert dropped == pytest.approx(0.25, abs=0.04)
    assert lags.total() / (2000 * (1 - dropped)) == pytest.approx(0.4, abs=0.05)
    assert set(lags) == {1, 2, 3, 4}
    assert max(lags.values()) < 1.5 * min(lags.values())


def test_no_client_is_staler_than_the_run_is_old() -> None:
    settings = FederationConfig(stale=1.0, stale_rounds=5)
    assert participate(settings, 1, 1, 20, earlier=0).lags == {}
    assert set(participate(settings, 1, 2, 20, earlier=1).lags.values()) == {1}
    assert set(participate(settings, 1, 3, 60, earlier=2).lags.values()) == {1, 2}


def test_cohorts_are_of_one_rank_and_one_lag() -> None:
    part = Participation((0, 1, 2, 3, 4), dropped=(3,), lags={2: 1, 4: 1})
    found = [(c.clients, c.rank, c.lag) for c in cohorts(part, [2, 8, 2, 8, 8])]
    assert found == [((0,), 2, 0), ((2,), 2, 1), ((1,), 8, 0), ((4,), 8, 1)]
    assert [c.clients for c in cohorts(Participation((0, 2)), [None] * 3)] == [(0, 2)]


def test_shares_of_ranks_become_whole_clients_by_largest_remainder() -> None:
    lora = LoraSettings(rank=8, ranks={"2": 0.5, "8": 0.3, "4": 0.2})
    dealt = deal_ranks(lora, 7, 3)
    assert Counter(dealt) == {2: 4, 8: 2, 4: 1}  # of 3.5, 2.1 and 1.4
    assert dealt == deal_ranks(lora, 7, 3)
    assert len({deal_ranks(lora, 7, seed) for seed in range(10)}) > 1
    assert deal_ranks(LoraSettings(), 3, 0) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora__ranks": [1, 2]}, r"lora\.ranks lists 2 ranks for 4 clients"),
        ({"lora__ranks": [1, 2, 3, 1]}, r"client 2 rank 3: expected 1 to lora\.rank = 2"),
        ({"lora__ranks": [1, 2, 0, 1]}, r"client 2 rank 0: expected 1 to"),
        ({"lora__ranks": {"1": 0.5, "4": 0.5}}, r"ranks has '4': expected ranks from 1 to lora\.rank = 2"),
        ({"lora__ranks": {"one": 1.0}}, r"ranks has 'one'"),
        ({"lora__ranks": {"1": 0.5, "2": 0.6}}, r"shares add up to 1\.1, expected 1"),
        ({"lora__ranks": {"1": 1.5, "2": -0.5}}, r"share of rank 2 is -0\.5: expected a number > 0"),
        (
            {"lora__ranks": [1, 2, 2, 2], "method": {"name": "florist"}},
            r"lora\.ranks: all clients of method 'florist' need the server's rank; methods that can: .*'fedrot'",
        ),
        (
            {"federation__stale": 0.2, "method": {"name": "fedsvd"}},
            r"federation\.stale = 0\.2: method 'fedsvd' cannot take.*methods that can: .*'fedit'",
        ),
        ({"federation__dropout": 1.0}, r"federation\.dropout = 1\.0: expected less than 1"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_what_cannot_be_is_refused(recipe: Make, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(recipe(**options), out=tmp_path / "run")


def test_a_round_without_any_report_leaves_the_state_as_it_was(recipe: Make) -> None:
    config = recipe(federation__clients=2, federation__dropout=0.7, federation__stale=0.3)
    federation = prepare(config)
    state, empty = ServerState(0, federation.initial), 0
    for _ in range(8):
        before = state
        state, record = run_round(federation, before, in_process(federation, Observer()))
        assert state.round == before.round + 1
        assert record["dropped"] == len(record["dropped_clients"]) == 2 - record["clients"]
        if not record["clients"]:
            empty += 1
            assert state.adapter is before.adapter
            assert state.history is before.history
            assert "loss" not in record
            assert "accuracy" in record
            assert record["bytes_up"] == 0 < record["bytes_down"]
    assert 0 < empty < 8


def test_a_run_whose_clients_mostly_drop_out_ends_and_reports(recipe: Make, tmp_path: Path) -> None:
    config = recipe(federation__clients=2, federation__dropout=0.7, federation__rounds=6, output__report=True)
    result = run(config, out=tmp_path / "run")
    assert [record["clients"] for record in result.records].count(0) > 0
    assert (tmp_path / "run" / "report.html").exists()


def test_a_stale_client_trains_from_the_earlier_broadcast(recipe: Make) -> None:
    config = recipe(method={"name": "fedit"}, federation__stale=1.0, federation__group_size=4)
    federation = prepare(config)
    first, record = run_round(
        federation, ServerState(0, federation.initial), in_process(federation, Observer())
    )
    assert record["stale"] == 0, "there is no earlier broadcast yet"
    second, record = run_round(federation, first, in_process(federation, Observer()))
    assert record["stale_clients"] == {str(client): 1 for client in range(4)}
    lengths, settings = federation.train.data.lengths, config.train
    rows = list(federation.partition.rows)
    plan = plan_group(range(4), rows, settings, seed=config.seed, round=2, lengths=lengths)
    data = federation.train.data
    trained = train_group(
        federation.model, federation.objective, data, federation.initial, plan, settings, Trainable()
    ).adapter
    mean = weighted_mean([trained.select(client) for client in range(4)], federation.weights)
    for key, tensor in mean.tensors().items():
        assert torch.equal(second.adapter.tensors()[key], tensor), key


def test_a_stale_update_is_aligned_to_the_current_broadcast_and_weighs_less(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"federation__stale": 0.5, "federation__stale_rounds": 2, "federation__stale_weight": 0.5}
    federation = prepare(recipe(**options, federation__clients=8, partition={"kind": "iid"}))
    seen: dict[int, tuple[Any, Any]] = {}
    weights: dict[int, float] = {}
    hook, mean = FedRot.before_upload, FedRot.aggregate

    def before_upload(self: Any, trained: Any, received: Any, round: int, **options: Any) -> Any:
        seen.update(dict.fromkeys(options["clients"], (received, options["reference"])))
        return hook(self, trained, received, round, **options)

    def aggregate(self: Any, updates: Any, *rest: Any) -> Any:
        weights.update({update.client: update.weight for update in updates})
        return mean(self, updates, *rest)

    monkeypatch.setattr(FedRot, "before_upload", before_upload)
    monkeypatch.setattr(FedRot, "aggregate", aggregate)
    state = ServerState(0, federation.initial)
    for _ in range(3):
        state, _ = run_round(federation, state, in_process(federation, Observer()))
    before = state
    _, record = run_round(federation, before, in_process(federation, Observer()))
    lags = {int(client): lag for client, lag in record["stale_clients"].items()}
    assert {lags.get(client, 0) for client in range(8)} == {0, 1, 2}
    for client, (received, reference) in seen.items():
        lag = lags.get(client, 0)
        assert received is (before.adapter if lag == 0 else before.history[-lag])
        assert reference is before.adapter
        assert weights[client] == federation.weight(client) * 0.5**lag


def test_small_clients_get_the_first_directions_and_never_touch_the_others(recipe: Make) -> None:
    config = recipe(lora__rank=4, lora__alpha=8.0, lora__ranks=[2, 2, 2, 2], method={"name": "fedit"})
    federation = prepare(config)
    start = federation.initial.map(lambda t: t + 0.01)
    after, record = run_round(federation, ServerState(0, start), in_process(federation, Observer()))
    for site, f in after.adapter.sites.items():
        assert f.rank == 4
        assert not f.b[:, 2:].any(), "zero-padded uploads, averaged"
        assert torch.equal(f.a[2:], start.sites[site].a[2:]), "so that these directions can still be trained"
        assert f.a[:2].abs().sum() > 0
        assert after.adapter.scale == federation.initial.scale == 2.0, f"one scale for all, {site}"
    even = prepare(recipe(lora__rank=4, lora__alpha=8.0, method={"name": "fedit"}))
    _, full = run_round(even, ServerState(0, start), in_process(even, Observer()))
    heads = sum(tensor.numel() for tensor in start.head.values()) * 4
    assert record["bytes_up"] == record["bytes_down"] < full["bytes_up"]
    assert record["bytes_up"] / 4 > heads


@pytest.mark.parametrize("method", [name for name, cls in fedrot.methods().items() if cls.laws.mixed_ranks])
def test_every_method_that_mixes_ranks_does(recipe: Make, tmp_path: Path, method: str) -> None:
    config = recipe(method={"name": method}, lora__rank=3, lora__ranks=[1, 3, 2, 3], federation__rounds=3)
    result = run(config, out=tmp_path / "run")
    assert {f.rank for f in result.adapter.sites.values()} == {3}
    last = result.records[-1]
    assert all(value == value for value in last.values() if isinstance(value, float)), "no NaN"
    if fedrot.methods()[method].laws.exact:
        assert last["aggregation_error_relative"] < 1e-5
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["r"] >= 3


def test_ranks_that_all_equal_the_servers_change_nothing(recipe: Make, tmp_path: Path) -> None:
    plain = run(recipe(), out=tmp_path / "a").adapter.tensors()
    listed = run(recipe(lora__ranks=[2, 2, 2, 2]), out=tmp_path / "b").adapter.tensors()
    assert all(torch.equal(tensor, listed[key]) for key, tensor in plain.items())
