"""Whole private runs: what the broadcast is, what is recorded, what is withheld, and what a resume gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.checkpoint import load_checkpoint
from fedrot.config import RunConfig
from fedrot.core import Adapter
from fedrot.engines.observer import Observer
from fedrot.engines.round import Round
from fedrot.engines.run import run
from fedrot.errors import AdapterError, ConfigError
from fedrot.methods import Update, build
from fedrot.participation import Participation
from fedrot.privacy import Accountant
from fedrot.report import write_report
from fedrot.report.page import CHARTS

Make = Callable[..., RunConfig]
CLOCK = {"seconds", "training_seconds"}
TOLD = {
    "loss",
    "drift",
    "rotation",
    "rotation_by_site",
    "rotation_angle",
    "degenerate",
    "flips",
    "client_steps",
}


def private(recipe: Make, **keys: Any) -> RunConfig:
    given = {
        "privacy__mechanism": "central",
        "privacy__noise_source": "seed",
        "federation__weighting": "uniform",
        "federation__rounds": 3,
    }
    return recipe(**(given | keys))


def assert_close(one: Adapter, other: Adapter, tolerance: float = 1e-5) -> None:
    for key, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mechanism", ["central", "local"])
@pytest.mark.parametrize("method", ["fedrot", "rolora"])
def test_without_noise_and_with_a_wide_clip_a_private_run_is_the_plain_one(
    recipe: Make, tmp_path: Path, mechanism: str, method: str
) -> None:
    keys: dict[str, Any] = {"method": {"name": method}, "privacy__clip": 1e6, "privacy__noise": 0.0}
    ours = run(private(recipe, privacy__mechanism=mechanism, **keys), out=tmp_path / "a")
    plain = run(private(recipe, privacy__mechanism="none", **keys), out=tmp_path / "b")
    assert_close(ours.adapter, plain.adapter)
    assert [record["epsilon"] for record in ours.records] == [None] * 3
    assert not any("epsilon" in record for record in plain.records)
    assert plain.summary["privacy"] is None


def test_a_tight_clip_holds_every_broadcast_near_the_one_before(recipe: Make, tmp_path: Path) -> None:
    config = private(recipe, privacy__clip=0.05, privacy__noise=0.0, output__keep_checkpoints=3)
    result = run(config, out=tmp_path / "run")
    state = load_checkpoint(result.directory / "checkpoint")
    assert state is not None
    assert all(record["clipped"] == 1.0 for record in result.records)
    assert all(record["update_norm"] == pytest.approx(0.05, rel=1e-4) for record in result.records)
    first = run(
        private(recipe, privacy__clip=0.05, privacy__noise=0.0, federation__rounds=1), out=tmp_path / "one"
    )
    one, three = first.adapter.tensors(), state.state.adapter.tensors()
    moved = math.sqrt(sum(float((three[key].double() - one[key].double()).square().sum()) for key in one))
    assert 0 < moved <= 2 * 0.05 * (1 + 1e-5)


@pytest.mark.parametrize("mechanism", ["central", "local"])
def test_noise_moves_the_broadcast_by_its_accounted_size(
    recipe: Make, tmp_path: Path, mechanism: str
) -> None:
    keys: dict[str, Any] = {"federation__rounds": 1, "privacy__clip": 0.1, "privacy__mechanism": mechanism}
    clean = run(private(recipe, privacy__noise=0.0, **keys), out=tmp_path / "a").adapter.tensors()
    noisy = run(private(recipe, privacy__noise=2.0, **keys), out=tmp_path / "b").adapter.tensors()
    difference = torch.cat([(noisy[key].double() - clean[key].double()).flatten() for key in clean])
    expected = (
        2.0 * 0.1 / (4 if mechanism == "central" else 2)
    )  # four clients: a sum's noise, or four of their own
    assert float(difference.std()) == pytest.approx(expected, rel=5 / math.sqrt(len(difference)))


@pytest.mark.parametrize("mechanism", ["central", "local"])
def test_a_resumed_private_run_equals_an_uninterrupted_one(
    recipe: Make, tmp_path: Path, mechanism: str
) -> None:
    whole = run(private(recipe, privacy__mechanism=mechanism), out=tmp_path / "whole")
    run(private(recipe, privacy__mechanism=mechanism, federation__rounds=1), out=tmp_path / "parts")
    rest = run(private(recipe, privacy__mechanism=mechanism), out=tmp_path / "parts", resume=True)
    assert all(torch.equal(t, rest.adapter.tensors()[key]) for key, t in whole.adapter.tensors().items())
    clocked = [[{k: v for k, v in r.items() if k not in CLOCK} for r in x.records] for x in (whole, rest)]
    assert clocked[0] == clocked[1]


def test_noise_from_the_system_differs_from_run_to_run(recipe: Make, tmp_path: Path) -> None:
    config = private(recipe, privacy__noise_source="system", federation__rounds=1)
    one, two = (run(config, out=tmp_path / name).adapter.tensors() for name in "ab")
    assert not any(torch.equal(tensor, two[key]) for key, tensor in one.items())


@pytest.mark.parametrize("mechanism", ["central", "local"])
def test_groups_do_not_change_a_private_run(recipe: Make, tmp_path: Path, mechanism: str) -> None:
    keys: dict[str, Any] = {"privacy__mechanism": mechanism, "privacy__clip": 0.1, "federation__rounds": 1}
    together, apart = (
        run(private(recipe, federation__group_size=size, **keys), out=tmp_path / str(size)).adapter
        for size in (4, 1)
    )
    assert_close(together, apart)


def test_every_round_the_summary_and_the_report_say_what_was_spent(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrot.report.page.CHARTS", {"epsilon": CHARTS["epsilon"]})
    config = private(recipe, federation__fraction=0.5, privacy__noise=5.0, output__report=True)
    result = run(config, out=tmp_path / "run")
    accountant = Accountant(config.privacy, config.seed, 4, 0.5)
    assert [r["epsilon"] for r in result.records] == [accountant.epsilon(n) for n in (1, 2, 3)]
    facts = json.loads((result.directory / "summary.json").read_text())["privacy"]
    assert facts["epsilon"] == result.records[-1]["epsilon"]
    assert facts["rounds_of_a_client"] == accountant.taken(3)
    assert (facts["mechanism"], facts["delta"], facts["adjacency"]) == ("central", 1e-5, "replace-one")
    assert "the server is trusted" in facts["covered"]
    assert "seed" in facts["not_covered"]
    page = (result.directory / "report.html").read_text()
    assert f"ε = {facts['epsilon']:.3g} at δ = 1e-05 (central, replace-one)" in page
    assert "had its noise not come from the recipe" in page, "a seed anyone may know is no secret"
    assert facts["covered"] in page
    assert (result.directory / "plots" / "epsilon.png").exists()


def test_a_report_without_privacy_has_no_word_of_it(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrot.report.page.CHARTS", {"epsilon": CHARTS["epsilon"]})
    result = run(recipe(), out=tmp_path / "run")
    page = write_report(result.directory).read_text()
    assert "rivate" not in page
    assert "Privacy" not in page


def test_with_local_privacy_clients_tell_nothing_but_their_uploads(recipe: Make, tmp_path: Path) -> None:
    result = run(private(recipe, privacy__mechanism="local", output__report=True), out=tmp_path / "run")
    for record in result.records:
        assert not TOLD & record.keys()
        assert record["clients"] == 4
        assert record["aggregation_error"] > 0
    assert (result.directory / "report.html").exists()


@pytest.mark.parametrize(("mechanism", "told"), [("central", True), ("local", False)])
def test_scores_on_each_client_s_own_mix_of_labels_are_withheld_with_local_privacy(
    recipe: Make, tmp_path: Path, mechanism: str, told: bool
) -> None:
    result = run(private(recipe, privacy__mechanism=mechanism), out=tmp_path / "run")
    for record in (*result.records, result.summary["final"]):
        assert "accuracy" in record
        assert {name for name in record if "local_accuracy" in name} == (
            {"local_accuracy", "validation_local_accuracy"} if told else set()
        )


def test_with_local_privacy_a_client_that_tells_more_is_refused(recipe: Make) -> None:
    adapter = Adapter({}, {"head": torch.zeros(3)})
    round = Round(build("fedit", {}, 0), 1, Participation((0,)), [None], "local")
    with pytest.raises(AdapterError, match="client 0 sent drift, loss with its update"):
        round.receive(Update(0, adapter, 1.0, {"loss": 1.0}), {"drift": 0.1})
    round.receive(Update(0, adapter, 1.0), {})
    assert round.count == 1


def test_the_recorded_error_of_a_central_run_holds_its_noise(recipe: Make, tmp_path: Path) -> None:
    errors = [
        run(private(recipe, privacy__noise=noise, federation__rounds=2), out=tmp_path / str(noise)).records[
            1
        ]["aggregation_error"]
        for noise in (0.0, 20.0)
    ]
    assert errors[1] > 3 * errors[0]


def test_a_client_that_explodes_counts_as_no_change_and_does_not_stop_a_central_run(
    recipe: Make, tmp_path: Path
) -> None:
    config = private(recipe, train__lr=1e38, train__optimizer="sgd", train__clip="off", federation__rounds=1)
    result = run(config, out=tmp_path / "run")
    assert result.records[0]["rejected"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in result.adapter.tensors().values())
    assert result.records[0]["epsilon"] > 0


def test_a_client_that_explodes_sends_noise_alone_with_local_privacy(recipe: Make, tmp_path: Path) -> None:
    config = private(
        recipe,
        train__lr=1e38,
        train__optimizer="sgd",
        train__clip="off",
        federation__rounds=1,
        privacy__mechanism="local",
    )
    result = run(config, out=tmp_path / "run")
    assert result.records[0]["rejected"] == 0, "who exploded is private too"
    assert all(bool(tensor.isfinite().all()) for tensor in result.adapter.tensors().values())


@pytest.mark.parametrize("mechanism", ["central", "local"])
def test_drop_outs_and_server_optimisers_go_with_privacy(
    recipe: Make, tmp_path: Path, mechanism: str
) -> None:
    config = private(
        recipe,
        privacy__mechanism=mechanism,
        federation__dropout=0.6,
        federation__rounds=6,
        server__optimizer="avgm",
    )
    result = run(config, out=tmp_path / "run")
    reporting = [record["clients"] for record in result.records]
    assert min(reporting) < 4, "somebody dropped out"
    full = Accountant(config.privacy, config.seed, 4, 1.0)
    assert [record["epsilon"] for record in result.records] == [full.epsilon(n) for n in range(1, 7)]
    assert all(bool(tensor.isfinite().all()) for tensor in result.adapter.tensors().values())


def test_a_recipe_that_cannot_be_private_is_refused_before_data_is_read(recipe: Make, tmp_path: Path) -> None:
    class Silent(Observer):
        pass

    with pytest.raises(ConfigError, match=r"federation\.weighting = 'samples' with privacy\.mechanism"):
        run(
            recipe(privacy__mechanism="central", task__data="no/such/file.csv"),
            out=tmp_path / "a",
            observer=Silent(),
        )
    with pytest.raises(ConfigError, match=r"privacy\.delta = 0\.25"):
        run(private(recipe, privacy__delta=0.25), out=tmp_path / "b")
