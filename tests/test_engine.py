"""Whole runs: what they leave behind, what they survive, and what they refuse."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fedrot.checkpoint import load_checkpoint
from fedrot.client import Trained
from fedrot.config import RunConfig
from fedrot.engines import training as engine
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run
from fedrot.errors import ConfigError, DataError, ModelError, OutputError, TrainingError
from fedrot.server import choose_clients
from fedrot.wire import encode
from tests.processes import fedrot, start

Make = Callable[..., RunConfig]
CLOCK = {"seconds", "training_seconds"}


def without_clock(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def adapter_bytes(directory: Path) -> bytes:
    return (directory / "adapter" / "adapter_model.safetensors").read_bytes()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_the_promised_directory(recipe: Make, tmp_path: Path) -> None:
    result = run(recipe(output__report=True, output__probe=True), out=tmp_path / "run")
    names = {path.name for path in result.directory.iterdir()}
    assert {
        "config.toml",
        "metrics.jsonl",
        "adapter",
        "checkpoint",
        "report.html",
        "plots",
        "summary.json",
    } <= names
    records = read_metrics(result.directory)
    assert records == result.records
    assert [record["round"] for record in records] == [1, 2]
    promised = {"round", "loss", "accuracy", "aggregation_error", "aggregation_error_relative", "rotation"}
    promised |= {"bytes_up", "bytes_down", "seconds", "clients", "rejected"}
    assert all(promised <= record.keys() for record in records)
    assert records[0]["rotation"] == 0.0, "the first round is not rotated"
    assert records[1]["rotation"] > 0.0
    assert all(
        math.isfinite(value) for record in records for value in record.values() if isinstance(value, float)
    )
    summary = json.loads((result.directory / "summary.json").read_text())
    assert summary["final"]["accuracy"] == records[-1]["accuracy"]
    assert 0 < summary["probe"]["accuracy"] <= 1
    counts = torch.tensor(summary["partition"]["counts"])
    assert counts.shape == (4, 3)
    assert int(counts.sum()) == summary["examples"]["train"]


def test_training_learns(recipe: Make, tmp_path: Path) -> None:
    result = run(recipe(federation__rounds=6, train__local_steps=10), out=tmp_path / "run")
    assert result.records[-1]["loss"] < 0.7 * result.records[0]["loss"]
    assert result.records[-1]["accuracy"] > 0.8


def test_strength_zero_is_fedit(recipe: Make, tmp_path: Path) -> None:
    rotated = run(recipe(method__strength=0.0, federation__rounds=3), out=tmp_path / "a")
    plain = run(recipe(method={"name": "fedit"}, federation__rounds=3), out=tmp_path / "b")
    for key, tensor in rotated.adapter.tensors().items():
        torch.testing.assert_close(tensor, plain.adapter.tensors()[key], rtol=1e-5, atol=1e-6)


def test_group_size_does_not_change_a_run(recipe: Make, tmp_path: Path) -> None:
    sgd = {"train__optimizer": "sgd", "train__lr": 0.1}
    one = run(recipe(**sgd, federation__group_size=1), out=tmp_path / "one")
    many = run(recipe(**sgd, federation__group_size=3), out=tmp_path / "many")
    for key, tensor in one.adapter.tensors().items():
        torch.testing.assert_close(tensor, many.adapter.tensors()[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    ["fedit", "fedrot", "ffa", "rolora", "random-rotation", "rescale"],
)
def test_every_method_runs(recipe: Make, tmp_path: Path, method: str) -> None:
    result = run(recipe(method={"name": method}, federation__rounds=3), out=tmp_path / "run")
    last = result.records[-1]
    if method in ("ffa", "rolora"):
        assert last["aggregation_error_relative"] < 1e-6, "exact by construction"
    else:
        assert last["aggregation_error_relative"] > 1e-4
    if method in ("fedrot", "random-rotation"):
        assert last["rotation"] > 0


def test_bytes_are_those_of_the_messages(recipe: Make, tmp_path: Path) -> None:
    fedit = run(recipe(method={"name": "fedit"}), out=tmp_path / "a")
    whole = len(encode(fedit.adapter))
    assert [record["bytes_up"] for record in fedit.records] == [4 * whole] * 2
    fedrot = run(recipe(), out=tmp_path / "b")
    assert [record["bytes_up"] for record in fedrot.records] == [4 * whole] * 2, "alignment adds not one byte"
    ffa = run(recipe(method={"name": "ffa"}), out=tmp_path / "c")
    half = len(encode(ffa.adapter, a=False))
    assert [record["bytes_up"] for record in ffa.records] == [4 * half] * 2
    assert [record["bytes_down"] for record in ffa.records] == [4 * whole, 4 * half]


def test_partial_participation_is_seeded_and_weighted(recipe: Make, tmp_path: Path) -> None:
    result = run(recipe(federation__fraction=0.5, federation__rounds=4), out=tmp_path / "run")
    chosen = [record["client_ids"] for record in result.records]
    assert all(len(ids) == 2 for ids in chosen)
    assert len({tuple(ids) for ids in chosen}) > 1
    assert chosen == [list(choose_clients(3, round, 4, 0.5)) for round in (1, 2, 3, 4)]


def test_evaluation_every_k_rounds_and_at_the_end(recipe: Make, tmp_path: Path) -> None:
    result = run(recipe(federation__rounds=5, federation__evaluate_every=2), out=tmp_path / "run")
    assert [record["round"] for record in result.records if "accuracy" in record] == [2, 4, 5]


def test_local_epochs_and_uniform_weighting(recipe: Make, tmp_path: Path) -> None:
    config = recipe(
        train__local_steps=None,
        train__local_epochs=1,
        federation__weighting="uniform",
        federation__group_size=2,
    )
    result = run(config, out=tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["partition"]["counts"]
    assert result.records[0]["client_steps"] == sum(math.ceil(sum(row) / 4) for row in counts)


@pytest.mark.parametrize("reference", ["two-back", "consensus"])
def test_resumed_run_equals_uninterrupted_run(recipe: Make, tmp_path: Path, reference: str) -> None:
    options = {"method__reference": reference, "federation__rounds": 5, "federation__fraction": 0.75}
    options |= {"lora__layers": "last:2", "train__cache_frozen": True}
    whole = run(recipe(**options), out=tmp_path / "whole")

    class StopAfter(Observer):
        def finished(self, record: Mapping[str, Any]) -> None:
            if record["round"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe(**options), out=tmp_path / "part", observer=StopAfter())
    assert json.loads((tmp_path / "part" / "summary.json").read_text())["interrupted"] is True
    resumed = run(recipe(**options), out=tmp_path / "part", resume=True)
    assert without_clock(read_metrics(tmp_path / "part")) == without_clock(whole.records)
    assert adapter_bytes(tmp_path / "part") == adapter_bytes(tmp_path / "whole")
    assert resumed.summary["interrupted"] is False


def test_finished_rounds_without_a_checkpoint_are_not_started_over(recipe: Make, tmp_path: Path) -> None:
    run(recipe(federation__rounds=1), out=tmp_path / "run")
    before = read_metrics(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    with pytest.raises(OutputError, match=r"no checkpoint, but metrics.jsonl has 1 finished rounds"):
        run(recipe(federation__rounds=2), out=tmp_path / "run", resume=True)
    assert read_metrics(tmp_path / "run") == before


def test_a_model_folder_without_its_tokenizer_is_refused(
    recipe: Make, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*token*", "vocab*"))
    with pytest.raises(ModelError, match="special tokens and no other; save the model's tokenizer there"):
        run(recipe(model__path=str(folder)), out=tmp_path / "run")


def test_kill_nine_at_any_moment_and_resume(recipe: Make, tmp_path: Path) -> None:
    """A real process, killed without warning again and again, ends where the undisturbed one does."""
    config = recipe(federation__rounds=8, train__local_steps=6)
    whole = run(config, out=tmp_path / "whole")
    path = tmp_path / "recipe.toml"
    path.write_text(config.to_toml(), "utf-8")
    target = tmp_path / "killed"
    command = ["run", path, "--out", target]
    kills = 0
    for delay in (0.0, 0.13, 0.31):
        process = start(*command, *(["--resume"] if (target / "config.toml").exists() else []))
        newest = _newest(target)
        while process.running and _newest(target) <= newest:
            time.sleep(0.005)
        time.sleep(delay)
        if process.running:
            process.signal(signal.SIGKILL)
        kills += process.wait(60).returncode == -signal.SIGKILL
    assert kills >= 1
    done = fedrot(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert without_clock(read_metrics(target)) == without_clock(whole.records)
    assert adapter_bytes(target) == adapter_bytes(tmp_path / "whole")


def _newest(directory: Path) -> int:
    return max((int(path.name[6:]) for path in (directory / "checkpoint").glob("round-*")), default=0)


def test_damaged_checkpoint_falls_back_and_ends_the_same(recipe: Make, tmp_path: Path) -> None:
    whole = run(recipe(federation__rounds=3), out=tmp_path / "run")
    expected = adapter_bytes(whole.directory)
    newest = whole.directory / "checkpoint" / "round-000003" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    notes: list[str] = []

    class Listen(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    again = run(None, out=whole.directory, resume=True, observer=Listen())
    assert any("round-000003" in note and "damaged" in note for note in notes)
    assert adapter_bytes(again.directory) == expected
    assert without_clock(read_metrics(again.directory)) == without_clock(whole.records)


def test_more_rounds_may_be_asked_for_and_nothing_else(recipe: Make, tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    with pytest.raises(
        OutputError, match=r"recipe differs[\s\S]*train\.lr: 0\.01 -> 0\.02[\s\S]*another --out"
    ):
        run(recipe(train__lr=0.02), out=tmp_path / "run", resume=True)
    longer = run(recipe(federation__rounds=4), out=tmp_path / "run", resume=True)
    straight = run(recipe(federation__rounds=4), out=tmp_path / "straight")
    assert adapter_bytes(longer.directory) == adapter_bytes(straight.directory)


def test_overrides_of_a_resumed_run_change_its_own_recipe(recipe: Make, tmp_path: Path) -> None:
    run(recipe(federation__rounds=1), out=tmp_path / "run")
    again = run(None, out=tmp_path / "run", resume=True, overrides=["federation.rounds=2"])
    assert [record["round"] for record in again.records] == [1, 2]
    with pytest.raises(OutputError, match=r"recipe differs[\s\S]*train\.lr: 0\.01 -> 0\.02"):
        run(None, out=tmp_path / "run", resume=True, overrides=["train.lr=0.02"])
    with pytest.raises(ConfigError, match=r"federation\.rouns: unknown key; did you mean 'rounds'"):
        run(None, out=tmp_path / "run", resume=True, overrides=["federation.rouns=3"])
    with pytest.raises(ConfigError, match="overrides: they apply to a recipe file"):
        run(recipe(), out=tmp_path / "run", resume=True, overrides=["federation.rounds=3"])


def test_fewer_rounds_than_are_finished_cannot_be_asked_for(recipe: Make, tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    stored = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(
        OutputError, match=r"federation\.rounds = 1: .* has finished 2 rounds already; ask for 2 or more"
    ):
        run(recipe(federation__rounds=1), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.toml").read_bytes() == stored


def test_occupied_and_missing_directories(recipe: Make, tmp_path: Path) -> None:
    run(recipe(federation__rounds=1), out=tmp_path / "run")
    with pytest.raises(OutputError, match="already holds a run; continue it with --resume"):
        run(recipe(), out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not an empty folder"):
        run(recipe(), out=tmp_path / "other")
    with pytest.raises(OutputError, match="holds no run"):
        run(recipe(), out=tmp_path / "nowhere", resume=True)
    with pytest.raises(ConfigError, match="name the run directory"):
        run(recipe(), resume=True)


def test_a_mistake_leaves_no_directory_behind(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.name = 'fedrott'.*did you mean 'fedrot'"):
        run(recipe(method={"name": "fedrott"}), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"method\.strength = 1\.5"):
        run(recipe(method__strength=1.5), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"lora__rank": 33}, ModelError, r"lora\.rank = 33: larger than layer .*32 x 32"),
        ({"lora__target_modules": ["c_attn"]}, ModelError, r"no layer matches.*'query'"),
        ({"lora__target_modules": ["LayerNorm"]}, ModelError, "LayerNorm.*only nn.Linear or Conv1D"),
        ({"lora__target_modules": "(unclosed"}, ConfigError, "not a regular expression"),
        ({"lora__modules_to_save": ["clasifier"]}, ModelError, "did you mean 'classifier'"),
        ({"model__path": "/nowhere/model"}, ModelError, r"model\.path = '/nowhere/model': cannot be loaded"),
        ({"model__path": "package:no-such-model"}, ModelError, "pip install"),
        ({"model__adapter": "/nowhere/adapter"}, ModelError, "expected a PEFT directory"),
        ({"federation__clients": 5000}, DataError, "5000"),
        ({"partition__kind": "dirichlett"}, ConfigError, "did you mean 'dirichlet'"),
        ({"task__label": "labl"}, DataError, r"labl.*text.*label"),
        ({"train__device": "cuda:7"}, ConfigError, r"train\.device = 'cuda:7'"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused(
    recipe: Make, tmp_path: Path, options: dict[str, Any], error: type, said: str
) -> None:
    with pytest.raises(error, match=said):
        run(recipe(**options), out=tmp_path / "run")


def poison(monkeypatch: pytest.MonkeyPatch, clients: set[int], from_round: int = 1) -> None:
    """Make some clients return NaN, as an exploding local training does."""
    original = engine.train_group
    calls = {"round": 0}

    def training(*args: Any, **kwargs: Any) -> Trained:
        result = original(*args, **kwargs)
        calls["round"] += 1
        if calls["round"] < from_round:
            return result
        tensors = {key: tensor.clone() for key, tensor in result.adapter.tensors().items()}
        finite = result.finite.clone()
        for index, client in enumerate(result.clients):
            if client in clients:
                next(iter(tensors.values()))[index] = math.nan
                finite[index] = False
        return Trained(
            result.clients,
            type(result.adapter).from_tensors(tensors, result.adapter.scale),
            result.loss,
            finite,
        )

    monkeypatch.setattr(engine, "train_group", training)


def test_a_full_disk_at_the_end_loses_no_round(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OutputError, match=r"No space left.*round 2 is kept.*--resume"):
            run(recipe(), out=tmp_path / "run")
    again = run(recipe(), out=tmp_path / "run", resume=True)
    assert len(again.records) == 2
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_a_client_with_nan_is_rejected_and_the_round_goes_on(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1})
    result = run(recipe(), out=tmp_path / "run")
    assert [record["rejected"] for record in result.records] == [1, 1]
    assert result.records[0]["client_ids"] == [0, 2, 3]
    assert "non-finite" in result.records[0]["rejected_clients"]["1"]
    assert all(bool(tensor.isfinite().all()) for tensor in result.adapter.tensors().values())


def test_all_clients_rejected_stops_and_keeps_the_last_good_state(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {0, 1, 2, 3}, from_round=2)
    with pytest.raises(
        TrainingError, match=r"round 2: every client was rejected.*state after round 1 is kept"
    ):
        run(recipe(), out=tmp_path / "run")
    kept = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert kept is not None
    assert kept.state.round == 1
    monkeypatch.undo()
    assert run(recipe(), out=tmp_path / "run", resume=True).records[-1]["round"] == 2


# --------------------------------------------------------------------------------------------------- PEFT in and out


def peft_logits(base: torch.nn.Module, adapter: Path, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        return model(**batch).logits


def our_logits(result: RunResult, config: RunConfig) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    from fedrot.engines.setup import prepare
    from fedrot.evaluate import predict

    federation = prepare(config)
    data = federation.test.data
    logits = predict(federation.crew, federation.objective, result.adapter, data, batch=16)
    return logits, data.batch(torch.arange(len(data))).inputs


@pytest.mark.parametrize("train_head", [True, False])
def test_the_adapter_gives_our_logits_in_plain_peft(recipe: Make, tmp_path: Path, train_head: bool) -> None:
    from transformers import AutoModelForSequenceClassification

    config = recipe(model__pooling="model", lora__train_head=train_head, lora__rslora=True)
    result = run(config, out=tmp_path / "run")
    expected, batch = our_logits(result, config)
    base = AutoModelForSequenceClassification.from_pretrained(config.model.path, num_labels=3)
    found = peft_logits(base, tmp_path / "run" / "adapter", batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_adapter_of_a_mean_pooled_model_loads_too(recipe: Make, tmp_path: Path) -> None:
    import fedrot

    config = recipe(lora__layers="last:1")
    result = run(config, out=tmp_path / "run")
    expected, batch = our_logits(result, config)
    found = peft_logits(
        fedrot.load_base_for(tmp_path / "run" / "adapter"), tmp_path / "run" / "adapter", batch
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_run_starts_from_a_peft_adapter(recipe: Make, tmp_path: Path) -> None:
    first = run(recipe(), out=tmp_path / "first")
    adapter = str(tmp_path / "first" / "adapter")
    second = run(recipe(model__adapter=adapter, federation__rounds=1), out=tmp_path / "second")
    assert second.records[0]["loss"] < first.records[0]["loss"]
    with pytest.raises(ModelError, match=r"rank 2, alpha 4.*lora\.rank"):
        run(recipe(model__adapter=adapter, lora__rank=4), out=tmp_path / "third")
    with pytest.raises(ModelError, match=r"lora\.target_modules"):
        run(recipe(model__adapter=adapter, lora__target_modules=["query"]), out=tmp_path / "third")


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_merged_export_gives_the_same_logits(recipe: Make, tmp_path: Path, pooling: str) -> None:
    from transformers import AutoModelForSequenceClassification

    from fedrot.engines.export import export
    from fedrot.model import PooledClassifier

    config = recipe(model__pooling=pooling)
    result = run(config, out=tmp_path / "run")
    expected, batch = our_logits(result, config)
    merged = export(tmp_path / "run", merge=True)
    if pooling == "model":
        model = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    else:
        model = PooledClassifier.from_pretrained(merged).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(OutputError, match="not empty"):
        export(tmp_path / "run", merge=True)
    (tmp_path / "file").write_text("mine", "utf-8")
    with pytest.raises(OutputError, match="choose another --out"):
        export(tmp_path / "run", tmp_path / "file")
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_export_writes_the_adapter_again(recipe: Make, tmp_path: Path) -> None:
    from fedrot.engines.export import export

    run(recipe(), out=tmp_path / "run")
    path = export(tmp_path / "run", tmp_path / "again")
    first = safetensors.torch.load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    second = safetensors.torch.load_file(path / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
