"""`fedrot compare`: its arguments. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrot.terminal import err, out, reported_errors, stop_like_an_interrupt

EXAMPLES = """[bold]Examples[/bold]

  fedrot compare recipes/demo.toml --methods fedit,fedrot,ffa --seeds 11,12,13 --jobs 2
  fedrot compare recipes/demo.toml --methods fedit,fedrot --seeds 11,12,13 --tune train.lr=1e-3,3e-3 --budget
  fedrot compare recipes/compare-small.toml --out runs/small
  fedrot compare --resume --out runs/small --seeds 11,12,13,14
"""


def compare(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A TOML recipe, with or without \\[compare]; not needed with --resume."),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Methods to compare, with commas between.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds that every variant runs with.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar='"LABEL: KEY=VALUE ..."', help="A variant with settings of its own; repeatable."
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Repeat everything for each value; several make a product."),
    ] = None,
    one_factor: Annotated[
        bool, typer.Option("--one-factor", help="Vary every grid key alone, the others as in the recipe.")
    ] = False,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[VARIANT:]KEY=V1,V2", help="Choose among values on the validation split; repeatable."
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Settings each variant may try.")] = None,
    tune_seeds: Annotated[int | None, typer.Option(help="How many of the seeds choose settings.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The variant that differences are taken to.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key of the recipe."),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Directory; must be new unless --resume.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with, or extend, the comparison in --out.")
    ] = False,
    keep_adapters: Annotated[bool, typer.Option("--keep-adapters", help="Keep each run's adapter.")] = False,
    budget: Annotated[
        bool, typer.Option("--budget", help="Only say how long it will take here, from timing its parts.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Only say what it will take on several devices, by calculation."),
    ] = False,
    published: Annotated[
        Path | None,
        typer.Option("--published", metavar="FILE", help="Published figures to print beside ours."),
    ] = None,
) -> None:
    """Compare methods over seeds, alike in everything else; settings are chosen on the validation split."""
    from fedrot.comparison.command import run_command

    stop_like_an_interrupt()
    with reported_errors():
        code = run_command(
            recipe,
            methods=methods,
            seeds=seeds,
            variant=variant,
            grid=grid,
            one_factor=one_factor,
            tune=tune,
            trials=trials,
            tune_seeds=tune_seeds,
            baseline=baseline,
            overrides=set_ or (),
            jobs=jobs,
            out=out_dir,
            resume=resume,
            keep_adapters=keep_adapters,
            budget=budget,
            estimate=estimate,
            published=published,
            console=out,
            errors=err,
        )
        raise typer.Exit(code)
