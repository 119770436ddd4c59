"""Which setting a variant runs with: the best mean validation score of the last round, never a test score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedrot.comparison.design import Arm, Design
from fedrot.comparison.options import Setting
from fedrot.comparison.store import Json, Store, cell_key
from fedrot.report.scores import ACCURACY, Score


@dataclass(frozen=True)
class Trial:
    """A candidate with its validation scores by seed; `failed` says why other seeds have none that is finite."""

    setting: Setting
    scores: Mapping[int, float]
    loss: Mapping[int, float]
    failed: Mapping[int, Json]
    score: Score = ACCURACY

    @property
    def mean(self) -> float | None:
        """Mean validation score; None if a seed failed: such a setting is not chosen."""
        return None if self.failed else math.fsum(self.scores.values()) / len(self.scores)

    def rank(self) -> tuple[float, float]:
        """What is maximised: the score, turned so that more is better, then, among equals, a low loss."""
        assert self.mean is not None
        loss = math.fsum(self.loss.values()) / len(self.loss)
        return self.score.gain(self.mean), -loss if math.isfinite(loss) else -math.inf


def trials(design: Design, arm: Arm, store: Store) -> list[Trial]:
    """The finished trials of an arm, in the order of its candidates."""
    found: list[Trial] = []
    for setting in arm.candidates:
        scores: dict[int, float] = {}
        score = Score()
        loss: dict[int, float] = {}
        failed: dict[int, Json] = {}
        for seed in design.choosing:
            cell = store.cell(cell_key(design.config(arm.variant, arm.point, setting, seed)))
            if cell is None or "failure" in cell:
                failed[seed] = (cell or {}).get("failure", {"kind": "Missing", "message": "was not run"})
            else:
                score = Score.of(cell.get("metric"))
                value = cell["final"][score.validation]
                if math.isfinite(value):
                    scores[seed], loss[seed] = value, cell["final"]["validation_loss"]
                else:
                    message = f"its validation {score.words} is {value}, which no choice can go by"
                    failed[seed] = {"kind": "NotFinite", "message": message}
        found.append(Trial(setting, scores, loss, failed, score))
    return found


def choose(found: Sequence[Trial]) -> Trial | None:
    """The best trial, the first of equals; None if each one failed."""
    whole = [trial for trial in found if trial.mean is not None]
    return max(whole, key=Trial.rank) if whole else None
