"""Secure aggregation in whole runs of the Flower engine."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from rich.console import Console

import fedrot
from fedrot.config import RunConfig
from fedrot.engines import training
from fedrot.engines.flower.secagg.wire import STEP
from fedrot.engines.flower.worker import Worker
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run
from fedrot.engines.training import Group
from fedrot.errors import ConfigError, SecureAggregationError, TrainingError
from fedrot.progress import LiveDisplay

Make = Callable[..., RunConfig]
METHODS = [
    name for name, cls in fedrot.methods().items() if cls.laws.secure_aggregation and not cls.laws.personal
]
OTHERS = [name for name, cls in fedrot.methods().items() if not cls.laws.secure_aggregation]


class Notes(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def secure(recipe: Make, **options: Any) -> RunConfig:
    """A recipe of which the server sees sums alone."""
    # `rescale` makes factors of very unequal size.
    privacy = {"secure_aggregation": True, "secure_range": 64.0, **options.pop("privacy", {})}
    return recipe(engine={"name": "flower", "nodes": options.pop("nodes", 2)}, privacy=privacy, **options)


def both(recipe: Make, tmp_path: Path, **options: Any) -> tuple[RunResult, RunResult]:
    """One recipe on the local engine and under masks."""
    simple = {key: value for key, value in options.items() if key not in ("privacy", "nodes")}
    plain = run(recipe(**simple), out=tmp_path / "plain")
    return plain, run(secure(recipe, **options), out=tmp_path / "secure")


def expect_same(plain: RunResult, masked: RunResult, amplified: int = 1) -> None:
    """After one round: equal up to the rounding that is recorded, and that of float32."""
    mine, theirs = plain.adapter.tensors(), masked.adapter.tensors()
    assert list(mine) == list(theirs)
    # A new frame, as after an SVD, amplifies the difference by the ratios of singular values.
    bound = masked.records[-1]["secure_rounding"] * amplified
    for key, tensor in mine.items():
        assert float((tensor - theirs[key]).abs().max()) <= bound + 2.0**-21 * float(tensor.abs().max())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_needs_sums_alone_gets_the_adapter_of_the_local_engine(
    recipe: Make, tmp_path: Path, method: str
) -> None:
    plain, masked = both(recipe, tmp_path, method={"name": method}, federation__rounds=1)
    expect_same(plain, masked, 1 if fedrot.methods()[method].laws.frame == "kept" else 30)
    left_out = {
        "aggregation_error",
        "aggregation_error_relative",
        "rotation_by_site",
        "bytes_up",
        "bytes_down",
    }
    for key, value in plain.records[0].items():
        if key not in left_out and not key.endswith(("seconds", "unaligned")):
            assert masked.records[0][key] == (
                pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            )
    assert not any(key.startswith("aggregation_error") for key in masked.records[0])


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("bits", [32, 64])
def test_weights_of_either_kind_and_both_sizes_of_numbers(
    recipe: Make, tmp_path: Path, weighting: str, bits: int
) -> None:
    # Nodes train other stacks of clients, which rounds differently; Adam would divide that by small gradients.
    options = {"federation__rounds": 1, "federation__weighting": weighting, "train__optimizer": "sgd"}
    plain, masked = both(recipe, tmp_path, privacy={"secure_bits": bits}, **options)
    expect_same(plain, masked)
    assert (masked.records[0]["secure_rounding"] < 1e-12) == (bits == 64)


def test_clients_of_unequal_ranks_are_summed(recipe: Make, tmp_path: Path) -> None:
    options = {"federation__rounds": 1, "lora": {"rank": 4, "alpha": 4.0, "ranks": {"2": 0.5, "4": 0.5}}}
    plain, masked = both(recipe, tmp_path, method={"name": "fedit"}, **options)
    expect_same(plain, masked)


def test_a_server_optimiser_steps_from_the_mean(recipe: Make, tmp_path: Path) -> None:
    options = {"federation__rounds": 1, "server__optimizer": "avgm", "server__lr": 0.5}
    plain, masked = both(recipe, tmp_path, **options)
    expect_same(plain, masked)


def test_noise_of_the_clients_own_goes_under_masks(recipe: Make, tmp_path: Path) -> None:
    noise = {"mechanism": "local", "noise": 0.1, "clip": 0.5, "noise_source": "seed"}
    options = {"federation__rounds": 1, "federation__weighting": "uniform"}
    plain = run(recipe(engine__name="flower", privacy=noise, **options), out=tmp_path / "plain")
    masked = run(secure(recipe, privacy=noise, **options), out=tmp_path / "secure")
    expect_same(plain, masked)
    assert masked.records[0]["epsilon"] == plain.records[0]["epsilon"]
    assert not masked.records[0].keys() & {"loss", "drift", "rotation", "client_steps"}


def test_display_and_report_say_what_cannot_be_measured(recipe: Make, tmp_path: Path) -> None:
    result = run(secure(recipe, federation__rounds=2, output={"report": True}), out=tmp_path / "run")
    page = (result.directory / "report.html").read_text("utf-8")
    assert "sees the mean of the uploads and no upload" in page
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True)
    display = LiveDisplay(console, console)
    run(secure(recipe, federation__rounds=1), out=tmp_path / "shown", observer=display)
    shown = out.getvalue()
    assert "loss" in shown
    assert "error" not in shown


def test_no_upload_is_in_any_message(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    handle = Worker.handle

    def listening(self: Worker, kind: str, content: RecordDict) -> RecordDict:
        reply = handle(self, kind, content)
        names.extend(reply.array_records)
        return reply

    monkeypatch.setattr(Worker, "handle", listening)
    run(secure(recipe, federation__rounds=1), out=tmp_path / "run")
    assert names
    assert all(name.startswith("secure-") for name in names)


def breaking(monkeypatch: pytest.MonkeyPatch, node: str, step: str, rounds: int = 1) -> None:
    """A node whose process dies when it is asked for a step, and comes back without what it knew."""
    handle, left = Worker.handle, [rounds]

    def handled(self: Worker, kind: str, content: RecordDict) -> RecordDict:
        facts = content.config_records.get(STEP)
        if facts is not None and facts["step"] == step and self.settings.name == node and left[0]:
            left[0] -= 1
            self.__init__(self.settings, self._given)  # type: ignore[misc]
            raise MemoryError("killed")
        return handle(self, kind, content)

    monkeypatch.setattr(Worker, "handle", handled)


@pytest.mark.parametrize("step", ["share", "mask"])
def test_a_node_that_dies_before_its_vectors_came_is_dropped_and_joins_the_next_round(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    breaking(monkeypatch, "node-3", step)
    notes = Notes()
    config = secure(recipe, nodes=4, federation__rounds=2)
    result = run(config, out=tmp_path / "run", observer=notes)
    first, second = result.records
    assert (first["client_ids"], first["dropped_clients"]) == ([0, 1, 2], [3])
    assert "killed" in first["lost_clients"]["3"]
    assert (second["client_ids"], second["dropped_clients"]) == ([0, 1, 2, 3], [])
    assert any("killed" in said for said in notes.said)


def test_the_mean_is_that_of_the_clients_that_stayed(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, "node-3", "mask")
    masked = run(secure(recipe, nodes=4, federation__rounds=1), out=tmp_path / "secure")
    monkeypatch.undo()
    train = Worker.handle

    def without(self: Worker, kind: str, content: RecordDict) -> RecordDict:
        if kind == "train" and self.settings.name == "node-3":
            raise MemoryError("killed")
        return train(self, kind, content)

    monkeypatch.setattr(Worker, "handle", without)
    plain = run(recipe(engine={"name": "flower", "nodes": 4}, federation__rounds=1), out=tmp_path / "plain")
    assert plain.records[0]["client_ids"] == [0, 1, 2]
    expect_same(plain, masked)


def test_a_node_that_dies_after_its_vectors_came_is_in_the_mean(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, "node-3", "reveal")
    plain, masked = both(recipe, tmp_path, nodes=4, federation__rounds=1)
    assert masked.records[0]["client_ids"] == [0, 1, 2, 3]
    expect_same(plain, masked)


def test_a_round_with_too_few_clients_left_counts_as_one_that_nobody_reported_in(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, "node-0", "mask")
    notes = Notes()
    result = run(secure(recipe, nodes=2, federation__rounds=2), out=tmp_path / "run", observer=notes)
    first, second = result.records
    assert first["clients"] == 0
    assert first["dropped_clients"] == [0, 1, 2, 3]
    assert "threshold of 3" in first["lost_clients"]["3"]
    assert second["clients"] == 4
    assert any("2 of 4 clients are left" in said for said in notes.said)


def poisoned(monkeypatch: pytest.MonkeyPatch, *clients: int) -> None:
    """Clients whose training ends with a number that is none."""
    train = training.train_clients

    def trained(*args: Any) -> Group:
        group = train(*args)
        for place, client in enumerate(group.trained.clients):
            if client in clients:
                next(iter(group.upload.adapter.sites.values())).a[place, 0, 0] = float("nan")
        return group

    monkeypatch.setattr(training, "train_clients", trained)


def test_a_client_with_numbers_that_are_not_finite_does_not_take_part(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 1)
    result = run(secure(recipe, federation__rounds=1), out=tmp_path / "run")
    assert result.records[0]["client_ids"] == [0, 2, 3]
    assert result.records[0]["rejected_clients"] == {"1": "non-finite loss or update"}
    assert bool(result.adapter.finite())


def test_the_run_ends_where_every_client_diverged(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 0, 1, 2, 3)
    with pytest.raises(TrainingError, match="every client was rejected"):
        run(secure(recipe, federation__rounds=1), out=tmp_path / "run")


def test_a_client_beyond_the_range_names_the_tensor_and_not_the_number(recipe: Make, tmp_path: Path) -> None:
    config = secure(recipe, federation__rounds=1, privacy={"secure_range": 1e-3})
    with pytest.raises(TrainingError, match=r"beyond privacy\.secure_range = 0\.001, the first in 'sites/"):
        run(config, out=tmp_path / "run")


def test_a_resumed_run_goes_on_as_an_uninterrupted_one(recipe: Make, tmp_path: Path) -> None:
    whole = run(secure(recipe, federation__rounds=2, privacy={"secure_bits": 64}), out=tmp_path / "whole")
    run(secure(recipe, federation__rounds=1, privacy={"secure_bits": 64}), out=tmp_path / "parts")
    config = secure(recipe, federation__rounds=2, privacy={"secure_bits": 64})
    parts = run(config, out=tmp_path / "parts", resume=True)
    for key, tensor in whole.adapter.tensors().items():
        assert (tensor == parts.adapter.tensors()[key]).all(), key


def test_one_client_in_a_round_sends_nothing(recipe: Make, tmp_path: Path) -> None:
    result = run(secure(recipe, federation__rounds=1, federation__fraction=0.25), out=tmp_path / "run")
    assert result.records[0]["clients"] == 0
    [why] = result.records[0]["lost_clients"].values()
    assert "needs two clients" in why
    assert result.records[0]["bytes_up"] == 0


@pytest.mark.parametrize("method", OTHERS)
def test_methods_that_need_single_uploads_are_refused_by_name(
    recipe: Make, tmp_path: Path, method: str
) -> None:
    with pytest.raises(ConfigError, match=f"'{method}'.* every single upload; use one of 'fedit', 'fedrot'"):
        run(secure(recipe, method={"name": method}), out=tmp_path / "run")


@pytest.mark.parametrize("option", [{"refit": 1}, {"guard": "server"}, {"reference": "consensus"}])
def test_options_that_need_single_uploads_are_refused_by_name(
    recipe: Make, tmp_path: Path, option: dict[str, object]
) -> None:
    [(name, value)] = option.items()
    with pytest.raises(ConfigError, match=f"with {name} = {value!r} needs every single upload"):
        run(secure(recipe, method={"name": "fedrot", **option}), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": {"name": "local"}}, "nobody to hide from; use engine.name = 'flower'"),
        ({"engine": {"name": "flower", "backend": "ray"}}, "engine.backend = 'ray'"),
        (
            {
                "privacy": {"secure_aggregation": True, "mechanism": "central"},
                "federation": {"clients": 4, "weighting": "uniform"},
            },
            "privacy.mechanism = 'central'",
        ),
        ({"output": {"diagnostics": True, "report": False}}, "output.diagnostics"),
        ({"federation": {"clients": 4, "stale": 0.5, "stale_weight": 0.5}}, "federation.stale_weight = 0.5"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    recipe: Make, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    made = {"engine": {"name": "flower"}, "privacy": {"secure_aggregation": True}, **options}
    with pytest.raises(ConfigError, match=reason):
        run(recipe(**made), out=tmp_path / "run")


def test_numbers_that_would_be_rounded_too_coarsely_are_refused_with_the_remedy(
    recipe: Make, tmp_path: Path
) -> None:
    config = secure(recipe, privacy={"secure_range": 2.0**20}, federation__rounds=1)
    run(config, out=tmp_path / "fine")
    big = secure(recipe, federation__rounds=1)
    from fedrot.engines.flower.roster import Peer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peer, "weight", lambda self, client, weighting: 1e7)
        with pytest.raises(ConfigError, match=r"set privacy\.secure_bits = 64"):
            run(big, out=tmp_path / "coarse")


def test_a_node_does_not_answer_in_the_clear_where_the_recipe_asks_for_masks(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Worker.handle

    def stripped(self: Worker, kind: str, content: RecordDict) -> RecordDict:
        content = RecordDict({k: v for k, v in content.items() if k != "secure-rules"})
        if kind == "train":
            with pytest.raises(SecureAggregationError, match="the server asks otherwise"):
                handle(self, kind, content)
            raise MemoryError("refused")
        return handle(self, kind, content)

    monkeypatch.setattr(Worker, "handle", stripped)
    result = run(secure(recipe, federation__rounds=1), out=tmp_path / "run")
    assert result.records[0]["clients"] == 0
