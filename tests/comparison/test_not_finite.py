"""Scores that are not finite: no round and no setting is chosen for one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrot.comparison.cell import figures
from fedrot.comparison.results import collect
from fedrot.comparison.run import plan
from fedrot.comparison.store import Store, cell_key
from fedrot.comparison.table import markdown
from fedrot.comparison.tuning import Trial, choose, trials
from fedrot.config import RunConfig
from fedrot.engines.compat import reported
from fedrot.engines.evaluation import evaluate_state
from fedrot.engines.run import run
from fedrot.report.scores import ACCURACY, Score

Make = Callable[..., RunConfig]
Small = Callable[..., dict[str, Any]]
PERPLEXITY = Score("perplexity", "lower")
NOT_FINITE = (math.nan, math.inf, -math.inf)
ROUND = {"bytes_up": 1, "bytes_down": 1, "seconds": 0.1, "rejected": 0, "loss": 1.0}


def rounds(*values: float, name: str = "accuracy") -> list[dict[str, Any]]:
    return [{"round": n, name: v, f"validation_{name}": v, **ROUND} for n, v in enumerate(values, 1)]


@pytest.mark.parametrize("odd", NOT_FINITE)
@pytest.mark.parametrize("score", [ACCURACY, PERPLEXITY])
def test_the_best_round_has_a_finite_score(odd: float, score: Score) -> None:
    best = {"accuracy": 0.6, "perplexity": 0.4}[score.name]
    assert figures(rounds(odd, 0.4, 0.6, odd, name=score.name), None, score)["best"][score.name] == best
    assert figures(rounds(odd, odd, name=score.name), None, score)["best"] is None


@pytest.mark.parametrize("odd", NOT_FINITE)
def test_the_maximum_of_published_code_is_a_finite_one(recipe: Make, odd: float) -> None:
    config = recipe(compat={"validation_maximum": True})
    assert reported(config, rounds(odd, 0.4, 0.6, odd), "accuracy", "higher")["round"] == 3
    assert reported(config, rounds(odd, odd), "accuracy", "higher")["round"] == 2


def test_a_summary_names_no_round_without_a_finite_validation_score(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd_at_first(federation: Any, state: Any) -> dict[str, float]:
        odd = {"validation_accuracy": math.nan} if state.round == 1 else {}
        return evaluate_state(federation, state) | odd

    monkeypatch.setattr("fedrot.engines.rounds.evaluate_state", odd_at_first)
    assert run(recipe(), out=tmp_path / "two").summary["best_validation_round"] == 2
    alone = run(recipe(federation__rounds=1), out=tmp_path / "one").summary
    assert (alone["best_validation_round"], alone["best_validation"]) == (None, None)


@pytest.mark.parametrize("odd", NOT_FINITE)
def test_a_trial_whose_score_or_loss_is_not_finite_comes_last(odd: float) -> None:
    for score in (ACCURACY, PERPLEXITY):
        fine, broken = (Trial({"lr": v}, {1: v}, {1: 0.0}, {}, score) for v in (0.4, odd))
        assert choose([broken, fine]) is choose([fine, broken]) is fine
    fine, broken = (Trial({"lr": v}, {1: 0.4}, {1: v}, {}) for v in (9.0, odd))
    assert choose([broken, fine]) is choose([fine, broken]) is fine


@pytest.mark.parametrize("odd", NOT_FINITE)
def test_a_setting_without_a_finite_score_is_ruled_out_and_said_so(
    small: Small, tmp_path: Path, odd: float
) -> None:
    asked = {"methods": ["fedit"], "seeds": [3], "tune": {"train.lr": [0.1, 0.2]}}
    design, _ = plan(small(), asked)
    store, (arm,) = Store(tmp_path / "c"), design.arms()
    for setting, value in zip(arm.candidates, (odd, 0.5), strict=True):
        config = design.config(arm.variant, arm.point, setting, 3)
        final = {"round": 2, "accuracy": 0.5, "validation_accuracy": value, "validation_loss": 1.0}
        cell = {
            "key": cell_key(config),
            "config": config.model_dump(exclude={"output"}),
            **{"digests": {}, "final": final, "best": None, "rejected": 0, "wall_seconds": 1.0},
            **dict.fromkeys(("device", "threads", "versions", "examples"), 0),
        }
        store.write_cell(cell["key"], cell)
        store.write(store.cells / f"{cell['key']}.metrics.jsonl", "")
    broken, fine = trials(design, arm, store)
    assert (broken.mean, fine.mean) == (None, 0.5)
    assert choose([broken, fine]) is fine
    results = collect(design, store)
    said = f"fedit, lr = 0.1, seed 3: its validation accuracy is {odd}, which no choice can go by"
    assert any("ruled out" in note and said in note for note in results["notes"])
    assert "| fedit | – | lr = 0.1 | failed |" in markdown(results)
