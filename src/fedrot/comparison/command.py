"""`fedrot compare`: its arguments, what it prints, and its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedrot.comparison.budget import estimate_budget
from fedrot.comparison.cells import remaining_cells
from fedrot.comparison.dealing import check_dealing
from fedrot.comparison.design import Arm, Design
from fedrot.comparison.display import Display, duration
from fedrot.comparison.options import parse_assignments, parse_list, parse_variant
from fedrot.comparison.published import (
    HEADERS,
    PublishedTable,
    published_markdown,
    published_rows,
    read_published,
)
from fedrot.comparison.run import Comparison, plan, run_design
from fedrot.comparison.store import Store
from fedrot.comparison.table import explanation, headers, rows, verdict
from fedrot.config import RunConfig
from fedrot.engines.compat import precision
from fedrot.errors import ConfigError, TrainingError
from fedrot.estimate import DEVICES, forecast, this_cpu
from fedrot.estimate.words import Arms, print_comparison
from fedrot.rundir import write_whole


def run_command(
    recipe: Path | None,
    *,
    out: Path | None,
    resume: bool,
    jobs: int,
    keep_adapters: bool,
    budget: bool,
    overrides: Sequence[str],
    console: Console,
    errors: Console,
    estimate: bool = False,
    published: Path | None = None,
    **options: Any,
) -> int:
    """Run the command and return its exit code.

    Raises:
        FedrotError: as `fedrot.compare` does.
    """
    design, path = plan(recipe, parse_options(**options), out=out, resume=resume, overrides=overrides)
    table = None if published is None else figures_for(recipe, published)
    if estimate:
        print_estimate(design, console)
        return 0
    if budget:
        print_budget(design, path, resume=resume, jobs=jobs, console=console, errors=errors)
        return 0
    display = Display(console, errors)
    try:
        with display:
            found = run_design(
                design, path, jobs=jobs, resume=resume, keep_adapters=keep_adapters, watcher=display
            )
    except KeyboardInterrupt:
        errors.print(
            f"interrupted; finished cells are kept: continue with `fedrot compare --resume --out {escape(str(path))}`",
            soft_wrap=True,
        )
        return 130
    print_result(found, console)
    if table is not None:
        print_published(table, found, console)
    if found.failed:
        listing = "\n  ".join(found.failed)
        raise TrainingError(
            f"{len(found.failed)} cells have no result:\n  {listing}\nthe others are in the table; `--resume --out "
            f"{path}` tries these again"
        )
    return 0


def parse_options(
    *,
    methods: str | None,
    seeds: str | None,
    variant: Sequence[str] | None,
    grid: Sequence[str] | None,
    one_factor: bool,
    tune: Sequence[str] | None,
    trials: int | None,
    tune_seeds: int | None,
    baseline: str | None,
) -> dict[str, Any]:
    """The command line's options in the form of a `[compare]` table; what is not given is None."""
    labels = [label for label, _ in map(parse_variant, variant or ())]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"--variant {label!r}: given twice; choose another label")
    return {
        "methods": None if methods is None else parse_list(methods, "methods"),
        "variants": dict(map(parse_variant, variant)) if variant else None,
        "seeds": None if seeds is None else parse_list(seeds, "seeds"),
        "grid": parse_assignments(grid, "--grid") if grid else None,
        "one_factor": True if one_factor else None,
        "tune": parse_assignments(tune, "--tune") if tune else None,
        "trials": trials,
        "tune_seeds": tune_seeds,
        "baseline": baseline,
    }


def print_budget(
    design: Design, path: Path, *, resume: bool, jobs: int, console: Console, errors: Console
) -> None:
    """Say how many runs there are and how long they will take; train nothing but the probe."""
    store = Store(path)
    if resume:
        store.check(design, resume=True)
    check_dealing(design, store)
    found = estimate_budget(
        design,
        store if resume else None,
        jobs=jobs,
        note=lambda text: errors.print(f"{escape(text)} ...", soft_wrap=True),
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("one run of")
    table.add_column("takes", justify="right")
    for name, seconds in found.by_arm.items():
        table.add_row(escape(name), duration(seconds))
    console.print(table)
    console.print(
        f"\ndata, model and cached states are made ready {found.setups} times, {duration(found.setup)} each",
        soft_wrap=True,
    )
    left = found.cells - found.done
    workers = f"{jobs} worker{'s' if jobs > 1 else ''}"
    console.print(
        f"{found.cells} runs, {found.done} done already, {left} to go: about {duration(found.wall)} with {workers} "
        "that do not slow each other down",
        soft_wrap=True,
    )


def first_config(design: Design, arm: Arm) -> RunConfig:
    """The recipe of an arm's first run; its others take as long."""
    return design.config(arm.variant, arm.point, arm.candidates[0], design.seeds[0])


def print_estimate(design: Design, console: Console) -> None:
    """Say what all runs take on several devices, from the recipes alone."""
    devices = (*DEVICES, this_cpu(precision(first_config(design, next(design.arms())))))
    arms = [
        Arms(arm.point, arm.where, arm.variant, runs, forecast(first_config(design, arm), devices))
        for arm, runs in remaining_cells(design)
    ]
    print_comparison(arms, console)


def figures_for(recipe: Path | None, published: Path) -> PublishedTable:
    """The published table that is named like a sweep.

    Raises:
        ConfigError: no sweep file is given, or there is no such table.
    """
    if recipe is None:
        raise ConfigError("--published: give the sweep's file as well, whose name says which table to take")
    return read_published(published, recipe.stem)


def print_published(table: PublishedTable, found: Comparison, console: Console) -> None:
    """Our figures beside published ones, on the console and in `published.md`."""
    lines = published_rows(table, found.results, found.directory)
    shown = Table(box=None, pad_edge=False, title=escape(table.title), title_justify="left")
    for number, header in enumerate(HEADERS):
        shown.add_column(header, justify="right" if number > 1 else "left")
    for line in lines:
        shown.add_row(*map(escape, line))
    console.print(shown)
    path = found.directory / "published.md"
    write_whole(path, published_markdown(table, lines))
    console.print(f"published: {escape(str(path))}", soft_wrap=True)


def print_result(found: Comparison, console: Console) -> None:
    """The main table of every grid point, the verdict, and where the rest lies."""
    results = found.results
    for point in results["points"]:
        table = Table(box=None, pad_edge=False, title=escape(point["name"]) or None, title_justify="left")
        shown = headers(results)[:4]
        for number, header in enumerate(shown):
            table.add_column(header, justify="right" if number else "left")
        for row in rows(results, point["setting"]):
            table.add_row(*(escape(cell) for cell in row[:4]))
        console.print(table)
    console.print(f"\n{escape(explanation(results))}", soft_wrap=True)
    console.print(escape(verdict(results)), soft_wrap=True)
    for note in results["notes"]:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    for name in ("table.md", "compare.html"):
        console.print(f"{name.split('.')[0] + ':':8} {escape(str(found.directory / name))}", soft_wrap=True)
