"""`fedrot.compare`: methods by seeds by grid, settings chosen with one budget for all, resumable cell by cell."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedrot.comparison.cell import CellWorker, end_of_worker
from fedrot.comparison.cells import Cells, distinct, failures, final_cells, tuning_cells
from fedrot.comparison.dealing import check_dealing
from fedrot.comparison.design import Design
from fedrot.comparison.fairness import Fairness
from fedrot.comparison.pool import Pool, Task, Watch, work_here
from fedrot.comparison.reading import make_design, split_recipe
from fedrot.comparison.results import collect
from fedrot.comparison.store import Json, Store
from fedrot.config import RunConfig, parse_config
from fedrot.config.arguments import as_list, as_lists, as_overrides
from fedrot.errors import ConfigError
from fedrot.rundir import free_directory


@dataclass(frozen=True)
class Comparison:
    """What a comparison leaves behind. `results` is what results.json holds; `failed` names cells with an error."""

    results: Json
    failed: list[str]
    directory: Path


class Watcher(Watch):
    """Told how far a comparison is."""

    def opened(self, design: Design, directory: Path) -> None:
        """The comparison's directory is there."""

    def phase(self, name: str, tasks: int, done: int, later: int) -> None:
        """`name` begins: so many cells to run, so many there already, so many in a later phase."""


def plan(
    recipe: str | Path | Mapping[str, Any] | RunConfig | None,
    given: Mapping[str, Any],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
) -> tuple[Design, Path]:
    """The comparison asked for and its directory; see `compare`. Nothing is written."""
    if isinstance(recipe, RunConfig):
        recipe = {
            key: value for key, value in recipe.model_dump(exclude_none=True).items() if key != "output"
        }
    if recipe is None:
        if not resume or out is None:
            raise ConfigError(
                "no recipe: give the path of a TOML file, or --resume --out DIR to continue a comparison"
            )
        stored = Store(out).stored_plan()
        data, table = stored["recipe"], stored["compare"]
        stem = "compare"
    else:
        data, table = split_recipe(recipe)
        stem = "compare" if isinstance(recipe, Mapping) else Path(recipe).stem
    if resume and out is None:
        raise ConfigError("resume: name the comparison's directory, with --out DIR (out=... in Python)")
    design = make_design(data, table, given, overrides)
    return design, Path(out or free_directory(f"{stem}-compare"))


def compare(
    recipe: str | Path | Mapping[str, Any] | RunConfig | None,
    *,
    methods: Sequence[str] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    one_factor: bool | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    trials: int | None = None,
    tune_seeds: int | None = None,
    baseline: str | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    keep_adapters: bool = False,
    overrides: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Comparison:
    """Compare methods over seeds, on the same data, clients, initial adapter and evaluation.

    What is None comes from the recipe's `[compare]` table.

    Args:
        recipe: the path of a TOML recipe, a nested mapping or a RunConfig; None only with `resume`: the stored one.
        methods: variants that are nothing but a method with its default options, or those of the recipe.
        variants: richer ones: label to dotted recipe keys.
        seeds: every variant runs with each.
        grid: recipe key to values; several keys make a product.
        one_factor: vary every grid key alone instead.
        tune: recipe key, or `variant:key`, to values among which the best on validation is chosen.
        trials: settings that every variant may try; default the size of the common lists.
        tune_seeds: how many of the seeds, the first, choose.
        baseline: what differences are taken to; default `fedit`, or the first variant.
        jobs: worker processes; 1 runs in this one.
        out: the directory; default the first free `runs/<recipe>-compare[-n]`.
        resume: go on with the comparison in `out`, or extend it.
        keep_adapters: keep every cell's PEFT adapter, under `adapters/`.
        overrides: `section.key=value` strings applied to the recipe.
        watcher: told of progress.

    Raises:
        FedrotError: a comparison that cannot run or is not fair, or an occupied directory. Cells that fail do not
            raise: they are in `failed`.
    """
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: expected at least 1")
    lists = "{'train.lr': [1e-3, 3e-3]}"
    asked = {
        "methods": None if methods is None else as_list(methods, "methods", "['fedit', 'fedrot']"),
        "variants": variants,
        "seeds": None if seeds is None else as_list(seeds, "seeds", "[11, 12, 13]"),
        "grid": None if grid is None else as_lists(grid, "grid", lists),
        "one_factor": one_factor,
        "tune": None if tune is None else as_lists(tune, "tune", lists),
        "trials": trials,
        "tune_seeds": tune_seeds,
        "baseline": baseline,
    }
    design, path = plan(recipe, asked, out=out, resume=resume, overrides=as_overrides(overrides))
    return run_design(design, path, jobs=jobs, resume=resume, keep_adapters=keep_adapters, watcher=watcher)


def run_design(
    design: Design,
    path: Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    keep_adapters: bool = False,
    watcher: Watcher | None = None,
) -> Comparison:
    """Run what is not there yet of a checked design, and write its results.

    Raises:
        FedrotError: an occupied directory, or data that some run's clients could not be dealt.
    """
    from fedrot.comparison.page import write_results

    store, watcher = Store(path), watcher or Watcher()
    store.check(design, resume=resume)
    check_dealing(design, store)
    store.open(design)
    watcher.opened(design, path)
    threads = None if jobs == 1 else max(1, torch.get_num_threads() // jobs)
    arguments = (str(path), keep_adapters, threads)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Pool(jobs, CellWorker, arguments)) if jobs > 1 else None
        arms, fairness = list(design.arms()), Fairness()
        for name in ("tuning", "runs"):
            wanted = tuning_cells(design, arms) if name == "tuning" else final_cells(design, arms, store)
            tasks = [cell.task(key) for key, cell in wanted.items() if not store.done(key)]
            _check_done(wanted, store, fairness)
            each = len(design.seeds) - len(design.choosing)  # the runs that chose are not run again
            later = each * len(distinct(design, arms)) if name == "tuning" and wanted else 0
            watcher.phase(name, len(tasks), len(wanted) - len(tasks), later)
            watch = _Checked(store, watcher, wanted, fairness)
            if pool is None:
                work_here(tasks, CellWorker, arguments, watch)
            else:
                pool.run(tasks, watch)
    results = collect(design, store)
    write_results(store, results)
    return Comparison(results, failures(design, store), path)


def _check_done(wanted: Cells, store: Store, fairness: Fairness) -> None:
    """Hold cells of before to each other, so that the first new one that differs from them ends the comparison.

    Raises:
        ConfigError: see `Fairness`.
    """
    for key, cell in wanted.items():
        found = store.cell(key)
        if found is not None and "failure" not in found:
            fairness.check(cell.arm, found)


class _Checked(Watch):
    """Passes news on, holds finished cells to one start, and writes down cells whose worker died."""

    def __init__(self, store: Store, watcher: Watcher, cells: Cells, fairness: Fairness) -> None:
        self.store, self.watcher, self.cells, self.fairness = store, watcher, cells, fairness

    def began(self, task: Task) -> None:
        self.watcher.began(task)

    def told(self, task: Task, news: Mapping[str, Any]) -> None:
        self.watcher.told(task, news)

    def ended(self, task: Task) -> None:
        self.watcher.ended(task)
        cell = self.store.cell(task.key)
        if cell is not None and "failure" not in cell:
            self.fairness.check(self.cells[task.key].arm, cell)

    def died(self, task: Task, reason: str, *, again: bool) -> None:
        if not again:
            config = parse_config(task.payload["config"])
            self.store.write_cell(task.key, end_of_worker(task.key, config, reason))
        self.watcher.died(task, reason, again=again)
