"""Epsilon counts what was released: also a round that a resumed run does again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.checkpoint import load_checkpoint
from fedrot.config import RunConfig
from fedrot.core import Adapter
from fedrot.engines import private as privacy
from fedrot.engines import rounds
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run
from fedrot.errors import OutputError
from fedrot.privacy import Accountant
from fedrot.server import ServerState

Make = Callable[..., RunConfig]
MECHANISMS = pytest.mark.parametrize("mechanism", ["central", "local"])


class Notes(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    @property
    def repetitions(self) -> list[str]:
        return [note for note in self.said if "released again" in note]


def private(recipe: Make, mechanism: str, **keys: Any) -> RunConfig:
    given = {
        "privacy__mechanism": mechanism,
        "privacy__noise_source": "seed",
        "privacy__noise": 3.0,
        "federation__weighting": "uniform",
        "federation__rounds": 3,
        "train__local_steps": 1,
    }
    return recipe(**(given | keys))


def epsilons(config: RunConfig, *releases: int) -> list[float | None]:
    """Of so many releases, all clients taking part."""
    accountant = Accountant(config.privacy, config.seed, 4, 1.0)
    return [accountant.epsilon(count) for count in releases]


def released(out: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (out / "releases.jsonl").read_text().splitlines()]


def damage(out: Path, round: int) -> None:
    path = out / "checkpoint" / f"round-{round:06d}" / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def stop_while_saving(monkeypatch: pytest.MonkeyPatch, round: int) -> None:
    original = rounds.save_checkpoint

    def save(directory: Path, state: ServerState, record: Mapping[str, Any], *, keep: int) -> Path:
        if state.round == round:
            raise KeyboardInterrupt
        return original(directory, state, record, keep=keep)

    monkeypatch.setattr(rounds, "save_checkpoint", save)


def assert_spent(result: RunResult, *spent: float | None) -> None:
    assert [record["epsilon"] for record in result.records] == list(spent)
    assert result.summary["privacy"]["epsilon"] == spent[-1]


def same(one: Adapter, other: Adapter) -> bool:
    tensors = other.tensors()
    return all(torch.equal(tensor, tensors[key]) for key, tensor in one.tensors().items())


@MECHANISMS
@pytest.mark.parametrize("engine", ["local", "flower"])
def test_a_round_done_again_after_a_damaged_checkpoint_counts_twice(
    recipe: Make, tmp_path: Path, mechanism: str, engine: str
) -> None:
    config = private(recipe, mechanism, engine__name=engine, output__keep_checkpoints=3)
    out, notes = tmp_path / "run", Notes()
    first = run(config, out=out, observer=notes)
    assert_spent(first, *epsilons(config, 1, 2, 3))
    assert (released(out), first.summary["privacy"]["released_again"]) == ([1, 2, 3], [])
    assert not notes.repetitions
    damage(out, 3)
    resumed = run(config, out=out, resume=True, observer=notes)
    assert_spent(resumed, *epsilons(config, 1, 2, 4))
    assert (released(out), resumed.summary["privacy"]["released_again"]) == ([1, 2, 3, 3], [3])
    assert resumed.summary["privacy"]["rounds_of_a_client"] == 4
    (note,) = notes.repetitions
    assert "the private result of round 3 may have left" in note


def test_with_two_damaged_checkpoints_both_rounds_count_twice_and_the_report_says_so(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrot.report.page.CHARTS", {})
    config = private(recipe, "central", output__keep_checkpoints=3, output__report=True)
    out, notes = tmp_path / "run", Notes()
    run(config, out=out)
    assert "Released more than once" not in (out / "report.html").read_text()
    damage(out, 3)
    damage(out, 2)
    resumed = run(config, out=out, resume=True, observer=notes)
    assert_spent(resumed, *epsilons(config, 1, 4, 5))
    assert "rounds 2, 3 may have left" in notes.repetitions[0]
    page = (out / "report.html").read_text()
    assert "Released more than once, and counted as often: round 2, 3." in page
    assert f"ε = {resumed.summary['privacy']['epsilon']:.3g} at" in page


@MECHANISMS
def test_a_run_stopped_while_it_saves_a_round_publishes_the_round_before(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    monkeypatch.setattr("fedrot.report.page.CHARTS", {})
    config, out = private(recipe, mechanism, output__report=True), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_while_saving(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(config, out=out)
    two = private(recipe, mechanism, federation__rounds=2)
    run(two, out=tmp_path / "two")
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds"], summary["interrupted"]) == (2, True)
    assert [summary["privacy"]["epsilon"]] == epsilons(config, 3), "the third release had begun"
    assert f"ε = {summary['privacy']['epsilon']:.3g} at" in (out / "report.html").read_text()
    notes = Notes()
    resumed = run(config, out=out, resume=True, observer=notes)
    assert_spent(resumed, *epsilons(config, 1, 2, 4))
    assert notes.repetitions


def test_without_privacy_too_nothing_is_published_that_no_checkpoint_holds(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = recipe(federation__rounds=3, train__local_steps=1), tmp_path / "run"
    stop_while_saving(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(config, out=out)
    monkeypatch.undo()
    checkpoint = load_checkpoint(out / "checkpoint")
    assert checkpoint is not None
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == checkpoint.state.round == 2
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    whole = run(config, out=tmp_path / "whole")
    assert same(run(config, out=out, resume=True).adapter, whole.adapter)
    assert not (out / "releases.jsonl").exists(), "nothing private was released"


@MECHANISMS
def test_a_release_is_on_the_list_before_noise_is_drawn(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    original, seen = privacy.make_noise, set[tuple[int, ...]]()

    def make_noise(source: str, seed: int, round: int, *client: int) -> Any:
        if mechanism == "local" or not client:  # with `central` the clients draw none
            seen.add((round, *released(tmp_path / "run")))
        return original(source, seed, round, *client)  # type: ignore[arg-type]

    monkeypatch.setattr(privacy, "make_noise", make_noise)
    run(private(recipe, mechanism), out=tmp_path / "run")
    assert seen == {(1, 1), (2, 1, 2), (3, 1, 2, 3)}


def test_over_flower_a_local_release_is_on_the_list_before_nodes_are_asked_to_train(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrot.engines.flower.messages import TRAIN
    from fedrot.engines.flower.messenger import Messenger

    original, seen = Messenger.ask, list[list[int]]()

    def ask(self: Messenger, kind: str, *arguments: Any) -> Any:
        if kind == TRAIN:
            seen.append(released(tmp_path / "run"))
        return original(self, kind, *arguments)

    monkeypatch.setattr(Messenger, "ask", ask)
    run(private(recipe, "local", engine__name="flower"), out=tmp_path / "run")
    assert seen == [[1], [1, 2], [1, 2, 3]]


def test_with_a_part_of_the_clients_a_round_counts_for_those_who_were_chosen(
    recipe: Make, tmp_path: Path
) -> None:
    config = private(recipe, "central", federation__fraction=0.5, output__keep_checkpoints=3)
    out = tmp_path / "run"
    run(config, out=out)
    damage(out, 3)
    resumed = run(config, out=out, resume=True)
    accountant = Accountant(config.privacy, config.seed, 4, 0.5)
    assert resumed.summary["privacy"]["epsilon"] == accountant.epsilon(3, [1, 2, 3, 3])
    assert resumed.summary["privacy"]["rounds_of_a_client"] == accountant.taken(3, [1, 2, 3, 3])


def test_a_round_that_died_before_the_first_checkpoint_counts(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = private(recipe, "local", federation__rounds=1), tmp_path / "run"
    stop_while_saving(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(config, out=out)
    monkeypatch.undo()
    assert_spent(run(config, out=out, resume=True), *epsilons(config, 2))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_begun_before_there_was_a_list_counts_the_rounds_on_record(
    recipe: Make, tmp_path: Path, damaged: bool
) -> None:
    out = tmp_path / "run"
    run(private(recipe, "central", federation__rounds=2), out=out)
    (out / "releases.jsonl").unlink()
    if damaged:
        damage(out, 2)
    config = private(recipe, "central")
    resumed = run(config, out=out, resume=True)
    assert_spent(resumed, *epsilons(config, *((1, 3, 4) if damaged else (1, 2, 3))))
    assert released(out) == ([1, 2, 2, 3] if damaged else [1, 2, 3])


def test_a_list_that_was_tampered_with_stops_the_resumed_run(recipe: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(private(recipe, "central", federation__rounds=1), out=out)
    (out / "releases.jsonl").write_text("nothing\n")
    with pytest.raises(OutputError, match=r"releases\.jsonl', line 1"):
        run(private(recipe, "central"), out=out, resume=True)
