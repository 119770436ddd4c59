"""Scores of GLUE against worked numbers and other people's formulas in float64; regression as a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

import fedrot
from fedrot.config import RunConfig, TaskConfig
from fedrot.engines.export import export
from fedrot.engines.run import run
from fedrot.errors import ConfigError, DataError
from fedrot.report import final_rows
from fedrot.report.digits import fraction
from fedrot.tasks.catalogue import load_task, objective
from fedrot.tasks.glue import extra_scores, metric_of
from fedrot.tasks.scores import confusion, matthews, pearson, positive_f1, ranks, spearman

Make = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("data", "metric"),
    [
        ("sst2", "accuracy"),
        ("mnli", "accuracy"),
        ("qqp", "accuracy"),
        ("cola", "matthews"),
        ("stsb", "pearson"),
    ],
)
def test_every_task_is_judged_by_its_own_score(data: str, metric: str) -> None:
    goal = objective(TaskConfig(data=f"glue:{data}"))
    assert (goal.metric.name, goal.metric.better) == (metric, "higher")
    assert metric_of(f"glue:{data}") == goal.metric


def test_f1_and_matthews_of_a_worked_table() -> None:
    """12 examples: 5 true negatives, 1 false positive, 2 false negatives, 4 true positives."""
    labels = torch.tensor([0] * 6 + [1] * 6)
    predicted = torch.tensor([0] * 5 + [1] + [0] * 2 + [1] * 4)
    table = confusion(predicted, labels, 2)
    assert table.tolist() == [[5, 1], [2, 4]]
    assert positive_f1(table) == pytest.approx(8 / 11, abs=1e-15)
    assert matthews(table) == pytest.approx((4 * 5 - 1 * 2) / (5 * 6 * 6 * 7) ** 0.5, abs=1e-15)


def test_matthews_of_several_classes_is_the_correlation_of_indicators() -> None:
    """Gorodkin's: the covariance of one-hot predictions and labels, over the root of their own."""
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(0, 4, 200), draw.integers(0, 4, 200)
    predicted[:120] = labels[:120]
    x, y = np.eye(4)[predicted], np.eye(4)[labels]
    covariance = [((u - u.mean(0)) * (v - v.mean(0))).sum() for u, v in ((x, y), (x, x), (y, y))]
    found = matthews(confusion(torch.tensor(predicted), torch.tensor(labels), 4))
    assert found == pytest.approx(covariance[0] / (covariance[1] * covariance[2]) ** 0.5, abs=1e-12)


def test_scores_of_nothing_predicted_or_nothing_true_are_zero() -> None:
    one_sided = torch.tensor([[3.0, 0.0], [2.0, 0.0]])
    assert matthews(one_sided) == matthews(one_sided.T) == 0.0
    assert positive_f1(one_sided) == positive_f1(torch.tensor([[5.0, 0.0], [0.0, 0.0]])) == 0.0
    assert pearson(torch.ones(4), torch.arange(4.0)) == spearman(torch.arange(4.0), torch.ones(4)) == 0.0


def test_correlations_agree_with_numpy_also_with_ties() -> None:
    draw = np.random.default_rng(1)
    x, y = draw.integers(0, 9, 300).astype(float), draw.normal(size=300).round(1)
    y += 0.2 * x
    assert pearson(torch.tensor(x), torch.tensor(y)) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    mean_rank = [[(s < v).sum() + ((s == v).sum() + 1) / 2 for v in s] for s in (x, y)]
    assert ranks(torch.tensor(x)).tolist() == mean_rank[0]
    expected = np.corrcoef(mean_rank[0], mean_rank[1])[0, 1]
    assert spearman(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, abs=1e-12)
    assert spearman(torch.tensor(x), torch.tensor(np.exp(x))) == pytest.approx(1.0, abs=1e-12)


def test_f1_stands_beside_accuracy_where_glue_has_both() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    assert extra_scores("glue:qqp", logits, labels) == {"f1": pytest.approx(2 / 3)}
    assert list(extra_scores("glue:cola", logits, labels)) == ["matthews"]
    assert extra_scores("glue:sst2", logits, labels) == {}


def serve(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Dataset]) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: DatasetDict(**splits))


def graded(prefix: str, count: int, **more: Any) -> Dataset:
    texts = {f"sentence{i}": [f"{prefix} word{n % 7} {i} {n}" for n in range(count)] for i in (1, 2)}
    return Dataset.from_dict(texts | {"label": [n % 6 * 0.9 for n in range(count)]} | more)


def test_grades_are_learned_by_squared_error_and_the_export_gives_them(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(monkeypatch, {"train": graded("a", 60), "validation": graded("b", 20)})
    config = recipe(task__data="glue:stsb", partition={"kind": "iid"}, federation__clients=2)
    result = run(config, out=tmp_path / "run")
    last, summary = result.records[-1], result.summary
    assert summary["metric"] == {"name": "pearson", "better": "higher"}
    assert {"pearson", "spearman", "eval_loss", "validation_pearson"} <= last.keys()
    assert "accuracy" not in last
    assert summary["labels"] == ["grade"]
    assert result.records[1]["loss"] < result.records[0]["loss"]
    headers, rows = final_rows(tmp_path / "run")
    assert rows[-1][headers.index("Pearson correlation")] == fraction(last["pearson"], 4)
    export(tmp_path / "run", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "fedrot.json").read_text())["labels"] == ["grade"]
    named = dict(fedrot.load_base_for(tmp_path / "again").named_parameters())
    assert named["classifier.weight"].shape == (1, 32)


def test_mnli_reports_both_of_its_test_splits(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def table(prefix: str, count: int) -> Dataset:
        texts = {key: [f"{prefix} {key} {n}" for n in range(count)] for key in ("premise", "hypothesis")}
        features = Features(
            {key: Value("string") for key in texts} | {"label": ClassLabel(names=["e", "n", "c"])}
        )
        return Dataset.from_dict(texts | {"label": [n % 3 for n in range(count)]}, features=features)

    splits = {
        "train": table("a", 60),
        "validation_matched": table("b", 12),
        "validation_mismatched": table("c", 15),
    }
    serve(monkeypatch, splits)
    config = recipe(task__data="glue:mnli", federation={"clients": 2, "rounds": 1}, partition={"kind": "iid"})
    result = run(config, out=tmp_path / "run")
    assert {"accuracy", "mismatched_accuracy", "mismatched_loss"} <= result.records[-1].keys()
    assert result.summary["final"]["mismatched_accuracy"] == result.records[-1]["mismatched_accuracy"]
    right = 15 * result.records[-1]["mismatched_accuracy"]
    assert right == pytest.approx(round(right)), "a share of the 15 mismatched examples"


def test_grades_refuse_a_row_without_one_and_a_probe(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(
        monkeypatch,
        {
            "train": graded("a", 6, label=[1.0, 2.0, float("nan"), 1.0, 2.0, 3.0]),
            "validation": graded("b", 6),
        },
    )
    with pytest.raises(DataError, match=r"row 3 has the texts and grade .*nan"):
        load_task(TaskConfig(data="glue:stsb"), 1)
    with pytest.raises(ConfigError, match=r"output.probe = true: a linear probe needs classes"):
        run(recipe(task__data="glue:stsb", output={"probe": True}), out="unused")
