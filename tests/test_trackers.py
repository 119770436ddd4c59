"""Rounds in TensorBoard, and what happens where a tracker is unknown, missing or fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking as layer

from fedrot.config import RunConfig
from fedrot.engines.observer import Observer
from fedrot.engines.run import run
from fedrot.engines.trackers import settings
from fedrot.errors import ConfigError

Make = Callable[..., RunConfig]


class Notes(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def watched(recipe: Make) -> Callable[..., RunConfig]:
    return lambda **options: recipe(output={"report": False, "trackers": ["tensorboard"]}, **options)


def test_tensorboard_has_every_figure_of_every_round(watched: Make, tmp_path: Path) -> None:
    result = run(watched(), out=tmp_path / "run")
    seen = curves(tmp_path / "run" / "tensorboard")
    for key in ("loss", "accuracy", "aggregation_error_relative", "bytes_up"):
        expected = [(record["round"], pytest.approx(record[key], rel=1e-5)) for record in result.records]
        assert seen[key] == expected
    assert "round" not in seen


def test_a_resumed_run_goes_on_in_the_same_curves(watched: Make, tmp_path: Path) -> None:
    run(watched(), out=tmp_path / "run")
    result = run(watched(federation__rounds=3), out=tmp_path / "run", resume=True)
    assert [step for step, _ in curves(tmp_path / "run" / "tensorboard")["loss"]] == [1, 2, 3]
    assert len(result.records) == 3


def test_settings_are_the_recipe_without_paths_of_output(watched: Make) -> None:
    found = settings(watched(federation__fraction=0.5, lora__target_modules=["query"]))
    assert (found["train.lr"], found["federation.fraction"], found["seed"]) == (0.01, 0.5, 3)
    assert found["lora.target_modules"] == '["query"]'
    assert not any(key.startswith("output") for key in found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorbord", r"output\.trackers names 'tensorbord'.*tensorboard"),
        ("wandb", r"output\.trackers names 'wandb', which is not installed; pip install wandb"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_else(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setattr(layer, "_available_trackers", [])
    with pytest.raises(ConfigError, match=words):
        run(recipe(output={"trackers": [name]}, task={"data": "/nowhere.csv"}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    watched: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(layer.TensorBoardTracker, "log", away)
    notes = Notes()
    result = run(watched(), out=tmp_path / "run", observer=notes)
    assert len(result.records) == 2
    told = [text for text in notes.said if "tracker" in text]
    assert told == [
        "tracker 'tensorboard' failed in round 1 and is told no more: ConnectionError: no route to host"
    ]


def test_a_tracker_that_does_not_start_is_an_error(
    watched: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise PermissionError("no key")

    monkeypatch.setattr(layer.TensorBoardTracker, "start", away)
    with pytest.raises(ConfigError, match=r"'tensorboard' does not start \(PermissionError: no key\)"):
        run(watched(), out=tmp_path / "run")


def test_trackers_that_did_start_are_finished_when_another_does_not(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []

    class Away(layer.TensorBoardTracker):
        def start(self) -> None:
            raise PermissionError("no key")

    monkeypatch.setitem(layer.LOGGER_TYPE_TO_CLASS, "aim", Away)
    monkeypatch.setattr(layer, "_available_trackers", ["tensorboard", "aim"])
    monkeypatch.setattr(layer.TensorBoardTracker, "finish", lambda self: finished.append(self.run_name))
    with pytest.raises(ConfigError, match="'aim' does not start"):
        run(recipe(output={"report": False, "trackers": ["tensorboard", "aim"]}), out=tmp_path / "run")
    assert finished == ["tensorboard"]
