"""The command line. Exit codes: 0 done, 2 wrong recipe or arguments, 3 data, 4 model, 5 output or resume,
6 training stopped, 130 interrupted (resumable)."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import fedrot
from fedrot.deploy_cli import app as deploy_app
from fedrot.errors import FedrotError
from fedrot.eval_cli import EXAMPLES as EVAL_EXAMPLES
from fedrot.eval_cli import evaluate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(deploy_app, name="deploy")
app.command("eval", epilog=EVAL_EXAMPLES.replace("\n", "\n\n"))(evaluate)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RUN_EXAMPLES = """[bold]Examples[/bold]

  fedrot run recipes/demo.toml
  fedrot run recipes/demo.toml --set method.name=fedit --out runs/fedit
  fedrot run recipes/demo.toml --set method.strength=0.3 --set federation.rounds=30
  fedrot run --resume --out runs/fedit
  fedrot run recipes/demo.toml --engine flower
  fedrot run recipes/demo.toml --estimate
"""


MERGE_EXAMPLES = """[bold]Examples[/bold]

  fedrot merge runs/a/adapter runs/b/adapter --method fedrot --out merged
  fedrot merge a b c --method fedit --weights 100,250,50 --out merged
  fedrot merge a b --method fedrot --reference start --set method.strength=0.5 --out merged
  fedrot merge a --rank 8 --out smaller
"""

COMPARE_EXAMPLES = """[bold]Examples[/bold]

  fedrot compare recipes/demo.toml --methods fedit,fedrot,ffa --seeds 11,12,13 --jobs 2
  fedrot compare recipes/demo.toml --methods fedit,fedrot --seeds 11,12,13 --tune train.lr=1e-3,3e-3 --budget
  fedrot compare recipes/compare-small.toml --out runs/small
  fedrot compare --resume --out runs/small --seeds 11,12,13,14
"""


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print what the user can mend without a traceback, and leave with the error's exit code."""
    try:
        yield
    except FedrotError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(error.exit_code) from None


def _say_version(asked: bool) -> None:
    if asked:
        out.print(f"fedrot {fedrot.__version__}")
        raise typer.Exit


@app.callback()
def entry(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say which fedrot this is."),
    ] = False,
) -> None:
    """Federated LoRA fine-tuning in which clients rotate their factors into a common frame before averaging."""


@app.command(epilog=RUN_EXAMPLES.replace("\n", "\n\n"))
def run(
    recipe: Annotated[
        Path | None, typer.Argument(help="A TOML recipe; may be left out with --resume.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Override one key; may be given several times."
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Run directory; must be new unless --resume.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out where it stopped.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option("--engine", help="`local` or `flower`; short for --set engine.name=...")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what memory, hours and bytes it will take.")
    ] = False,
) -> None:
    """Fine-tune across clients as a recipe says, and write adapter, metrics and report to a run directory."""
    from fedrot.engines.run import run as run_recipe
    from fedrot.outcome import print_outcome
    from fedrot.progress import make_observer

    signal.signal(signal.SIGTERM, _interrupt)
    overrides = [*(set_ or ()), *([f"engine.name={engine}"] if engine is not None else [])]
    with reported_errors():
        if estimate:
            from fedrot.estimate.command import estimate_run

            estimate_run(recipe, overrides, out)
            return
        observer = make_observer(out, err)
        try:
            with observer:
                result = run_recipe(
                    recipe, out=out_dir, resume=resume, overrides=overrides, observer=observer
                )
        except KeyboardInterrupt:
            where = observer.directory or out_dir or "DIR"
            err.print(
                f"interrupted; finished rounds are kept: continue with `fedrot run --resume --out {where}`"
            )
            raise typer.Exit(130) from None
        print_outcome(out, result.directory, result.summary)


@app.command(epilog=COMPARE_EXAMPLES.replace("\n", "\n\n"))
def compare(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A TOML recipe, with or without [compare]; not needed with --resume."),
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

    signal.signal(signal.SIGTERM, _interrupt)
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


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write report.html and the plots of a run again; works while the run is still going."""
    from fedrot.report import write_report

    with reported_errors():
        out.print(f"report: {escape(str(write_report(directory)))}", soft_wrap=True)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="A run directory.")],
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Where to write; default DIR/merged or DIR/adapter.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add the adapter to the base weights.")] = False,
) -> None:
    """Write a run's newest finished round as a PEFT adapter, or with --merge as a whole model."""
    from fedrot.engines.export import export as export_run

    with reported_errors():
        path = export_run(directory, out_dir, merge=merge)
        out.print(f"{'merged model' if merge else 'adapter'}: {escape(str(path))}", soft_wrap=True)


@app.command(epilog=MERGE_EXAMPLES.replace("\n", "\n\n"))
def merge(
    adapters: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="PEFT adapters of one base model.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Where to write; must be new or empty.")],
    method: Annotated[str, typer.Option("--method", help="See `fedrot methods`.")] = "fedit",
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The adapter they were trained from, or whose frame to adopt."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="1,2,...", help="One each; all alike unless given.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="method.KEY=VALUE", help="An option of the method; may be given several times."
        ),
    ] = None,
    balance: Annotated[
        bool | None,
        typer.Option(
            "--balance/--as-trained", help="Write each in its SVD form first; a consensus does so by default."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Truncate the result to this rank, optimally.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="For methods that draw random numbers.")] = 0,
) -> None:
    """Merge PEFT adapters trained anywhere, as one round of any method; no base model is needed."""
    from fedrot.engines.merge import merge as merge_adapters
    from fedrot.engines.merge_words import method_options, numbers, report_lines

    with reported_errors():
        result = merge_adapters(
            adapters,
            method,
            method_options(set_ or ()),
            reference=reference,
            weights=None if weights is None else numbers(weights),
            balance=balance,
            rank=rank,
            out=out_dir,
            seed=seed,
        )
        for told in result.warnings:
            err.print(f"[bold yellow]warning:[/] {escape(told)}", soft_wrap=True)
        for line in report_lines(result):
            out.print(escape(line), soft_wrap=True)


@app.command("methods")
def methods_() -> None:
    """List the aggregation methods, what each promises, and its options."""
    from fedrot.methods import methods

    for name, cls in methods().items():
        laws = {
            "exact": cls.laws.exact,
            "secure aggregation": cls.laws.secure_aggregation,
            "mixed ranks": cls.laws.mixed_ranks,
            "residual": cls.laws.residual,
            "personal": cls.laws.personal,
        }
        promises = ", ".join(law for law, kept in laws.items() if kept) or "no promises"
        options = ", ".join(f"{field.name} = {field.default!r}" for field in dataclasses.fields(cls))
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        out.print(f"[bold]{name}[/]  ({promises})", soft_wrap=True)
        out.print(f"    {escape(summary)}", soft_wrap=True)
        if options:
            out.print(f"    {escape(options)}", soft_wrap=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the `fedrot` command."""
    try:
        app()
    except FedrotError as error:  # raised while arguments were parsed, or by `deploy` and `eval`
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(error.exit_code) from None
