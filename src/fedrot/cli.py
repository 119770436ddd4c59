"""The command line. Exit codes: 0 done, 2 wrong recipe or arguments, 3 data, 4 model, 5 output or resume,
6 training stopped, 130 interrupted (resumable)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import fedrot
from fedrot.compare_cli import EXAMPLES as COMPARE_EXAMPLES
from fedrot.compare_cli import compare
from fedrot.deploy_cli import app as deploy_app
from fedrot.errors import FedrotError
from fedrot.eval_cli import EXAMPLES as EVAL_EXAMPLES
from fedrot.eval_cli import evaluate
from fedrot.merge_cli import EXAMPLES as MERGE_EXAMPLES
from fedrot.merge_cli import merge
from fedrot.terminal import err, out, reported_errors, stop_like_an_interrupt, tell

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

RUN_EXAMPLES = """[bold]Examples[/bold]

  fedrot run recipes/demo.toml
  fedrot run recipes/demo.toml --set method.name=fedit --out runs/fedit
  fedrot run recipes/demo.toml --set method.strength=0.3 --set federation.rounds=30
  fedrot run --resume --out runs/fedit
  fedrot run recipes/demo.toml --engine flower
  fedrot run recipes/demo.toml --estimate
"""


def _paragraphs(examples: str) -> str:
    """A line of its own for each example."""
    return examples.replace("\n", "\n\n")


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


@app.command(epilog=_paragraphs(RUN_EXAMPLES))
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
    from fedrot.outcome import interrupted, print_outcome
    from fedrot.progress import make_observer

    stop_like_an_interrupt()
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
            err.print(escape(interrupted(observer.directory or out_dir)), soft_wrap=True)
            raise typer.Exit(130) from None
        print_outcome(out, result.directory, result.summary)


app.command(epilog=_paragraphs(COMPARE_EXAMPLES))(compare)


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


app.command(epilog=_paragraphs(MERGE_EXAMPLES))(merge)
app.command("eval", epilog=_paragraphs(EVAL_EXAMPLES))(evaluate)


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


app.add_typer(deploy_app, name="deploy")


def main() -> None:
    """Entry point of the `fedrot` command."""
    try:
        app()
    except FedrotError as error:  # raised while arguments were parsed, or by `deploy` and `eval`
        tell(error)
        raise SystemExit(error.exit_code) from None
