"""Federations of many clients: what is written, drawn and computed of them stays within bounds, and right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.config import RunConfig
from fedrot.engines import evaluation, shares
from fedrot.engines.run import run
from fedrot.engines.shares import partition_facts
from fedrot.participation import Participation
from fedrot.report import write_report
from fedrot.report.page import CHARTS
from tests.run_directory import make_run

Make = Callable[..., RunConfig]


def test_the_counts_of_few_clients_are_all_written_down() -> None:
    counts = torch.arange(12).view(4, 3)
    assert partition_facts(counts) == {"counts": counts.tolist()}


def test_of_many_clients_evenly_spread_ones_are_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "LISTED", 3)
    counts = torch.tensor([[5, 1], [0, 1], [2, 2], [9, 9], [1, 2], [3, 0], [4, 4]])
    assert partition_facts(counts) == {
        "counts": [[5, 1], [2, 2], [1, 2]],
        "listed": [0, 2, 4],
        "smallest": 1,
        "largest": 18,
    }


def test_the_report_says_how_many_clients_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrot.report.page.CHARTS", {"label_skew": CHARTS["label_skew"]})

    def edit(_: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        summary["clients"] = 100_000
        summary["partition"] |= {"listed": [i * 10_000 for i in range(10)], "smallest": 1, "largest": 7}

    page = write_report(make_run(tmp_path / "run", edit=edit)).read_text("utf-8")
    assert "100,000 clients, 1 to 7 training examples a client; 10 of them are drawn" in page
    assert "Client 90000" in page
    assert "Client 9," not in page


def test_clients_without_parts_of_their_own_are_evaluated_once(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = evaluation.predict

    def counted(*args: Any, **keys: Any) -> torch.Tensor:
        seen.append(1)
        return original(*args, **keys)

    monkeypatch.setattr(evaluation, "predict", counted)
    config = recipe(
        method={"name": "fedsa"}, federation__clients=6, federation__fraction=0.3, federation__rounds=1
    )
    once = run(config, out=tmp_path / "once").records[-1]
    assert len(seen) == 2 * (2 + 1), "test and validation: two clients that trained, and the others together"
    monkeypatch.setattr(evaluation, "_kind", lambda federation, state, client: (None, client))
    each = run(config, out=tmp_path / "each").records[-1]
    assert len(seen) == 2 * (2 + 1) + 2 * 6
    clock = {"seconds", "training_seconds"}
    assert {k: v for k, v in once.items() if k not in clock} == {
        k: v for k, v in each.items() if k not in clock
    }


def test_who_reports_is_who_was_chosen_and_stayed() -> None:
    part = Participation(tuple(range(0, 40_000, 2)), tuple(range(0, 40_000, 6)))
    assert part.reporting == tuple(c for c in range(0, 40_000, 2) if c % 6)
