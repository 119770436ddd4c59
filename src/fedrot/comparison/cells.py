"""The runs of a comparison: which there are, which are done, which failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedrot.comparison.design import Arm, Design
from fedrot.comparison.options import Setting
from fedrot.comparison.pool import Task
from fedrot.comparison.store import Store, cell_key
from fedrot.comparison.tuning import choose, trials
from fedrot.config import RunConfig
from fedrot.engines.shared import frozen_key


@dataclass(frozen=True)
class Cell:
    """One run of the comparison: the first arm that asks for it, its setting and its recipe."""

    arm: Arm
    setting: str
    """What the arm chose or tries here, in words."""
    config: RunConfig

    @property
    def name(self) -> str:
        """For people."""
        setting = f", {self.setting}" if self.setting else ""
        return f"{self.arm.name}{setting}, seed {self.config.seed}"

    def task(self, key: str) -> Task:
        """The cell as work for a pool."""
        return Task(key, frozen_key(self.config), {"config": self.config.model_dump(), "name": self.name})


Cells = dict[str, Cell]


def tuning_cells(design: Design, arms: Sequence[Arm]) -> Cells:
    """The runs that choose settings: every candidate of every arm on the tuning seeds; equal ones once."""
    if not design.tuned:
        return {}
    return _keyed(
        (arm, design.shown(setting), design.config(arm.variant, arm.point, setting, seed))
        for seed in design.choosing
        for arm in arms
        for setting in arm.candidates
    )


def final_cells(design: Design, arms: Sequence[Arm], store: Store) -> Cells:
    """The runs that are reported: every arm with its chosen setting on all seeds; equal ones once."""
    settings = [(arm, _setting(design, arm, store)) for arm in arms]
    return _keyed(
        (arm, design.shown(setting), design.config(arm.variant, arm.point, setting, seed))
        for seed in design.seeds
        for arm, setting in settings
        if setting is not None
    )


def _setting(design: Design, arm: Arm, store: Store) -> Setting | None:
    """What an arm runs with: nothing of its own without tuning, None where no setting could be chosen."""
    if not design.tuned:
        return {}
    best = choose(trials(design, arm, store))
    return None if best is None else best.setting


def _keyed(cells: Iterable[tuple[Arm, str, RunConfig]]) -> Cells:
    found: Cells = {}
    for arm, setting, config in cells:
        found.setdefault(cell_key(config), Cell(arm, setting, config))
    return found


def distinct(design: Design, arms: Sequence[Arm]) -> list[Arm]:
    """Arms without those that are the same runs, as a method at two values of an option it does not have."""
    found: dict[str, Arm] = {}
    for arm in arms:
        keys = [
            cell_key(design.config(arm.variant, arm.point, setting, design.seeds[0]))
            for setting in arm.candidates
        ]
        found.setdefault(json.dumps(keys), arm)
    return list(found.values())


def expected_cells(design: Design, store: Store | None = None) -> tuple[int, int]:
    """How many cells the comparison has, and how many of them are done in `store`."""
    arms = list(design.arms())
    tuning = tuning_cells(design, arms)
    later = len(design.seeds) - (len(design.choosing) if design.tuned else 0)
    total = len(tuning) + len(distinct(design, arms)) * later
    if store is None or not store.cells.is_dir():
        return total, 0
    known = set(tuning) | set(final_cells(design, arms, store))
    return total, sum(store.done(key) for key in known)


def remaining_cells(design: Design, store: Store | None = None) -> list[tuple[Arm, int]]:
    """How many runs each arm still needs; those that several arms share are counted with the first."""
    arms = list(design.arms())
    tuning = tuning_cells(design, arms)
    counts: list[tuple[Arm, int]] = []
    final = final_cells(design, arms, store) if store is not None else {}
    for arm in distinct(design, arms):
        own = [key for key, cell in tuning.items() if cell.arm is arm]
        left = sum(store is None or not store.done(key) for key in own)
        runs = [key for key, cell in final.items() if cell.arm is arm and key not in tuning]
        later = len(design.seeds) - (len(design.choosing) if design.tuned else 0)
        left += later - sum(store is not None and store.done(key) for key in runs)
        counts.append((arm, left))
    return counts


def failures(design: Design, store: Store) -> list[str]:
    """Cells with an error, but for settings that training with them ruled out."""
    arms, found = list(design.arms()), []
    cells = {"tuning": tuning_cells(design, arms), "runs": final_cells(design, arms, store)}
    for name in cells:
        for key, cell in cells[name].items():
            error = (store.cell(key) or {}).get("failure")
            if error is not None and not (name == "tuning" and error["kind"] == "TrainingError"):
                found.append(f"{cell.name}: {error['message']}")
    if design.tuned:
        found += [
            f"{arm.name}: no setting finished" for arm in arms if choose(trials(design, arm, store)) is None
        ]
    return list(dict.fromkeys(found))
